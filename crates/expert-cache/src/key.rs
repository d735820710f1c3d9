//! Dense keys of the experts of a pool, dense slots of its cache.

/// An expert within a [`Pool`](crate::Pool): a dense index `0..universe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpertKey(pub u32);

/// A place for one expert in a cache: a dense index. If all experts are of one size, there are as many as fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl ExpertKey {
    /// The key as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_index(index: usize) -> ExpertKey {
        ExpertKey(u32::try_from(index).expect("a pool has at most 2^24 experts"))
    }
}

impl SlotId {
    /// The slot as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
