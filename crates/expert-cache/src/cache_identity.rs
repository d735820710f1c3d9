//! Which cache a plan is of.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The next number of a cache; 0 is of no cache.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that no other cache of the process has, nor a clone of the cache: clones decide for themselves.
#[derive(Debug)]
pub(crate) struct CacheIdentity(u64);

/// A mark of the cache that a plan and its loads are of.
///
/// The mark is no part of a decision. All marks are equal, so that plans of two caches that decide alike are equal; only
/// [`is`](Self::is) tells marks apart.
#[derive(Clone, Copy, Default)]
pub(crate) struct OfCache(u64);

impl CacheIdentity {
    pub(crate) fn new() -> CacheIdentity {
        CacheIdentity(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn mark(&self) -> OfCache {
        OfCache(self.0)
    }
}

impl Clone for CacheIdentity {
    fn clone(&self) -> CacheIdentity {
        CacheIdentity::new()
    }
}

impl OfCache {
    /// Returns true if both marks are of the same cache.
    pub(crate) fn is(self, other: OfCache) -> bool {
        self.0 == other.0
    }
}

impl PartialEq for OfCache {
    fn eq(&self, _: &OfCache) -> bool {
        true
    }
}

impl Eq for OfCache {}

/// Without the number, which depends on how many caches the process has made.
impl fmt::Debug for OfCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}
