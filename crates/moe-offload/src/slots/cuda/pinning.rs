//! Host memory that is page-locked where it lies, as far as the system allows.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::driver::Driver;

/// A refused piece of more bytes than this is tried in halves, to find out where the quota ends.
const SMALLEST_PROBE_BYTES: usize = 16 << 20;

/// How much host memory the GPU may copy from without help of the host.
///
/// Copies from page-locked memory run at the speed of the bus and beside compute; other memory passes through a staging
/// buffer, and where not even that could be locked, through the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Pinning {
    /// Bytes of weights that are locked where they lie.
    pub locked_bytes: u64,
    /// Bytes of weights that the system, or the limit, refused to lock.
    pub refused_bytes: u64,
    /// Bytes of the staging buffers.
    pub staging_bytes: u64,
    /// Why locking was refused first, if it was.
    pub refusal: Option<String>,
}

impl fmt::Display for Pinning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pinning { locked_bytes, refused_bytes, staging_bytes, refusal } = self;
        write!(f, "{locked_bytes} bytes of weights page-locked, {refused_bytes} refused")?;
        write!(f, ", {staging_bytes} bytes of staging buffers")?;
        refusal.iter().try_for_each(|reason| write!(f, ": {reason}"))
    }
}

/// Weights that are locked, in order of their addresses, and what keeps them where they are.
pub(super) struct LockedRanges<D: Driver> {
    /// Addresses of each locked range; a copy may not leave it, as the driver knows each as memory of its own.
    ranges: Vec<Range<usize>>,
    /// Unlocked before the memory may go.
    locks: Vec<D::Locked>,
    #[expect(dead_code, reason = "held for its drop")]
    owner: Arc<dyn Any + Send + Sync>,
}

impl<D: Driver> fmt::Debug for LockedRanges<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedRanges").field("ranges", &self.ranges.len()).finish_non_exhaustive()
    }
}

impl<D: Driver> LockedRanges<D> {
    /// Locks the pages of `ranges`, at most `limit_bytes` of them, in order of their addresses, until the system refuses.
    ///
    /// # Safety
    /// The ranges stay mapped as long as `owner` lives.
    #[expect(unsafe_code, reason = "the memory belongs to somebody else")]
    pub(super) unsafe fn lock(
        driver: &D,
        ranges: impl IntoIterator<Item = Range<usize>>,
        owner: Arc<dyn Any + Send + Sync>,
        page_bytes: usize,
        limit_bytes: u64,
    ) -> (LockedRanges<D>, Pinning) {
        let mut locked = LockedRanges { ranges: Vec::new(), locks: Vec::new(), owner };
        let mut report = Pinning::default();
        let mut pieces = page_ranges(ranges, page_bytes);
        pieces.reverse();
        while let Some(piece) = pieces.pop() {
            let bytes = piece.len() as u64;
            let refused = if report.locked_bytes + bytes > limit_bytes {
                format!("the limit is {limit_bytes} bytes")
            } else {
                // SAFETY: the pages hold bytes of the ranges, which stay mapped while `owner`, held here, lives; the
                // locks are dropped before it.
                match unsafe { driver.lock(piece.start, piece.len()) } {
                    Ok(lock) => {
                        report.locked_bytes += bytes;
                        locked.ranges.push(piece);
                        locked.locks.push(lock);
                        continue;
                    }
                    Err(error) => error.to_string(),
                }
            };
            report.refusal.get_or_insert(refused);
            if piece.len() > SMALLEST_PROBE_BYTES.max(page_bytes) {
                let middle = piece.start + (piece.len() / 2).next_multiple_of(page_bytes);
                pieces.extend([middle..piece.end, piece.start..middle]);
            } else {
                // The quota is used up.
                report.refused_bytes = bytes + pieces.drain(..).map(|rest| rest.len() as u64).sum::<u64>();
            }
        }
        (locked, report)
    }

    /// The first piece of `address..address + bytes` that lies within one locked range or outside of all: its length,
    /// and whether it is locked.
    pub(super) fn piece(&self, address: usize, bytes: usize) -> (usize, bool) {
        let next = self.ranges.partition_point(|range| range.end <= address);
        match self.ranges.get(next) {
            Some(range) if range.start <= address => ((range.end - address).min(bytes), true),
            Some(range) => ((range.start - address).min(bytes), false),
            None => (bytes, false),
        }
    }
}

