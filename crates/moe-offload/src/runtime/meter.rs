//! Counts and times of one layer while it runs.

use std::time::Duration;

use expert_cache::Plan;
use moe_trace::Phase;

use super::slot_order::Reason;
use crate::report::{LayerCounters, LayerReport, PhaseCounters, PhaseReport, ReadAheadCounters, Times};

/// Counters and histograms of one layer.
#[derive(Debug, Default)]
pub(super) struct LayerMeter {
    counters: LayerCounters,
    prefill: PhaseTimes,
    decode: PhaseTimes,
    prefetch_load: Times,
}

#[derive(Debug, Default)]
struct PhaseTimes {
    load: Times,
    stall: Times,
}

impl LayerMeter {
    pub(super) fn counters(&self) -> &LayerCounters {
        &self.counters
    }

    fn of(&mut self, phase: Phase) -> (&mut PhaseCounters, &mut PhaseTimes) {
        match phase {
            Phase::Prefill => (&mut self.counters.prefill, &mut self.prefill),
            Phase::Decode => (&mut self.counters.decode, &mut self.decode),
        }
    }

    /// A load has ended.
    pub(super) fn loaded(&mut self, reason: Reason, success: bool, bytes: u64, time: Duration) {
        let (loaded_bytes, seconds, failed, times) = match reason {
            Reason::Prefetch => {
                let counters = &mut self.counters.prefetch;
                let times = &mut self.prefetch_load;
                (&mut counters.loaded_bytes, &mut counters.load_seconds, &mut counters.failed_loads, times)
            }
            Reason::Demand(phase) => {
                let (counters, times) = self.of(phase);
                let times = &mut times.load;
                (&mut counters.loaded_bytes, &mut counters.load_seconds, &mut counters.failed_loads, times)
            }
        };
        *seconds += time.as_secs_f64();
        match success {
            true => *loaded_bytes += bytes,
            false => *failed += 1,
        }
        times.add(time);
    }

    /// A call has ended, well or not.
    pub(super) fn spent(&mut self, phase: Phase, compute: Duration, stall: Duration, bypass: Duration) {
        let (counters, times) = self.of(phase);
        counters.compute_seconds += compute.as_secs_f64();
        counters.stall_seconds += stall.as_secs_f64();
        counters.bypass_seconds += bypass.as_secs_f64();
        times.stall.add(stall);
    }

    /// A plan was executed.
    pub(super) fn served(&mut self, phase: Phase, plan: &Plan) {
        self.of(phase).0.counts.add(plan);
    }

    /// A call has failed.
    pub(super) fn failed(&mut self, phase: Phase) {
        self.of(phase).0.failed_calls += 1;
    }

    /// A hit must be loaded again.
    pub(super) fn reload(&mut self, phase: Phase) {
        self.of(phase).0.reloads += 1;
    }

    /// A prefetch was evicted before it began.
    pub(super) fn cancelled(&mut self) {
        self.counters.cancelled += 1;
    }

    pub(super) fn merge(&mut self, other: &LayerMeter) {
        self.counters.merge(&other.counters);
        self.prefetch_load.merge(&other.prefetch_load);
        for (ours, theirs) in [(&mut self.prefill, &other.prefill), (&mut self.decode, &other.decode)] {
            ours.load.merge(&theirs.load);
            ours.stall.merge(&theirs.stall);
        }
    }

    pub(super) fn report(&self) -> LayerReport {
        let phase = |counters: &PhaseCounters, times: &PhaseTimes| PhaseReport {
            counters: *counters,
            hit_rate: counters.counts.hit_rate(),
            load: times.load.latency(),
            stall: times.stall.latency(),
        };
        LayerReport {
            prefill: phase(&self.counters.prefill, &self.prefill),
            decode: phase(&self.counters.decode, &self.decode),
            prefetch: self.counters.prefetch,
            prefetch_load: self.prefetch_load.latency(),
            cancelled: self.counters.cancelled,
            read_ahead: ReadAheadCounters::default(),
            host: None,
        }
    }
}
