//! Is every id of a sequence an expert, and none twice in a row? At the speed of memory.

use crate::EMPTY_SLOT;
use crate::columns::Ids;
#[cfg(target_arch = "x86_64")]
use crate::row_rotation::judge;

/// Whether every id is below `experts` or empty and no row of `top_k` ids has one twice. Does not say where it is not.
///
/// # Complexity
/// O(ids x `top_k`) comparisons. With AVX2, rows of at most 16 bytes are compared with themselves, rotated
/// ([`row_rotation`](crate::row_rotation)); elsewhere in loops without branches over lanes as wide as an id, which the
/// compiler turns into vector instructions; rows longer than [`LONGEST`] go through a table of the experts.
pub(crate) fn rows_are_valid(ids: Ids<'_>, top_k: usize, experts: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return valid_in_registers(simd, ids, top_k, experts);
    }
    valid(ids, top_k, experts)
}

#[cfg(target_arch = "x86_64")]
fn valid_in_registers(simd: pulp::x86::V3, ids: Ids<'_>, top_k: usize, experts: usize) -> bool {
    // The largest id; all types hold it, because a reader refuses narrow ids of more experts.
    let rest = match ids {
        Ids::U8(ids) => match u8::try_from(experts - 1) {
            Ok(largest) => judge(simd, ids, top_k, largest).map(Ids::U8),
            Err(_) => Some(Ids::U8(ids)),
        },
        Ids::U16(ids) => match u16::try_from(experts - 1) {
            Ok(largest) => judge(simd, ids, top_k, largest).map(Ids::U16),
            Err(_) => Some(Ids::U16(ids)),
        },
    };
    rest.is_some_and(|ids| simd.vectorize(Rows { ids, top_k, experts }))
}

/// Rows for the loops, compiled for AVX2. Not a closure: what calls those is not always inlined.
#[cfg(target_arch = "x86_64")]
struct Rows<'a> {
    ids: Ids<'a>,
    top_k: usize,
    experts: usize,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Rows<'_> {
    type Output = bool;

    #[inline(always)]
    fn call(self) -> bool {
        valid(self.ids, self.top_k, self.experts)
    }
}

#[inline(always)]
fn valid(ids: Ids<'_>, top_k: usize, experts: usize) -> bool {
    match ids {
        Ids::U8(ids) => narrow::valid(ids, top_k, experts),
        Ids::U16(ids) => wide::valid(ids, top_k, experts),
    }
}

/// Ids that are compared together; rows fit into it whole.
const BLOCK: usize = 64;
/// The longest row whose ids are compared with each other.
const LONGEST: usize = 12;

