//! A running sequence in one layer.

use std::collections::VecDeque;

use expert_cache::curve::ColdStart;

use super::{epoch::Epoch, options::MonitorOptions, priority_cache::PriorityCache};

/// The last window of a running sequence in one layer, and what two caches would hold.
#[derive(Clone, Debug)]
pub(super) struct LiveSequence {
    window: usize,
    /// The last tokens, at most a window of them, and the number of experts of each.
    experts: VecDeque<u16>,
    sizes: VecDeque<usize>,
    tokens: u64,
    runs: Vec<Run>,
    caches: Caches,
}

/// One expert's uses by the last window.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    uses: usize,
    /// Number of the first window of that many uses that is not in a histogram yet.
    since: u64,
}

/// LRU and SCH at one capacity; SCH sees a whole window, so both serve a token once its window is complete.
#[derive(Clone, Debug)]
struct Caches {
    slots: usize,
    cold_start: ColdStart,
    lru: PriorityCache,
    sch: PriorityCache,
    /// Whether an expert was ever served.
    seen: Vec<bool>,
    distinct: usize,
}

impl LiveSequence {
    pub(super) fn new(options: &MonitorOptions, experts: usize) -> LiveSequence {
        LiveSequence {
            window: options.window,
            experts: VecDeque::new(),
            sizes: VecDeque::new(),
            tokens: 0,
            runs: vec![Run::default(); experts],
            caches: Caches {
                slots: options.slots,
                cold_start: options.cold_start,
                lru: PriorityCache::new(options.slots, experts, 0),
                sch: PriorityCache::new(options.slots, experts, options.window),
                seen: vec![false; experts],
                distinct: 0,
            },
        }
    }

    /// Number of windows that are complete.
    fn windows(&self) -> u64 {
        (self.tokens + 1).saturating_sub(self.window as u64)
    }

    /// Adds a token that uses `experts`, all different.
    pub(super) fn push(&mut self, experts: &[u16], epoch: &mut Epoch) {
        // The windows so far end here; the next one begins a token later if it is not the first.
        let done = self.windows();
        if self.sizes.len() == self.window {
            for expert in self.experts.drain(..self.sizes.pop_front().unwrap_or_default()) {
                step(&mut self.runs[usize::from(expert)], done, epoch, |uses| uses - 1);
            }
        }
        for &expert in experts {
            step(&mut self.runs[usize::from(expert)], done, epoch, |uses| uses + 1);
            self.caches.sch.foresee(expert);
            epoch.uses[usize::from(expert)] += 1;
        }
        self.experts.extend(experts);
        self.sizes.push_back(experts.len());
        self.tokens += 1;
        epoch.tokens += 1;
        if self.sizes.len() == self.window {
            epoch.windows += 1;
            self.caches.serve(self.experts.iter().take(self.sizes[0]).copied(), epoch);
        }
    }

    /// Serves what waits for a window that will not be complete, and completes the histogram.
    pub(super) fn end(&mut self, epoch: &mut Epoch) {
        self.flush(epoch);
        let mut first = 0;
        for (token, &size) in self.sizes.iter().enumerate() {
            if token > 0 || self.sizes.len() < self.window {
                self.caches.serve(self.experts.range(first..first + size).copied(), epoch);
            }
            first += size;
        }
    }

    /// Adds the windows since the last change of every expert to the histogram of an epoch.
    pub(super) fn flush(&mut self, epoch: &mut Epoch) {
        let done = self.windows();
        self.runs.iter_mut().for_each(|run| step(run, done, epoch, |uses| uses));
    }

    /// Adds the same without taking note.
    pub(super) fn add_to(&self, epoch: &mut Epoch) {
        let done = self.windows();
        self.runs.iter().for_each(|run| epoch.counts[run.uses] += done - run.since);
    }
}

/// Ends the run of an expert before window `done`.
fn step(run: &mut Run, done: u64, epoch: &mut Epoch, change: impl Fn(usize) -> usize) {
    epoch.counts[run.uses] += done - run.since;
    *run = Run { uses: change(run.uses), since: done };
}

impl Caches {
    /// Serves the first token of the window: all of it is judged on the state before.
    fn serve(&mut self, experts: impl Iterator<Item = u16> + Clone, epoch: &mut Epoch) {
        let mut distinct = self.distinct;
        for expert in experts.clone() {
            let first = !std::mem::replace(&mut self.seen[usize::from(expert)], true);
            let free = first && self.cold_start == ColdStart::Free && distinct < self.slots;
            distinct += usize::from(first);
            epoch.accesses += 1;
            epoch.lru_hits += u64::from(free || self.lru.contains(expert));
            epoch.sch_hits += u64::from(free || self.sch.contains(expert));
        }
        self.distinct = distinct;
        for expert in experts {
            self.sch.arrive(expert);
            self.lru.serve(expert);
            self.sch.serve(expert);
        }
    }
}
