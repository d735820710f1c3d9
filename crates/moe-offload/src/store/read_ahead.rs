//! Threads that read experts from disk before they are wanted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use moe_trace::{ExpertId, LayerId};

use super::expert_store::ExpertStore;
use crate::error::{OffloadError, Result};
use crate::expert::ExpertShape;

/// Threads that call [`ExpertStore::read_ahead`], so that a load that follows finds the weights in memory;
/// [`OffloadOptions::read_ahead`](crate::OffloadOptions::read_ahead) gives them to a bank.
///
/// Wishes wait in a queue of fixed length; one too many is dropped, since a hint that comes late helps nobody. What cannot
/// be read ahead is left to the load, which tells why. Dropping this waits for the reads under way and forgets the others.
#[derive(Debug)]
pub struct ReadAhead {
    shape: ExpertShape,
    /// `None` when the threads are to end.
    wishes: Option<SyncSender<(LayerId, ExpertId)>>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// Starts `threads` threads with a queue of `queue` experts; several threads keep several reads under way, which a disk
    /// needs to be fast.
    ///
    /// # Errors
    /// [`OffloadError::Size`] for no thread or no queue; [`OffloadError::Thread`].
    pub fn new(store: &Arc<dyn ExpertStore>, threads: usize, queue: usize) -> Result<ReadAhead> {
        let max = usize::from(u16::MAX);
        for (field, value) in [("read-ahead threads", threads), ("read-ahead queue", queue)] {
            if value == 0 || value > max {
                return Err(OffloadError::Size { field, value, max });
            }
        }
        let (wishes, receiver) = sync_channel(queue);
        let (receiver, ending) = (Arc::new(Mutex::new(receiver)), Arc::new(AtomicBool::new(false)));
        let start = |number| {
            let (store, receiver, ending) = (Arc::clone(store), Arc::clone(&receiver), Arc::clone(&ending));
            let thread = Builder::new().name(format!("read-ahead-{number}"));
            thread
                .spawn(move || read(&*store, &receiver, &ending))
                .map_err(|source| OffloadError::Thread { what: "reading ahead", source })
        };
        let mut ahead =
            ReadAhead { shape: store.shape(), wishes: Some(wishes), ending: Arc::clone(&ending), threads: Vec::new() };
        for number in 0..threads {
            // A thread that cannot be started drops those that were.
            ahead.threads.push(start(number)?);
        }
        Ok(ahead)
    }

    /// Wishes for an expert to be read; whether it was queued.
    ///
    /// # Errors
    /// An expert that the store does not have.
    pub fn want(&self, layer: LayerId, expert: ExpertId) -> Result<bool> {
        self.shape.index(layer, expert)?;
        Ok(self.wishes.as_ref().is_some_and(|wishes| wishes.try_send((layer, expert)).is_ok()))
    }
}

fn read(store: &dyn ExpertStore, wishes: &Mutex<Receiver<(LayerId, ExpertId)>>, ending: &AtomicBool) {
    loop {
        let wish = wishes.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match wish {
            Ok((layer, expert)) if !ending.load(Ordering::Relaxed) => {
                // The load that follows meets the same error, and tells it.
                let _ = catch_unwind(AssertUnwindSafe(|| store.read_ahead(layer, expert)));
            }
            _ => return,
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.wishes = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has told so.
            let _ = thread.join();
        }
    }
}
