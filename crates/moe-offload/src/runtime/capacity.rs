//! How much memory the slots of a bank may take.

use candle_core::Device;
use expert_cache::Partition;

use crate::error::{OffloadError, Result};
use crate::slots::free_bytes;

/// Room for experts on the compute device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Slots of every pool.
    Slots(usize),
    /// Slots of each pool, `[pools]`.
    PerPool(Vec<usize>),
    /// Bytes of all pools together, divided among them by their layers.
    Bytes(u64),
    /// As [`Bytes`](Self::Bytes): what is free on the device when the bank is made, but for a reserve.
    Free {
        /// Bytes that stay free.
        reserve_bytes: u64,
    },
}

impl Capacity {
    /// Slots of each pool, given the bytes of an expert of each; a pool never has more than it has experts.
    pub(super) fn slots(&self, partition: &Partition, expert_bytes: &[u64], device: &Device) -> Result<Vec<usize>> {
        let pools = partition.pools();
        let bytes = match self {
            Capacity::Slots(slots) => return Ok(vec![*slots; pools.len()]),
            Capacity::PerPool(slots) if slots.len() == pools.len() => return Ok(slots.clone()),
            Capacity::PerPool(slots) => {
                return Err(OffloadError::PoolCapacities { found: slots.len(), pools: pools.len() });
            }
            Capacity::Bytes(bytes) => *bytes,
            Capacity::Free { reserve_bytes } => free_bytes(device)?.saturating_sub(*reserve_bytes),
        };
        let layers: usize = pools.iter().map(|pool| pool.layers().len()).sum();
        // Shares are rounded where they end, and what a pool leaves is the next one's, so that no slot is lost.
        let share = |layers_before: usize| u128::from(bytes) * layers_before as u128 / layers as u128;
        let (mut before, mut left) = (0, 0);
        let slots = pools.iter().zip(expert_bytes).map(|(pool, &expert_bytes)| {
            let after = before + pool.layers().len();
            left += share(after) - share(before);
            before = after;
            let slots = usize::try_from(left / u128::from(expert_bytes)).unwrap_or(usize::MAX).min(pool.universe());
            left -= slots as u128 * u128::from(expert_bytes);
            slots
        });
        Ok(slots.collect())
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId};

    use super::*;

    #[test]
    fn bytes_are_divided_by_layers_and_used_up() {
        let geometry = Geometry::decoder(5, 8, 2).unwrap();
        let slots = |capacity: Capacity, partition: &Partition| capacity.slots(partition, &[10; 3], &Device::Cpu);
        let grouped = Partition::grouped(&geometry, 2).unwrap();
        assert_eq!(slots(Capacity::Bytes(109), &grouped).unwrap(), [4, 4, 2]);
        assert_eq!(slots(Capacity::Bytes(119), &grouped).unwrap(), [4, 5, 2]);
        assert_eq!(slots(Capacity::Bytes(u64::MAX), &grouped).unwrap(), [16, 16, 8]);
        assert_eq!(slots(Capacity::Bytes(119), &Partition::global(&geometry)).unwrap(), [11]);
        assert_eq!(slots(Capacity::Slots(3), &grouped).unwrap(), [3, 3, 3]);
        assert_eq!(slots(Capacity::PerPool(vec![1, 2, 3]), &grouped).unwrap(), [1, 2, 3]);
        let message = slots(Capacity::PerPool(vec![1]), &grouped).unwrap_err().to_string();
        assert_eq!(message, "there are capacities for 1 pools, the bank has 3");
        assert_eq!(grouped.pool_of(LayerId(4)), Some(2));
    }

    #[test]
    fn what_is_free_but_a_reserve_is_taken() {
        let free = free_bytes(&Device::Cpu).unwrap();
        assert!(free > 1 << 20, "{free} bytes");
        let global = Partition::global(&Geometry::decoder(1, 60_000, 1).unwrap());
        // Half a terabyte a slot.
        let none = Capacity::Free { reserve_bytes: u64::MAX }.slots(&global, &[1], &Device::Cpu).unwrap();
        let many = Capacity::Free { reserve_bytes: 0 }.slots(&global, &[1], &Device::Cpu).unwrap();
        assert_eq!((none, many), (vec![0], vec![60_000]));
    }
}
