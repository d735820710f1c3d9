//! What the operating system is asked for, and what happens where it has no such thing.
//!
//! | request | Linux | other Unix systems | Windows |
//! | --- | --- | --- | --- |
//! | read mapped pages ahead | `madvise` | `madvise` | pages are read when they are touched |
//! | huge pages under slots | `madvise` | pages are as they are | pages are as they are |
//! | read past the page cache | `O_DIRECT` | an error: reads go through the page cache | the same |
//! | forget cached pages | `posix_fadvise` | an error: they stay | the same |

use std::fs::File;
use std::io::Result;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

/// Asks for mapped pages to be read, and does not wait.
#[cfg(unix)]
pub(crate) fn will_need(map: &Mmap, start: usize, len: usize) -> Result<()> {
    map.advise_range(memmap2::Advice::WillNeed, start, len)
}

#[cfg(not(unix))]
pub(crate) fn will_need(_: &Mmap, _: usize, _: usize) -> Result<()> {
    Ok(())
}

/// Asks for pages of `huge` bytes as far as `len` bytes from `start` fill them, and for none behind: what fills none must not
/// take one. Both are hints: where they are refused, pages are as they are.
#[cfg(target_os = "linux")]
pub(super) fn ask_for_huge_pages(map: &MmapMut, start: usize, len: usize, huge: usize) {
    let filled = len / huge * huge;
    let _ = map.advise_range(memmap2::Advice::HugePage, start, filled);
    let _ = map.advise_range(memmap2::Advice::NoHugePage, start + filled, map.len() - start - filled);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn ask_for_huge_pages(_: &MmapMut, _: usize, _: usize, _: usize) {}

/// Opens a file to be read past the page cache.
///
/// # Errors
/// `InvalidInput` or `Unsupported` where the file system or the operating system cannot do that.
#[cfg(target_os = "linux")]
pub(super) fn open_direct(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty())?.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open_direct(_: &Path) -> Result<File> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Asks the operating system to forget cached pages of a file: `len` bytes from `start`, or without a length all behind.
///
/// # Errors
/// `Unsupported` where it cannot be asked; what it answers.
#[cfg(target_os = "linux")]
pub(crate) fn forget(file: &File, start: u64, len: Option<usize>) -> Result<()> {
    let len = len.and_then(|len| (len as u64).try_into().ok());
    Ok(rustix::fs::fadvise(file, start, len, rustix::fs::Advice::DontNeed)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn forget(_: &File, _: u64, _: Option<usize>) -> Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Reads at a place of a file, without a place that the file remembers.
#[cfg(unix)]
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

/// Bytes of a page of memory.
#[cfg(all(unix, feature = "cuda"))]
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

#[cfg(all(windows, feature = "cuda"))]
pub(crate) fn page_size() -> usize {
    super::host_memory::PAGE
}
