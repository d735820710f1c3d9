//! What ordering copies needs of a GPU: small enough that a test can be one.

use std::fmt::Debug;

use crate::error::Result;

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceAddress(pub(super) u64);

impl DeviceAddress {
    /// The address `bytes` further on.
    pub(super) fn plus(self, bytes: usize) -> DeviceAddress {
        DeviceAddress(self.0 + bytes as u64)
    }
}

/// A GPU as the host sees it: one queue of compute, lanes of copies beside it, and events that order them.
///
/// Work in one queue runs in order, work in two queues in any order that events do not forbid. All but the methods that
/// say otherwise return at once.
pub(super) trait Driver: Debug + Send + Sync {
    /// A queue of copies.
    type Lane: Debug + Send;
    /// A point in a queue, reached once everything before it is done.
    type Event: Debug + Send + Sync;
    /// A page-locked buffer.
    type Staging: Debug + Send;
    /// Host memory that is page-locked where it lies, until this is dropped.
    type Locked: Debug + Send + Sync;

    /// Opens a lane.
    fn lane(&self) -> Result<Self::Lane>;

    /// Allocates a page-locked buffer.
    fn staging(&self, bytes: usize) -> Result<Self::Staging>;

    /// Page-locks the `bytes` bytes of host memory at `address`, whole pages.
    ///
    /// # Safety
    /// The pages stay mapped as long as the result lives.
    #[expect(unsafe_code, reason = "the memory belongs to somebody else")]
    unsafe fn lock(&self, address: usize, bytes: usize) -> Result<Self::Locked>;

    /// Writes `bytes` to the start of a buffer, which is no shorter.
    fn fill(&self, staging: &mut Self::Staging, bytes: &[u8]) -> Result<()>;

    /// Puts a copy of the first `bytes` bytes of a buffer to `to` into a lane.
    ///
    /// # Safety
    /// The buffer is not filled or dropped, and the memory at `to` not freed, until the copy is done.
    #[expect(unsafe_code, reason = "the copy outlives the call")]
    unsafe fn copy_staged(
        &self,
        lane: &Self::Lane,
        from: &Self::Staging,
        bytes: usize,
        to: DeviceAddress,
    ) -> Result<()>;

    /// Puts a copy of host memory to `to` into a lane.
    ///
    /// # Safety
    /// `from` lives, and the memory at `to` is not freed, until the copy is done.
    #[expect(unsafe_code, reason = "the copy outlives the call")]
    unsafe fn copy(&self, lane: &Self::Lane, from: &[u8], to: DeviceAddress) -> Result<()>;

    /// The point behind everything that is in a lane.
    fn record(&self, lane: &Self::Lane) -> Result<Self::Event>;

    /// The point behind everything that is in the compute queue.
    fn record_compute(&self) -> Result<Self::Event>;

    /// Lets what comes into a lane from now on wait for an event; the host does not.
    fn wait(&self, lane: &Self::Lane, event: &Self::Event) -> Result<()>;

    /// Blocks the calling thread until an event has come.
    fn synchronize(&self, event: &Self::Event) -> Result<()>;

    /// Blocks the calling thread until a lane is empty.
    fn drain(&self, lane: &Self::Lane) -> Result<()>;

    /// Blocks the calling thread until every queue is empty.
    fn drain_all(&self) -> Result<()>;
}
