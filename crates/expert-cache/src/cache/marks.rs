//! What a cache remembers of prefetches.

use moe_trace::ExpertSet;

/// Marks on the experts of a pool; idle until the first prefetch.
#[derive(Clone, Debug)]
pub(super) struct PrefetchMarks {
    active: bool,
    /// Resident since a prefetch, and not used since.
    unused: ExpertSet,
    /// Absent since a prefetch evicted them.
    displaced: ExpertSet,
    /// Expected by one of the next requests, and kept for it.
    held: ExpertSet,
    holding: bool,
    /// Last request for which an expert is held.
    until: Vec<u64>,
    now: u64,
}

impl PrefetchMarks {
    pub(super) fn new(universe: usize) -> PrefetchMarks {
        let none = || ExpertSet::new(universe);
        PrefetchMarks {
            active: false,
            unused: none(),
            displaced: none(),
            held: none(),
            holding: false,
            until: vec![0; universe],
            now: 0,
        }
    }

    /// A request begins.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.now += 1;
        if self.holding {
            self.expire();
        }
    }

    fn expire(&mut self) {
        self.holding = false;
        for word in 0..self.held.words().len() {
            let mut bits = self.held.words()[word];
            while bits != 0 {
                let key = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if self.until[key] < self.now {
                    self.held.remove(key);
                } else {
                    self.holding = true;
                }
            }
        }
    }

    /// A prefetch has brought an expert.
    pub(super) fn prefetched(&mut self, key: usize) {
        self.active = true;
        self.unused.insert(key);
        self.displaced.remove(key);
    }

    /// A resident expert is held for the next `within` requests.
    pub(super) fn hold(&mut self, key: usize, within: usize) {
        self.active = true;
        if within > 0 {
            self.held.insert(key);
            self.holding = true;
            self.until[key] = self.now.saturating_add(within as u64);
        }
    }

    /// A resident expert is used; tells whether that is its first use since a prefetch.
    #[inline]
    pub(super) fn used(&mut self, key: usize) -> bool {
        self.active && {
            self.held.remove(key);
            self.unused.remove(key)
        }
    }

    /// An absent expert is wanted; tells whether a prefetch had evicted it.
    #[inline]
    pub(super) fn missed(&mut self, key: usize) -> bool {
        self.active && self.displaced.remove(key)
    }

    /// An expert leaves; tells whether it was prefetched in vain.
    #[inline]
    pub(super) fn evicted(&mut self, key: usize) -> bool {
        self.active && {
            self.held.remove(key);
            self.unused.remove(key)
        }
    }

    /// A prefetch has evicted an expert.
    pub(super) fn displace(&mut self, key: usize) {
        self.displaced.insert(key);
    }

    /// An expert that a prefetch had evicted is back.
    pub(super) fn forgive(&mut self, key: usize) {
        self.displaced.remove(key);
    }

    /// An expert is as if never used since its prefetch.
    pub(super) fn restore_unused(&mut self, key: usize) {
        self.unused.insert(key);
    }

    /// An expert is held as long as it was to be.
    pub(super) fn restore_held(&mut self, key: usize) {
        self.held.insert(key);
        self.holding = true;
    }

    /// Whether an expert is held.
    #[inline]
    pub(super) fn is_held(&self, key: usize) -> bool {
        self.holding && self.held.contains(key)
    }

    /// Experts that no other prefetch may evict.
    pub(super) fn held(&self) -> &ExpertSet {
        &self.held
    }

    /// Whether some expert may be held.
    #[inline]
    pub(super) fn holding(&self) -> bool {
        self.holding
    }

    /// Experts prefetched and not used since.
    pub(super) fn unused(&self) -> impl Iterator<Item = usize> + '_ {
        self.unused.iter()
    }

    #[cfg(test)]
    pub(super) fn validate(&self, resident: &ExpertSet) {
        assert!(self.held.is_subset(resident) && self.unused.is_subset(resident));
        assert_eq!(self.displaced.intersection_len(resident), 0);
        assert!(self.holding || self.held.is_empty());
    }
}
