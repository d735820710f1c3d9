//! Keeps a long prefill from flushing what decode uses.

use moe_trace::ExpertSet;

/// Tells the experts that decode has used since they came from those that only prefill has.
#[derive(Clone, Debug)]
pub(crate) struct PhaseGuard {
    quota: u64,
    /// Resident experts that decode has used.
    decode: ExpertSet,
    /// What the other resident experts take.
    prefill_used: u64,
}

impl PhaseGuard {
    pub(crate) fn new(universe: usize, quota: u64) -> PhaseGuard {
        PhaseGuard { quota, decode: ExpertSet::new(universe), prefill_used: 0 }
    }

    /// Whether prefill must give up something of its own to take `size` more.
    pub(crate) fn is_full(&self, size: u64) -> bool {
        size > self.quota.saturating_sub(self.prefill_used)
    }

    /// Resident experts that decode has used.
    pub(crate) fn decode(&self) -> &ExpertSet {
        &self.decode
    }

    /// An expert has come.
    pub(crate) fn admit(&mut self, key: usize, size: u64, for_decode: bool) {
        if for_decode {
            self.decode.insert(key);
        } else {
            self.prefill_used += size;
        }
    }

    /// Decode uses a resident expert.
    pub(crate) fn claim(&mut self, key: usize, size: u64) {
        if self.decode.insert(key) {
            self.prefill_used -= size;
        }
    }

    /// An expert leaves; tells whether decode had used it.
    pub(crate) fn release(&mut self, key: usize, size: u64) -> bool {
        let decode = self.decode.remove(key);
        if !decode {
            self.prefill_used -= size;
        }
        decode
    }

    #[cfg(test)]
    pub(crate) fn validate(&self, resident: &ExpertSet, size: impl Fn(usize) -> u64) {
        assert!(self.decode.is_subset(resident));
        let own = resident.iter().filter(|&key| !self.decode.contains(key));
        assert_eq!(self.prefill_used, own.map(size).sum::<u64>());
    }
}
