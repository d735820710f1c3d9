//! Experts that a bank reads from disk before they are wanted: found in host memory, and nothing else changes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use common::fated::{Expects, Fate, Fated, forward};
use common::{SHAPE, host_store, resident, serve, trace};
use expert_cache::{PolicyKind, PrefetcherKind, Serving};
use moe_offload::{
    ExpertStore, FileReads, HostCache, HostCounters, LayerReport, MappedStore, OffloadError, OffloadOptions,
    OffloadedExperts, ReadAheadCounters, Transfers, write_gguf,
};

const EXPERT: u64 = 3 * 8 * 4 * 4;

fn bank(store: &Arc<HostCache>, options: OffloadOptions<'_>) -> OffloadedExperts {
    OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap()
}

fn everything(below: &Arc<Fated>) -> Arc<HostCache> {
    Arc::new(HostCache::new(below.clone(), u64::MAX, PolicyKind::Lru).unwrap())
}

/// Waits until the cache of a layer has counted something.
fn wait_until(cache: &HostCache, layer: usize, seen: impl Fn(&HostCounters) -> bool) {
    while !seen(&cache.counters()[layer]) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn experts_ranked_behind_those_of_slots_are_found_in_host_memory() {
    for for_slots in [0, 1] {
        let below = Fated::new(SHAPE);
        let cache = everything(&below);
        let expects = Expects(vec![(1, 3), (1, 5), (1, 6), (1, 7), (9, 0)]);
        let options = OffloadOptions::slots(2).prefetch_with(Box::new(expects), for_slots);
        let bank = bank(&cache, options.read_ahead(1, 3 - for_slots));
        forward(&bank, 0, &[0, 1]).unwrap();
        let ahead = 3 - for_slots as u64;
        wait_until(&cache, 1, |layer| layer.ahead == ahead);
        assert!(!below.has_begun(1, 7));
        let loads = cache.counters()[1].loads;
        assert_eq!(loads, 3);
        assert_eq!(forward(&bank, 1, &[5, 6]).unwrap(), forward(&resident(&*below.store), 1, &[5, 6]).unwrap());
        let report = bank.report().unwrap();
        let layer = report.layers[1];
        let host = layer.host.unwrap();
        // From the store below came only what was read ahead, and what a slot was given to.
        assert_eq!((host.counters.hits, host.counters.loads, host.load.samples), (2, 3, 3));
        assert_eq!(host.counters.hit_rate(), 2.0 / (2 + for_slots) as f64);
        // No slot has seen it.
        assert_eq!((layer.decode.counters.counts.hits, layer.decode.counters.counts.loads), (0, 2));
        assert_eq!(layer.prefetch.counts.issued, for_slots as u64);
        assert_eq!(layer.read_ahead, ReadAheadCounters { issued: ahead, dropped: 0 });
        assert_eq!(report.total.read_ahead, layer.read_ahead);
    }
}

#[test]
fn what_is_in_a_slot_is_not_read_ahead() {
    let cache = everything(&Fated::new(SHAPE));
    let options = OffloadOptions::slots(2).prefetch_with(Box::new(Expects(vec![(1, 3), (1, 5)])), 0);
    let bank = bank(&cache, options.read_ahead(1, 2));
    forward(&bank, 1, &[3, 5]).unwrap();
    forward(&bank, 0, &[0, 1]).unwrap();
    assert_eq!(bank.report().unwrap().total.read_ahead, ReadAheadCounters::default());
}

#[test]
fn slots_and_outputs_are_those_without_it() {
    let trace = trace(2, 3, 40);
    let expected = serve(&resident(&*host_store(SHAPE)), &trace, Serving::default()).unwrap();
    let slots = |layer: &LayerReport| {
        let prefetches = layer.prefetch.counts;
        let found = prefetches.useful + prefetches.late;
        let counts = [layer.prefill, layer.decode].map(|phase| phase.counters.counts);
        (counts, prefetches.issued, prefetches.useless, prefetches.polluting, found)
    };
    let directory = tempfile::tempdir().unwrap();
    let path = [directory.path().join("experts.gguf")];
    write_gguf(&*host_store(SHAPE), &path[0], &mut |_, _| {}).unwrap();
    let mapped = |reads| Arc::new(MappedStore::open_gguf(&path).unwrap().with_reads(reads).unwrap());
    let stores: [&dyn Fn() -> Arc<dyn ExpertStore>; 3] = [
        &|| Arc::new(HostCache::new(host_store(SHAPE), 5 * EXPERT, PolicyKind::Lru).unwrap()),
        &|| mapped(FileReads::Cached),
        // Nowhere to read ahead to.
        &|| mapped(FileReads::Direct),
    ];
    for (store, threads) in stores.iter().flat_map(|store| [0, 2].map(|threads| (store, threads))) {
        let run = |ahead: Option<(usize, usize)>| {
            let options = OffloadOptions::slots(2).transfers(Transfers::threads(threads));
            let options = options.prefetch(PrefetcherKind::Markov, 1, 1);
            let options = match ahead {
                Some((threads, per_request)) => options.read_ahead(threads, per_request),
                None => options,
            };
            let bank = OffloadedExperts::new(store(), &Device::Cpu, options).unwrap();
            assert_eq!(serve(&bank, &trace, Serving::default()).unwrap(), expected);
            let report = bank.report().unwrap();
            (report.layers.iter().map(slots).collect::<Vec<_>>(), report.total.read_ahead.issued)
        };
        let (without, nothing) = run(None);
        assert_eq!(nothing, 0);
        for ahead in [(1, 1), (2, 3)] {
            let (with, issued) = run(Some(ahead));
            assert_eq!(with, without, "{threads} threads, {ahead:?}");
            assert!(issued > 0);
        }
    }
}

#[test]
fn a_demand_waits_for_the_read_of_its_own_expert_only_and_wishes_wait_for_nobody() {
    let below = Fated::new(SHAPE);
    let (cache, all) = (everything(&below), resident(&*below.store));
    below.set(1, 5, Some(Fate::Held));
    let options = OffloadOptions::slots(2).prefetch_with(Box::new(Expects(vec![(1, 5), (1, 6)])), 0);
    let bank = bank(&cache, options.read_ahead(1, 2));
    forward(&bank, 0, &[0, 1]).unwrap();
    below.wait_until_begun(1, 5);
    // Behind 5, which hangs, 6 is queued; of the next two wishes there is room for one.
    forward(&bank, 0, &[2, 3]).unwrap();
    let wished = bank.report().unwrap().layers[1].read_ahead;
    assert_eq!(wished, ReadAheadCounters { issued: 4, dropped: 1 });
    assert_eq!(forward(&bank, 1, &[6, 7]).unwrap(), forward(&all, 1, &[6, 7]).unwrap());
    assert_eq!(forward(&bank, 2, &[5, 6]).unwrap(), forward(&all, 2, &[5, 6]).unwrap());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| forward(&bank, 1, &[4, 5]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        below.set(1, 5, None);
        assert_eq!(waiting.join().unwrap(), forward(&all, 1, &[4, 5]).unwrap());
    });
    // Each of 4, 5, 6 and 7 was read once.
    let host = cache.counters()[1];
    assert_eq!((host.loads, host.ahead, host.hits, host.failed_loads), (4, 1, 1, 0));
}

