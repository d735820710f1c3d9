//! Host memory that is read into and multiplied from.

use std::fmt;
use std::hint::black_box;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Bytes of the pages that large memory should have.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes in host memory, aligned to 16 at least, and there: whoever writes to them does not wait for the operating system to
/// find some.
///
/// From 2 MiB on they begin where a huge page does, and the operating system is asked for such pages as far as they fill
/// them. A disk then reads into a few long pieces rather than into a thousand scattered pages, which takes up to half the
/// time, and always the same; and a walk over weights asks for fewer translations of addresses.
pub(crate) struct HostMemory(Memory);

enum Memory {
    Heap { words: Box<[u128]>, len: usize },
    Pages { map: MmapMut, start: usize, len: usize },
}

impl HostMemory {
    pub(crate) fn zeros(len: usize) -> HostMemory {
        if len >= HUGE_PAGE
            && let Ok(map) = MmapMut::map_anon(len + HUGE_PAGE)
        {
            return HostMemory(pages(map, len));
        }
        let mut words = vec![0; len.div_ceil(size_of::<u128>())].into_boxed_slice();
        // The allocator knows that it is zero already; written to, it is there.
        black_box(&mut *words).fill(0);
        HostMemory(Memory::Heap { words, len })
    }
}

/// The first `len` bytes of new memory from a huge page's begin on.
fn pages(mut map: MmapMut, len: usize) -> Memory {
    let address = map.as_ptr().addr();
    let start = address.next_multiple_of(HUGE_PAGE) - address;
    // What fills no huge page must not take one. A hint: where it is refused, pages are small.
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::HugePage, start, len / HUGE_PAGE * HUGE_PAGE);
    map[start..start + len].fill(0);
    Memory::Pages { map, start, len }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len())
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap { words, len } => &bytemuck::cast_slice(words)[..*len],
            Memory::Pages { map, start, len } => &map[*start..*start + *len],
        }
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Heap { words, len } => &mut bytemuck::cast_slice_mut(words)[..*len],
            Memory::Pages { map, start, len } => &mut map[*start..*start + *len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_writable_at_every_size() {
        for len in [0, 1, 17, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 5 * HUGE_PAGE / 2] {
            let mut memory = HostMemory::zeros(len);
            let alignment = if len < HUGE_PAGE { size_of::<u128>() } else { HUGE_PAGE };
            assert!(memory.as_ptr().addr().is_multiple_of(alignment), "{len}");
            assert_eq!(&*memory, vec![0; len]);
            memory.fill(7);
            assert_eq!(&*memory, vec![7; len]);
        }
    }
}
