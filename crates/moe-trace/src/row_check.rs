//! Is every id of a sequence an expert, and none twice in a row? At the speed of memory.

use crate::EMPTY_SLOT;
use crate::columns::Ids;

/// An id that can be checked many at a time.
trait Id: Copy + Eq + Into<u16> {
    /// Marks an empty slot.
    const EMPTY: Self;
}

impl Id for u8 {
    const EMPTY: u8 = u8::MAX;
}

impl Id for u16 {
    const EMPTY: u16 = EMPTY_SLOT;
}

/// Whether every id is below `experts` or empty and no row of `top_k` ids has one twice. Does not say where it is not.
///
/// # Complexity
/// O(ids x `top_k`) comparisons, in loops without branches that the compiler turns into vector instructions; rows longer
/// than [`LONGEST`] go through a table of the experts.
pub(crate) fn rows_are_valid(ids: Ids<'_>, top_k: usize, experts: usize) -> bool {
    match ids {
        Ids::U8(ids) => valid(ids, top_k, experts),
        Ids::U16(ids) => valid(ids, top_k, experts),
    }
}

/// Ids that are compared together; rows fit into it whole.
const BLOCK: usize = 64;
/// The longest row whose ids are compared with each other.
const LONGEST: usize = 16;

fn valid<T: Id>(ids: &[T], top_k: usize, experts: usize) -> bool {
    if top_k > LONGEST {
        return valid_by_table(ids, top_k, experts);
    }
    let block = BLOCK / top_k * top_k;
    // same_row[d][i]: ids i and i + d of a block belong to the same row.
    let mut same_row = [[false; BLOCK]; LONGEST];
    for (distance, row) in same_row.iter_mut().enumerate().take(top_k).skip(1) {
        for (index, same) in row.iter_mut().enumerate() {
            *same = index % top_k + distance < top_k && index + distance < block;
        }
    }
    let mut blocks = ids.chunks_exact(block);
    let mut padded = [T::EMPTY; BLOCK + LONGEST];
    for ids in &mut blocks {
        padded[..block].copy_from_slice(ids);
        if !block_is_valid(&padded, &same_row[..top_k], experts) {
            return false;
        }
    }
    padded = [T::EMPTY; BLOCK + LONGEST];
    padded[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    block_is_valid(&padded, &same_row[..top_k], experts)
}

fn block_is_valid<T: Id>(ids: &[T; BLOCK + LONGEST], same_row: &[[bool; BLOCK]], experts: usize) -> bool {
    let mut bad = false;
    for &id in &ids[..BLOCK] {
        bad |= (usize::from(id.into()) >= experts) & (id != T::EMPTY);
    }
    for (distance, same) in same_row.iter().enumerate().skip(1) {
        let later: &[T; BLOCK] = ids[distance..].first_chunk().expect("a row is at most LONGEST long");
        let mut twice = false;
        for index in 0..BLOCK {
            twice |= (ids[index] == later[index]) & (ids[index] != T::EMPTY) & same[index];
        }
        bad |= twice;
    }
    !bad
}

fn valid_by_table<T: Id>(ids: &[T], top_k: usize, experts: usize) -> bool {
    let mut last_row = vec![0usize; experts];
    ids.chunks(top_k).enumerate().all(|(row, ids)| {
        ids.iter().filter(|&&id| id != T::EMPTY).all(|&id| {
            last_row.get_mut(usize::from(id.into())).is_some_and(|last| std::mem::replace(last, row + 1) != row + 1)
        })
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
            top_k in 1usize..24,
            rows in 0usize..40,
            experts in 24usize..300,
            seed in any::<u64>(),
            faults in proptest::collection::vec((any::<prop::sample::Index>(), 0u16..320), 0..3),
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
                    ids[at] = if id > 310 { EMPTY_SLOT } else { id };
                }
            }
            let expected = naive(&ids, top_k, experts);
            prop_assert_eq!(rows_are_valid(Ids::U16(&ids), top_k, experts), expected);
            if experts <= 255 && ids.iter().all(|&id| id < 255 || id == EMPTY_SLOT) {
                let narrow: Vec<u8> = ids.iter().map(|&id| u8::try_from(id).unwrap_or(u8::MAX)).collect();
                prop_assert_eq!(rows_are_valid(Ids::U8(&narrow), top_k, experts), expected);
            }
        }
    }
}