#[test]
fn what_cannot_be_read_ahead_fails_nobody() {
    for fate in [Fate::Fails, Fate::Panics] {
        let below = Fated::new(SHAPE);
        let (cache, all) = (everything(&below), resident(&*below.store));
        below.set(1, 5, Some(fate));
        let options = OffloadOptions::slots(2).prefetch_with(Box::new(Expects(vec![(1, 5)])), 0);
        let bank = bank(&cache, options.read_ahead(1, 1));
        assert_eq!(forward(&bank, 0, &[0, 1]).unwrap(), forward(&all, 0, &[0, 1]).unwrap());
        wait_until(&cache, 1, |layer| layer.failed_loads == 1);
        assert_eq!(cache.reports().layers[1].load.samples, 1);
        below.set(1, 5, None);
        assert_eq!(forward(&bank, 1, &[5, 6]).unwrap(), forward(&all, 1, &[5, 6]).unwrap());
        assert_eq!(bank.report().unwrap().layers[1].decode.counters.failed_loads, 0);
        // The thread goes on.
        below.set(1, 5, None);
        forward(&bank, 0, &[2, 3]).unwrap();
        assert_eq!(bank.report().unwrap().total.read_ahead.dropped, 0);
    }
}

#[test]
fn its_threads_end_with_the_bank() {
    let cache = everything(&Fated::new(SHAPE));
    let options = OffloadOptions::slots(2).transfers(Transfers::threads(1));
    let options = options.prefetch_with(Box::new(Expects(vec![(1, 3), (1, 5)])), 1);
    let bank = bank(&cache, options.read_ahead(3, 4));
    forward(&bank, 0, &[0, 1]).unwrap();
    drop(bank);
    // Nobody but this test holds the store.
    assert_eq!(Arc::strong_count(&cache), 1);
}

#[test]
fn it_needs_predictions_threads_and_experts() {
    let refusal =
        |options: OffloadOptions<'_>| OffloadedExperts::new(host_store(SHAPE), &Device::Cpu, options).unwrap_err();
    let nobody = |error| matches!(error, OffloadError::NothingPredicts { per_request: 4 });
    assert!(nobody(refusal(OffloadOptions::slots(2).read_ahead(1, 4))));
    assert!(nobody(refusal(OffloadOptions::slots(2).prefetch(PrefetcherKind::None, 1, 2).read_ahead(1, 4))));
    for (threads, per_request, message) in [
        (0, 4, "read-ahead threads is 0, allowed are 1..=65535"),
        (1, 0, "experts read ahead a request is 0, allowed are 1..=65535"),
        (1, 65_536, "experts read ahead a request is 65536, allowed are 1..=65535"),
    ] {
        let options = OffloadOptions::slots(2).prefetch(PrefetcherKind::Markov, 1, 2);
        assert_eq!(refusal(options.read_ahead(threads, per_request)).to_string(), message);
    }
}
