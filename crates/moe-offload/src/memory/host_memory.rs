//! Host memory that is read into and multiplied from.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use super::os;
use crate::error::{OffloadError, Result};

/// Bytes of the pages that large memory should have.
const HUGE_PAGE: usize = 2 << 20;
/// Where parts of that many bytes begin.
pub(crate) const PAGE: usize = 4096;
/// Where smaller ones do: with a line of the processor's caches.
const LINE: usize = 64;

/// Memory that is handed out part by part.
///
/// From 2 MiB on it begins where a huge page does, and the operating system is asked for such pages as far as it fills them. A
/// disk then reads a part into a few long pieces rather than into hundreds of scattered pages, which is faster, and as fast in
/// every part; and a walk over weights asks for fewer translations of addresses.
///
/// All of it is given back when no part is left.
pub(crate) struct HostArena {
    map: Arc<MmapRaw>,
    next: usize,
    end: usize,
}

/// A part of an arena, zero at first, and there: whoever writes to it does not wait for the operating system to find some.
pub(crate) struct HostMemory {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl HostArena {
    /// An arena for parts that [need](Self::room) this many bytes together.
    ///
    /// # Errors
    /// [`OffloadError::HostMemory`].
    pub(crate) fn new(len: usize) -> Result<HostArena> {
        let slack = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let map = MmapMut::map_anon(len.saturating_add(slack).max(1));
        let map = map.map_err(|source| OffloadError::HostMemory { bytes: len, source })?;
        let mut next = 0;
        if slack > 0 {
            let address = map.as_ptr().addr();
            next = address.next_multiple_of(HUGE_PAGE) - address;
            os::ask_for_huge_pages(&map, next, len, HUGE_PAGE);
        }
        Ok(HostArena { map: Arc::new(map.into()), next, end: next + len })
    }

    /// Bytes of an arena that a part of `len` takes.
    pub(crate) fn room(len: usize) -> usize {
        len.next_multiple_of(if len < PAGE { LINE } else { PAGE })
    }

    /// Hands out a part; memory of its own if what is left is too small.
    pub(crate) fn take(&mut self, len: usize) -> Result<HostMemory> {
        let start = if len < PAGE { self.next } else { self.next.next_multiple_of(PAGE) };
        if start.checked_add(len).is_none_or(|end| end > self.end) {
            return HostMemory::zeros(len);
        }
        self.next = start + HostArena::room(len);
        let mut memory = HostMemory { map: Arc::clone(&self.map), start, len };
        memory.fill(0);
        Ok(memory)
    }
}

impl HostMemory {
    /// Memory of its own.
    pub(crate) fn zeros(len: usize) -> Result<HostMemory> {
        HostArena::new(len)?.take(len)
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len)
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    #[expect(unsafe_code, reason = "a map has no safe halves")]
    fn deref(&self) -> &[u8] {
        // SAFETY: the part lies in the map, which it keeps and nothing unmaps; the arena hands out no byte twice, so that only
        // this value leads to these bytes.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for HostMemory {
    #[expect(unsafe_code, reason = "a map has no safe halves")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // Parts are told apart by what is written to them; the last may not fit.
        #[test]
        fn parts_are_zero_aligned_and_apart(lens in proptest::collection::vec(0usize..200_000, 1..40), fit in 0usize..40) {
            let mut arena = HostArena::new(lens.iter().take(fit).map(|&len| HostArena::room(len)).sum()).unwrap();
            let mut parts: Vec<HostMemory> = lens.iter().map(|&len| arena.take(len).unwrap()).collect();
            // Small parts before large ones leave gaps, for which no room was asked.
            if lens.iter().take(fit).all(|&len| len >= PAGE) {
                let inside = parts.iter().take(fit).filter(|part| Arc::ptr_eq(&part.map, &arena.map));
                prop_assert_eq!(inside.count(), fit.min(lens.len()));
            }
            drop(arena);
            for ((number, part), &len) in (1u8..).zip(&mut parts).zip(&lens) {
                prop_assert!(part.len() == len && part.iter().all(|&byte| byte == 0));
                let alignment = if len < PAGE { LINE } else { PAGE };
                prop_assert!(part.as_ptr().addr().is_multiple_of(alignment));
                part.fill(number);
            }
            for (number, part) in (1u8..).zip(&parts) {
                prop_assert!(part.iter().all(|&byte| byte == number));
            }
        }
    }

    #[test]
    fn large_memory_begins_where_a_huge_page_does() {
        for len in [HUGE_PAGE, HUGE_PAGE + 1, 5 * HUGE_PAGE / 2] {
            assert!(HostMemory::zeros(len).unwrap().as_ptr().addr().is_multiple_of(HUGE_PAGE), "{len}");
        }
    }

    #[test]
    fn memory_that_nobody_has_is_an_error() {
        assert!(HostMemory::zeros(usize::MAX / 4).is_err());
    }
}
