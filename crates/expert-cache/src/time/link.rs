//! The copy engine: one copy at a time, demanded ones first.

use std::collections::VecDeque;

use crate::ExpertKey;

/// An expert of one of several pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) pool: usize,
    pub(super) key: ExpertKey,
}

/// How far the copy of a resident expert is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arrival {
    /// It has arrived.
    Here,
    /// It is on the way, and will arrive at this second.
    At(f64),
    /// It had not begun; now it is nobody's but the caller's.
    Queued,
}

/// A copy that begins when no other is wanted.
#[derive(Clone, Copy, Debug)]
struct Background {
    copied: Copied,
    issued: f64,
    seconds: f64,
}

/// A link from host memory to the slots, from second 0 on.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// The running copy, if any, ends.
    free: f64,
    /// Seconds of all copies begun.
    begun: f64,
    running: Option<Copied>,
    queue: VecDeque<Background>,
}

impl Link {
    /// Lets background copies begin until `now`.
    pub(super) fn advance(&mut self, now: f64) {
        while let Some(&Background { copied, issued, seconds }) = self.queue.front() {
            let start = self.free.max(issued);
            if start >= now {
                return;
            }
            self.queue.pop_front();
            self.begin(start, seconds);
            self.running = Some(copied);
        }
    }

    /// Copies something wanted at `now`; returns when it arrives. It waits for the running copy, but for no queued one.
    pub(super) fn demand(&mut self, now: f64, seconds: f64) -> f64 {
        self.advance(now);
        let start = self.free.max(now);
        self.running = None;
        self.begin(start, seconds)
    }

    /// When the next demanded copy would arrive.
    pub(super) fn estimate(&self, now: f64, seconds: f64) -> f64 {
        self.free.max(now) + seconds
    }

    /// Queues a copy for when the link is idle.
    pub(super) fn enqueue(&mut self, copied: Copied, issued: f64, seconds: f64) {
        self.queue.push_back(Background { copied, issued, seconds });
    }

    /// Where the copy of a resident expert is at `now`, to which the link was advanced; one that has not begun leaves the
    /// queue.
    pub(super) fn arrival(&mut self, copied: Copied, now: f64) -> Arrival {
        if self.cancel(copied) {
            Arrival::Queued
        } else if self.running == Some(copied) && self.free > now {
            Arrival::At(self.free)
        } else {
            Arrival::Here
        }
    }

    /// Takes a copy out of the queue; says whether it was there.
    pub(super) fn cancel(&mut self, copied: Copied) -> bool {
        // Queues are short and most often empty.
        let place = self.queue.iter().position(|queued| queued.copied == copied);
        place.and_then(|place| self.queue.remove(place)).is_some()
    }

    /// Seconds that the link was busy until `now`.
    pub(super) fn busy(&self, now: f64) -> f64 {
        self.begun - (self.free - now).max(0.0)
    }

    fn begin(&mut self, start: f64, seconds: f64) -> f64 {
        self.free = start + seconds;
        self.begun += seconds;
        self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expert(key: u32) -> Copied {
        Copied { pool: 0, key: ExpertKey(key) }
    }

    #[test]
    fn a_demanded_copy_waits_for_the_running_one_alone() {
        let mut link = Link::default();
        link.enqueue(expert(0), 1.0, 4.0);
        link.enqueue(expert(1), 1.0, 4.0);
        // Expert 0 is copied from 1 to 5; the demanded copy from 5 to 7; expert 1 from 7 to 11.
        assert_eq!(link.demand(2.0, 2.0), 7.0);
        assert_eq!(link.arrival(expert(0), 7.0), Arrival::Here);
        link.advance(8.0);
        assert_eq!(link.arrival(expert(1), 8.0), Arrival::At(11.0));
        assert_eq!((link.busy(8.0), link.busy(20.0)), (7.0, 10.0));
    }

    #[test]
    fn a_copy_that_has_not_begun_can_be_taken_back() {
        let mut link = Link::default();
        link.enqueue(expert(0), 0.0, 4.0);
        link.enqueue(expert(1), 0.0, 4.0);
        link.advance(1.0);
        assert_eq!(link.arrival(expert(1), 1.0), Arrival::Queued);
        assert_eq!(link.arrival(expert(1), 1.0), Arrival::Here);
        assert_eq!(link.demand(9.0, 1.0), 10.0);
    }
}
