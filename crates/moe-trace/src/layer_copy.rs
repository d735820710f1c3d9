//! The ids of one layer out of the rows of all.

use crate::columns::{Ids, widen};

/// Replaces `out` by the first `top_k` of every `stride` ids.
///
/// # Panics
/// If the last ids are fewer than `top_k`.
pub(crate) fn copy_rows(ids: Ids<'_>, stride: usize, top_k: usize, out: &mut Vec<u16>) {
    match ids {
        Ids::U8(ids) => copy(ids, stride, top_k, widen, out),
        Ids::U16(ids) => copy(ids, stride, top_k, |id| id, out),
    }
}

fn copy<T: Copy>(ids: &[T], stride: usize, top_k: usize, widen: impl Fn(T) -> u16, out: &mut Vec<u16>) {
    // Every id is written below: what the vector held may stay until then.
    out.resize(ids.len().div_ceil(stride) * top_k, 0);
    match top_k {
        1 => copy_arrays::<1, _>(ids, stride, widen, out),
        2 => copy_arrays::<2, _>(ids, stride, widen, out),
        4 => copy_arrays::<4, _>(ids, stride, widen, out),
        6 => copy_arrays::<6, _>(ids, stride, widen, out),
        8 => copy_arrays::<8, _>(ids, stride, widen, out),
        10 => copy_arrays::<10, _>(ids, stride, widen, out),
        _ => {
            for (to, from) in out.chunks_exact_mut(top_k).zip(ids.chunks(stride)) {
                for (to, &from) in to.iter_mut().zip(&from[..top_k]) {
                    *to = widen(from);
                }
            }
        }
    }
}

/// With a length that the compiler knows, a row is a few vector instructions; if it also knows that `ids` and `out` do not
/// overlap, which it forgets where it inlines this.
#[inline(never)]
fn copy_arrays<const K: usize, T: Copy>(ids: &[T], stride: usize, widen: impl Fn(T) -> u16, out: &mut [u16]) {
    for (to, from) in out.as_chunks_mut::<K>().0.iter_mut().zip(ids.chunks(stride)) {
        let from = from.first_chunk::<K>().expect("rows of top_k ids");
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = widen(from));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::EMPTY_SLOT;

    proptest! {
        #[test]
        fn agrees_with_one_id_at_a_time(
            top_k in 1usize..12,
            more in 0usize..20,
            rows in 0usize..9,
            seen in proptest::collection::vec(any::<u8>(), 300),
        ) {
            let stride = top_k + more;
            let ids = &seen[..rows * stride];
            let expected: Vec<u16> = (0..rows)
                .flat_map(|row| &ids[row * stride..row * stride + top_k])
                .map(|&id| if id == 255 { EMPTY_SLOT } else { u16::from(id) })
                .collect();
            let mut out = vec![7; 5];
            copy_rows(Ids::U8(ids), stride, top_k, &mut out);
            prop_assert_eq!(&out, &expected);
            let wide: Vec<u16> = ids.iter().copied().map(widen).collect();
            copy_rows(Ids::U16(&wide), stride, top_k, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
