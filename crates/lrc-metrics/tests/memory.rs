//! Memory does not grow with the number of sequences, and a sequence allocates nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use allocation_counter::measure;
use lrc_metrics::{Accumulator, LoadBalance, MetricsOptions, Srp, TraceMetrics, accumulate};
use moe_trace::{Geometry, MemoryTrace, RoutingSource, Sequence, SequenceStream, Synthetic, SyntheticOptions};

const TOKENS: usize = 40;

/// The sequences of a trace over and over: as many as one likes in the memory of a few.
struct Repeated {
    trace: MemoryTrace,
    len: usize,
}

impl Repeated {
    fn new(len: usize) -> Repeated {
        let geometry = Geometry::decoder(2, 16, 4).unwrap();
        let dials = SyntheticOptions { sequences: 4, tokens: TOKENS, ..SyntheticOptions::default() };
        Repeated { trace: Synthetic::new(geometry, dials).collect().unwrap(), len }
    }
}

impl RoutingSource for Repeated {
    fn geometry(&self) -> &Geometry {
        RoutingSource::geometry(&self.trace)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn sequence(&self, index: usize) -> moe_trace::Result<Sequence<'_>> {
        self.trace.sequence(index % RoutingSource::len(&self.trace))
    }
}

#[test]
fn the_peak_of_a_long_trace_is_that_of_a_short_one() {
    // Allocations are counted by thread: the pool is this one.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
    let peak = |sequences| {
        let source = Repeated::new(sequences);
        let options = MetricsOptions { windows: vec![1, 4, 16], pool: true, ..MetricsOptions::default() };
        let empty = TraceMetrics::new(source.geometry(), &options).unwrap();
        let tokens = std::cell::Cell::new(0);
        let memory = measure(|| {
            let metrics = pool.install(|| accumulate(&source, &empty, &|_done| {}).unwrap());
            tokens.set(metrics.finish().unwrap().tokens);
        });
        assert_eq!(tokens.get(), (sequences * TOKENS) as u64);
        memory.bytes_max
    };
    peak(4); // What rayon allocates when it is first used.
    let (short, long) = (peak(500), peak(5_000));
    assert!(short > 0, "nothing was counted");
    assert_eq!(short, long);
}

/// After the first sequence of a length, no other sequence of it allocates.
#[test]
fn a_sequence_allocates_nothing() {
    fn allocations(mut accumulator: impl Accumulator) -> (u64, u64) {
        let source = Repeated::new(4);
        let sequences: Vec<Sequence<'_>> = (0..4).map(|index| source.sequence(index).unwrap()).collect();
        let first = measure(|| accumulator.update(&sequences[0]).unwrap());
        let later = measure(|| sequences.iter().for_each(|sequence| accumulator.update(sequence).unwrap()));
        (first.count_total, later.count_total)
    }
    let geometry = Repeated::new(0).geometry().clone();
    let options = MetricsOptions { windows: vec![1, 4, 16], pool: true, ..MetricsOptions::default() };
    for (first, later) in [
        allocations(Srp::new(&geometry, &[1, 4, 16]).unwrap()),
        allocations(LoadBalance::new(&geometry)),
        allocations(TraceMetrics::new(&geometry, &options).unwrap()),
    ] {
        assert!(first > 0, "nothing was counted");
        assert_eq!(later, 0);
    }
}
