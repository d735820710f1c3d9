//! Reading checkpoint files without leaving them in memory.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;

use super::host_memory::{HostMemory, PAGE};
use super::os;
use crate::error::Result;

/// How loads read experts from checkpoint files.
///
/// Only loads are affected: an expert that is [fetched](crate::ExpertStore::fetch) to be computed in host memory is
/// always used where the file is mapped, and its pages stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FileReads {
    /// [`Cached`](Self::Cached) if the bytes that the files have of all experts fit the memory that is free when they are
    /// opened, otherwise [`Direct`](Self::Direct).
    #[default]
    Auto,
    /// Copied from the mapped file: the operating system keeps what was read until it needs the memory. The fastest where
    /// everything fits; where it does not, slots and page cache hold the same experts and compete for memory.
    Cached,
    /// Read past the page cache, so that an expert in a slot is not held twice: experts whose projections are all
    /// quantized and of a MiB or more straight into slots in host memory, others into a buffer of the reading thread
    /// first. Where a file system or, other than Linux, an operating system cannot do that, reads go through the page cache;
    /// Linux drops what was read right after.
    Direct,
}

/// Bytes that memory must have for [`UncachedFile::read_to`] to fill it with a part of `len` bytes from anywhere.
pub(crate) fn room_for(len: usize) -> usize {
    len + 2 * PAGE
}

/// The whole pages around a part of a file.
fn around(part: &Range<usize>) -> Range<usize> {
    part.start / PAGE * PAGE..part.end.next_multiple_of(PAGE)
}

/// Memory that parts of files are read to, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer(Option<HostMemory>);

impl ReadBuffer {
    fn bytes(&mut self, len: usize) -> Result<&mut [u8]> {
        let memory = match self.0.take() {
            Some(memory) if memory.len() >= len => memory,
            _ => HostMemory::zeros(len.max(PAGE))?,
        };
        Ok(&mut self.0.insert(memory)[..len])
    }
}

/// A file whose bytes are read and not kept.
#[derive(Debug)]
pub(crate) struct UncachedFile {
    file: File,
    /// Reads go through the page cache, since the file system knows no other way.
    buffered: bool,
}

impl UncachedFile {
    pub(crate) fn open(path: &Path) -> io::Result<UncachedFile> {
        match os::open_direct(path) {
            Ok(file) => Ok(UncachedFile { file, buffered: false }),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                Ok(UncachedFile { file: File::open(path)?, buffered: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a part of the file somewhere into `memory`, which has [room](room_for); returns where it begins.
    pub(crate) fn read_to(&self, memory: &mut HostMemory, part: &Range<usize>) -> io::Result<usize> {
        let around = around(part);
        self.fill(&mut memory[..around.len()], around.start, part.end - around.start)?;
        Ok(part.start - around.start)
    }

    /// Fills `buffer`, which begins with the byte at `start`, at least up to `needed` bytes; place, length and memory of a read
    /// past the page cache must be multiples of a page.
    fn fill(&self, buffer: &mut [u8], start: usize, needed: usize) -> io::Result<()> {
        let mut filled = 0;
        while filled < needed {
            match os::read_at(&self.file, &mut buffer[filled..], (start + filled) as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.buffered {
            // A hint: where it is refused, the pages stay.
            let _ = os::forget(&self.file, start as u64, Some(buffer.len()));
        }
        Ok(())
    }
}

/// Reads parts of files into one buffer; returns them, unless there is no memory for that.
pub(crate) fn read_parts<'b, const N: usize>(
    parts: [(&UncachedFile, Range<usize>); N],
    buffer: &'b mut ReadBuffer,
) -> Result<[io::Result<&'b [u8]>; N]> {
    let mut rest = buffer.bytes(parts.iter().map(|(_, range)| around(range).len()).sum())?;
    Ok(parts.map(|(file, range)| {
        let around = around(&range);
        let (bytes, others) = std::mem::take(&mut rest).split_at_mut(around.len());
        rest = others;
        file.fill(bytes, around.start, range.end - around.start)?;
        Ok(&bytes[range.start - around.start..range.end - around.start])
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at * 7919 + at / 251) % 256).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_are_those_of_the_file(
            len in 1usize..40_000,
            cuts in proptest::array::uniform3((0usize..=1000, 0usize..=1000)),
            buffered in any::<bool>(),
        ) {
            let contents = contents(len);
            let mut path = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut path, &contents).unwrap();
            let mut file = UncachedFile::open(path.path()).unwrap();
            if buffered {
                file = UncachedFile { file: File::open(path.path()).unwrap(), buffered };
            }
            let place = |thousandths: usize| len * thousandths / 1000;
            let ranges = cuts.map(|(a, b)| place(a.min(b))..place(a.max(b)));
            let mut buffer = ReadBuffer::default();
            // The second time the buffer is reused.
            for _ in 0..2 {
                let parts = read_parts(ranges.clone().map(|range| (&file, range)), &mut buffer).unwrap();
                for (part, range) in parts.into_iter().zip(&ranges) {
                    prop_assert_eq!(part.unwrap(), &contents[range.clone()]);
                }
            }
        }
    }

    #[test]
    fn a_part_behind_the_end_is_an_error() {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut path, &contents(5000)).unwrap();
        let file = UncachedFile::open(path.path()).unwrap();
        let mut buffer = ReadBuffer::default();
        let [inside, across] = read_parts([(&file, 4090..5000), (&file, 4999..5001)], &mut buffer).unwrap();
        assert_eq!(inside.unwrap(), &contents(5000)[4090..]);
        assert_eq!(across.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