/// The check for one type of ids: lanes must be as wide as an id, so there is no generic way to write them.
macro_rules! check {
    ($module:ident, $id:ty) => {
        mod $module {
            use super::{BLOCK, EMPTY_SLOT, LONGEST, valid_by_table};

            const EMPTY: $id = <$id>::MAX;

            fn widen(id: $id) -> u16 {
                if id == EMPTY { EMPTY_SLOT } else { u16::from(id) }
            }

            #[inline(always)]
            pub(super) fn valid(ids: &[$id], top_k: usize, experts: usize) -> bool {
                // The largest id; all types hold it, because a reader refuses narrow ids of more experts.
                let Ok(largest) = <$id>::try_from(experts - 1) else {
                    return valid_by_table(ids, widen, top_k, experts);
                };
                match top_k {
                    1 => rows::<1>(ids, largest),
                    2 => rows::<2>(ids, largest),
                    3 => rows::<3>(ids, largest),
                    4 => rows::<4>(ids, largest),
                    5 => rows::<5>(ids, largest),
                    6 => rows::<6>(ids, largest),
                    7 => rows::<7>(ids, largest),
                    8 => rows::<8>(ids, largest),
                    9 => rows::<9>(ids, largest),
                    10 => rows::<10>(ids, largest),
                    11 => rows::<11>(ids, largest),
                    12 => rows::<12>(ids, largest),
                    _ => valid_by_table(ids, widen, top_k, experts),
                }
            }

            #[inline(always)]
            fn rows<const K: usize>(ids: &[$id], largest: $id) -> bool {
                let block = BLOCK / K * K;
                // same_row[d][i]: 1 if ids i and i + d of a block belong to the same row.
                let mut same_row = [[0; BLOCK]; K];
                for (distance, row) in same_row.iter_mut().enumerate() {
                    for (index, same) in row.iter_mut().enumerate().take(block) {
                        *same = <$id>::from(index % K + distance < K);
                    }
                }
                let mut start = 0;
                // Whole windows reach over the end of their block; what they see there belongs to other rows.
                while let Some(window) = ids[start..].first_chunk() {
                    if !block_is_valid(window, &same_row, largest) {
                        return false;
                    }
                    start += block;
                }
                while start < ids.len() {
                    let rest = &ids[start..ids.len().min(start + block)];
                    let mut window = [EMPTY; BLOCK + LONGEST];
                    window[..rest.len()].copy_from_slice(rest);
                    if !block_is_valid(&window, &same_row, largest) {
                        return false;
                    }
                    start += block;
                }
                true
            }

            #[inline(always)]
            fn block_is_valid<const K: usize>(
                ids: &[$id; BLOCK + LONGEST],
                same_row: &[[$id; BLOCK]; K],
                largest: $id,
            ) -> bool {
                // Sums and not branches, so that this becomes vector instructions. A lane is 1 where something is wrong.
                let mut bad: [$id; BLOCK] = [0; BLOCK];
                for index in 0..BLOCK {
                    let id = ids[index];
                    let mut wrong = <$id>::from(id > largest);
                    for distance in 1..K {
                        wrong |= <$id>::from(id == ids[index + distance]) & same_row[distance][index];
                    }
                    bad[index] = wrong & <$id>::from(id != EMPTY);
                }
                bad.iter().fold(0, |any, bad| any | bad) == 0
            }
        }
    };
}

check!(narrow, u8);
check!(wide, u16);

fn valid_by_table<T: Copy>(ids: &[T], widen: impl Fn(T) -> u16, top_k: usize, experts: usize) -> bool {
    let mut last_row = vec![0usize; experts];
    ids.chunks(top_k).enumerate().all(|(row, ids)| {
        ids.iter()
            .map(|&id| widen(id))
            .filter(|&id| id != EMPTY_SLOT)
            .all(|id| last_row.get_mut(usize::from(id)).is_some_and(|last| std::mem::replace(last, row + 1) != row + 1))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition.
    fn naive(ids: &[u16], top_k: usize, experts: usize) -> bool {
        ids.chunks(top_k).all(|row| {
            row.iter()
                .enumerate()
                .all(|(rank, &id)| id == EMPTY_SLOT || (usize::from(id) < experts && !row[..rank].contains(&id)))
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            top_k in 1usize..20,
            rows in 0usize..160,
            experts in prop_oneof![24usize..300, Just(255)],
            seed in any::<u64>(),
            faults in proptest::collection::vec((any::<prop::sample::Index>(), 0u16..320), 0..4),
        ) {
            // Rows without a fault, then faults (some of which are none).
            let mut ids: Vec<u16> = (0..rows as u64)
                .flat_map(|row| {
                    let start = (seed ^ row.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % experts as u64;
                    (0..top_k as u64).map(move |rank| u16::try_from((start + rank) % experts as u64).unwrap())
                })
                .collect();
            for (index, id) in faults {
                if !ids.is_empty() {
                    let at = index.index(ids.len());
                    ids[at] = if id > 280 { EMPTY_SLOT } else { id };
                }
            }
            let expected = naive(&ids, top_k, experts);
            prop_assert_eq!(rows_are_valid(Ids::U16(&ids), top_k, experts), expected);
            prop_assert_eq!(valid(Ids::U16(&ids), top_k, experts), expected);
            if experts <= 255 && ids.iter().all(|&id| id < 255 || id == EMPTY_SLOT) {
                let narrow: Vec<u8> = ids.iter().map(|&id| u8::try_from(id).unwrap_or(u8::MAX)).collect();
                prop_assert_eq!(rows_are_valid(Ids::U8(&narrow), top_k, experts), expected);
                prop_assert_eq!(valid(Ids::U8(&narrow), top_k, experts), expected);
            }
        }
    }
}
