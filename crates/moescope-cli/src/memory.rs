//! A check of memory before long work.

use anyhow::{Result, ensure};
use candle_core::Device;
use moe_offload::free_bytes;

/// Refuses work that takes more memory than is free on a device. `work` names it in the message, `advice` says what helps.
///
/// Where the free memory cannot be measured, the operating system decides.
///
/// # Errors
/// The bytes that the work takes and those that are free.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn check_memory(device: &Device, needed: u64, work: &str, advice: &str) -> Result<()> {
    let free = free_bytes(device).unwrap_or(u64::MAX);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    ensure!(needed <= free, "{work} takes about {:.1} GiB and {:.1} GiB are free: {advice}", gib(needed), gib(free));
    Ok(())
}