/// The pages that hold any byte of the ranges, as ranges that neither overlap nor touch, in order.
fn page_ranges(ranges: impl IntoIterator<Item = Range<usize>>, page_bytes: usize) -> Vec<Range<usize>> {
    let whole = |range: Range<usize>| range.start / page_bytes * page_bytes..range.end.next_multiple_of(page_bytes);
    let mut pages: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).map(whole).collect();
    pages.sort_unstable_by_key(|range| range.start);
    pages.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
    pages
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::stub::Stub;
    use super::*;

    /// Locks fake addresses, which the stub never reads.
    fn lock(stub: &Stub, ranges: &[Range<usize>], page_bytes: usize, limit: u64) -> (LockedRanges<Stub>, Pinning) {
        // SAFETY: a stub takes no more than notice of the addresses.
        #[expect(unsafe_code, reason = "as a loader would")]
        unsafe {
            LockedRanges::lock(stub, ranges.iter().cloned(), Arc::new(()), page_bytes, limit)
        }
    }

    #[test]
    fn the_end_of_the_quota_is_found_by_halves() {
        const MIB: usize = 1 << 20;
        let stub = Stub::new(1, 1).with_quota(700 * MIB);
        let (locked, report) =
            lock(&stub, &[4096 + 300 * MIB..4096 + 1024 * MIB, 4096..4096 + 300 * MIB], 4096, u64::MAX);
        // 1024 are too many, 512 fit; 256 more do not, 128 do; 128 more do not, nor 64, 32 and 16 do; 16 more do not.
        assert_eq!(report.locked_bytes, 688 * MIB as u64);
        assert_eq!(report.refused_bytes, (1024 - 688) * MIB as u64);
        assert_eq!(report.refusal.as_deref(), Some("page-locking host memory failed on the GPU: stub (2)"));
        assert_eq!(stub.locked_bytes(), 688 * MIB);
        assert_eq!(locked.piece(4096, 2000 * MIB), (512 * MIB, true));
        assert_eq!(locked.piece(4096 + 688 * MIB, 10), (10, false));
        drop(locked);
        assert_eq!(stub.locked_bytes(), 0);
    }

    #[test]
    fn a_limit_is_kept_and_named() {
        let stub = Stub::new(1, 1);
        let (_locked, report) = lock(&stub, &[0..4096, 8192..12288], 4096, 5000);
        assert_eq!((report.locked_bytes, report.refused_bytes), (4096, 4096));
        let expected =
            "4096 bytes of weights page-locked, 4096 refused, 0 bytes of staging buffers: the limit is 5000 bytes";
        assert_eq!(report.to_string(), expected);
    }

    proptest! {
        #[test]
        fn pieces_agree_with_a_look_at_every_byte(
            ranges in prop::collection::vec((0usize..200, 0usize..40), 0..8),
            quota in 0usize..200,
            (address, bytes) in (0usize..250, 1usize..100),
        ) {
            const PAGE: usize = 8;
            let ranges: Vec<_> = ranges.into_iter().map(|(start, bytes)| start..start + bytes).collect();
            let pages: BTreeSet<usize> = ranges.iter().flat_map(Range::clone).map(|byte| byte / PAGE).collect();
            let stub = Stub::new(1, 1).with_quota(quota);
            let (locked, report) = lock(&stub, &ranges, PAGE, u64::MAX);
            prop_assert_eq!(report.locked_bytes + report.refused_bytes, (pages.len() * PAGE) as u64);
            prop_assert_eq!(report.refusal.is_some(), report.refused_bytes > 0);
            prop_assert_eq!(stub.locked_bytes() as u64, report.locked_bytes);
            let is_locked = |byte: usize| locked.ranges.iter().any(|range| range.contains(&byte));
            prop_assert!((0..300).filter(|&byte| is_locked(byte)).all(|byte| pages.contains(&(byte / PAGE))));
            prop_assert_eq!((0..300).filter(|&byte| is_locked(byte)).count() as u64, report.locked_bytes);
            // A piece is all locked, within one range, or all not.
            let (length, inside) = locked.piece(address, bytes);
            prop_assert!((1..=bytes).contains(&length));
            prop_assert!((address..address + length).all(|byte| is_locked(byte) == inside));
            let ends = length == bytes
                || is_locked(address + length) != inside
                || locked.ranges.iter().any(|range| range.start == address + length);
            prop_assert!(ends);
        }
    }
}
