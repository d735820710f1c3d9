//! Asking memory for weights before they are multiplied.

/// How far ahead of the weights that are multiplied the next ones are asked for, in bytes: what takes longer than memory.
pub(super) const AHEAD_BYTES: usize = 4096;
/// Bytes that memory hands over at once.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Asks for the `bytes` that lie [`AHEAD_BYTES`] behind an address.
///
/// A processor does so by itself only within a page and after some misses, which is too late where rows are short.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "an address that is only a hint")]
pub(super) fn ask_ahead<T>(address: *const T, bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in (0..bytes).step_by(LINE_BYTES) {
        // SAFETY: a prefetch reads nothing, wherever its address points to.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_byte_add(AHEAD_BYTES + line).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn ask_ahead<T>(_: *const T, _: usize) {}
