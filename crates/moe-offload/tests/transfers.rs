//! Copies beside compute: who waits for whom, and what failures do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use common::fated::{Expects, Fate, Fated, forward};
use common::{SHAPE, resident};
use expert_cache::{Oversize, PolicyKind};
use moe_offload::{
    Activity, ExpertBank, ExpertShape, HostCache, OffloadError, OffloadOptions, OffloadedExperts, Routes,
    TimelineEvent, Transfers,
};
use moe_trace::{ExpertId, LayerId, Phase};

fn bank(store: &Arc<Fated>, options: OffloadOptions<'_>) -> OffloadedExperts {
    OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap()
}

#[test]
fn a_demand_waits_for_no_prefetch_but_its_own() {
    let store = Fated::new(SHAPE);
    store.set(1, 3, Some(Fate::Held));
    let options = OffloadOptions::slots(4).transfers(Transfers::threads(1));
    let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3), (1, 5), (1, 6)])), 3));
    let all = resident(&*store.store);
    // The only thread that prefetches hangs in expert 3 of layer 1; 5 and 6 are queued behind it.
    forward(&bank, 0, &[0, 1]).unwrap();
    store.wait_until_begun(1, 3);
    // Demands go on, of that layer too, and one of an expert that is queued.
    assert_eq!(forward(&bank, 2, &[2, 3]).unwrap(), forward(&all, 2, &[2, 3]).unwrap());
    assert_eq!(forward(&bank, 1, &[5, 7]).unwrap(), forward(&all, 1, &[5, 7]).unwrap());
    assert!(!store.has_begun(1, 6));
    // One that is on its way is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| forward(&bank, 1, &[3, 5]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        store.set(1, 3, None);
        assert_eq!(waiting.join().unwrap(), forward(&all, 1, &[3, 5]).unwrap());
    });
    store.wait_until_begun(1, 6);
    let layer = bank.counters().unwrap()[1];
    assert_eq!((layer.prefetch.counts.issued, layer.prefetch.counts.late), (3, 2));
    assert!(layer.decode.stall_seconds > 0.0);
}

#[test]
fn a_prefetch_in_vain_is_called_off_before_it_began() {
    let store = Fated::new(SHAPE);
    store.set(1, 3, Some(Fate::Held));
    let options = OffloadOptions::slots(2).transfers(Transfers::threads(1));
    let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3), (1, 5)])), 2));
    forward(&bank, 0, &[0, 1]).unwrap();
    store.wait_until_begun(1, 3);
    // Both slots of the layer are wanted for others: 5 is dropped, 3 must end before its slot is written again.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| forward(&bank, 1, &[0, 1]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        store.set(1, 3, None);
        assert_eq!(waiting.join().unwrap(), forward(&resident(&*store.store), 1, &[0, 1]).unwrap());
    });
    assert!(!store.has_begun(1, 5));
    let layer = bank.counters().unwrap()[1];
    assert_eq!((layer.cancelled, layer.prefetch.counts.useless, layer.prefetch.counts.issued), (1, 2, 2));
}

#[test]
fn failures_are_errors_of_their_call_and_rolled_back() {
    for threads in [0, 1, 3] {
        for (fate, message) in [
            (Fate::Fails, "layer 0, expert 4 cannot be loaded"),
            (Fate::Panics, "layer 0, expert 4 cannot be loaded: loading panicked: what a store"),
        ] {
            let store = Fated::new(SHAPE);
            let all = resident(&*store.store);
            let bank = bank(&store, OffloadOptions::slots(3).transfers(Transfers::threads(threads)));
            forward(&bank, 0, &[0, 1, 2]).unwrap();
            store.set(0, 4, Some(fate));
            store.set(0, 5, Some(Fate::Slow));
            for experts in [[1, 4, 5], [4, 5, 6], [0, 4, 7]] {
                assert_eq!(forward(&bank, 0, &experts).unwrap_err().to_string(), message);
            }
            // Nothing is left of the failed calls, and what they brought or displaced is right.
            for experts in [[0, 1, 2], [5, 6, 7], [1, 5, 6]] {
                assert_eq!(forward(&bank, 0, &experts).unwrap(), forward(&all, 0, &experts).unwrap());
            }
            store.set(0, 4, None);
            assert_eq!(forward(&bank, 0, &[4, 6, 7]).unwrap(), forward(&all, 0, &[4, 6, 7]).unwrap());
            let decode = bank.counters().unwrap()[0].decode;
            assert_eq!((decode.failed_calls, decode.failed_loads, decode.counts.requests), (3, 3, 5));
        }
    }
}

#[test]
fn a_bank_survives_what_fails_or_panics_while_it_computes() {
    for threads in [0, 2] {
        let store = Fated::new(SHAPE);
        let all = resident(&*store.store);
        let options = OffloadOptions::slots(2).oversize(Oversize::Bypass).transfers(Transfers::threads(threads));
        let bank = bank(&store, options);
        let narrow = Tensor::ones((1, SHAPE.hidden - 1), DType::F32, &Device::Cpu).unwrap();
        let weights = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let routes = Routes::new(vec![0, 1], weights, Phase::Decode).unwrap();
        assert!(matches!(bank.forward(LayerId(0), &narrow, &routes), Err(OffloadError::Tensor(_))));
        // Expert 6 does not fit, and is computed on the host.
        store.set(0, 6, Some(Fate::Panics));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forward(&bank, 0, &[2, 3, 6])));
        assert!(panicked.is_err());
        store.set(0, 6, None);
        for experts in [&[2, 3, 6][..], &[0, 1], &[3, 4]] {
            assert_eq!(forward(&bank, 0, experts).unwrap(), forward(&all, 0, experts).unwrap());
        }
        let decode = bank.counters().unwrap()[0].decode;
        assert_eq!((decode.failed_calls, decode.counts.requests, decode.counts.bypasses), (2, 3, 1));
    }
}

#[test]
fn a_failed_prefetch_fails_nobody() {
    for threads in [0, 1] {
        for fate in [Fate::Fails, Fate::Panics] {
            let store = Fated::new(SHAPE);
            let all = resident(&*store.store);
            let options = OffloadOptions::slots(4).transfers(Transfers::threads(threads));
            let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3)])), 3));
            store.set(1, 3, Some(fate));
            forward(&bank, 0, &[0, 1]).unwrap();
            while bank.counters().unwrap()[1].prefetch.failed_loads == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Wanted all the same, it is loaded again, and may fail again.
            assert!(forward(&bank, 1, &[3, 5]).is_err());
            store.set(1, 3, None);
            assert_eq!(forward(&bank, 1, &[3, 5]).unwrap(), forward(&all, 1, &[3, 5]).unwrap());
            let layer = bank.counters().unwrap()[1];
            let counts = layer.prefetch.counts;
            assert_eq!((counts.issued, counts.useless, counts.late, counts.useful), (1, 1, 0, 0));
            assert_eq!((layer.decode.reloads, layer.decode.counts.loads), (0, 2));
        }
    }
}

#[test]
fn a_failed_prefetch_gives_its_slot_back() {
    for threads in [0, 1] {
        for fate in [Fate::Fails, Fate::Panics] {
            let store = Fated::new(SHAPE);
            let all = resident(&*store.store);
            let options = OffloadOptions::slots(2).transfers(Transfers::threads(threads));
            let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3)])), 1));
            forward(&bank, 1, &[0, 1]).unwrap();
            store.set(1, 3, Some(fate));
            forward(&bank, 0, &[0, 1]).unwrap();
            while bank.counters().unwrap()[1].prefetch.failed_loads == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // 3 would be held for the next request, and 1 would leave for 5.
            for experts in [[5], [1]] {
                assert_eq!(forward(&bank, 1, &experts).unwrap(), forward(&all, 1, &experts).unwrap());
            }
            let layer = bank.counters().unwrap()[1];
            assert_eq!((layer.decode.counts.hits, layer.decode.counts.loads, layer.decode.reloads), (1, 3, 0));
            assert_eq!(layer.decode.counts.evictions, 0);
        }
    }
}

#[test]
fn a_failed_prefetch_that_a_call_waits_for_keeps_its_slot() {
    let store = Fated::new(SHAPE);
    let all = resident(&*store.store);
    let options = OffloadOptions::slots(2).transfers(Transfers::threads(1));
    let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3)])), 1));
    store.set(1, 3, Some(Fate::Held));
    forward(&bank, 0, &[0, 1]).unwrap();
    store.wait_until_begun(1, 3);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| forward(&bank, 1, &[3, 5]));
        std::thread::sleep(Duration::from_millis(20));
        store.set(1, 3, Some(Fate::FailsOnce));
        assert_eq!(waiting.join().unwrap().unwrap(), forward(&all, 1, &[3, 5]).unwrap());
    });
    let layer = bank.counters().unwrap()[1];
    assert_eq!((layer.prefetch.failed_loads, layer.prefetch.counts.late, layer.prefetch.counts.useless), (1, 1, 0));
    assert_eq!((layer.decode.counts.hits, layer.decode.failed_calls), (1, 0));
}

/// A call with a limit of time does not load by itself, so a thread must be woken for the second try.
#[test]
fn a_failed_prefetch_of_a_call_with_patience_is_loaded_again_by_a_thread() {
    let store = Fated::new(SHAPE);
    let all = resident(&*store.store);
    let options = OffloadOptions::slots(2).oversize(Oversize::Bypass).transfers(Transfers::threads(1));
    let options = options.load_timeout(Duration::from_secs(5));
    let bank = bank(&store, options.prefetch_with(Box::new(Expects(vec![(1, 3)])), 1));
    store.set(1, 3, Some(Fate::Held));
    store.set(1, 6, Some(Fate::Held));
    forward(&bank, 0, &[0, 1]).unwrap();
    store.wait_until_begun(1, 3);
    std::thread::scope(|scope| {
        // Expert 6 does not fit; the call hangs where it computes it on the host, while the prefetch fails.
        let waiting = scope.spawn(|| forward(&bank, 1, &[3, 5, 6]));
        store.wait_until_begun(1, 6);
        store.set(1, 3, Some(Fate::FailsOnce));
        while bank.counters().unwrap()[1].prefetch.failed_loads == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The threads have nothing to do, and go to sleep.
        std::thread::sleep(Duration::from_millis(50));
        store.set(1, 6, None);
        assert_eq!(waiting.join().unwrap().unwrap(), forward(&all, 1, &[3, 5, 6]).unwrap());
    });
    assert_eq!(bank.counters().unwrap()[1].decode.failed_calls, 0);
}

#[test]
fn a_slow_load_fails_its_call_and_ends_in_peace() {
    let store = Fated::new(SHAPE);
    let all = resident(&*store.store);
    let options = OffloadOptions::slots(2).transfers(Transfers::threads(2)).load_timeout(Duration::from_millis(50));
    let bank = bank(&store, options);
    forward(&bank, 0, &[0, 1]).unwrap();
    store.set(0, 4, Some(Fate::Held));
    let error = forward(&bank, 0, &[0, 4]).unwrap_err();
    assert!(matches!(error, OffloadError::SlowLoad { layer: LayerId(0), expert: ExpertId(4), .. }), "{error}");
    // The other slot serves on, and other layers do.
    assert_eq!(forward(&bank, 0, &[0]).unwrap(), forward(&all, 0, &[0]).unwrap());
    assert_eq!(forward(&bank, 1, &[2, 3]).unwrap(), forward(&all, 1, &[2, 3]).unwrap());
    assert!(forward(&bank, 0, &[5, 6]).is_err());
    store.set(0, 4, None);
    for experts in [[5, 6], [4, 0], [1, 7]] {
        while forward(&bank, 0, &experts).is_err() {}
        assert_eq!(forward(&bank, 0, &experts).unwrap(), forward(&all, 0, &experts).unwrap());
    }
}

/// Whether two activities ran at the same time.
fn overlap(one: &TimelineEvent, other: &TimelineEvent) -> bool {
    one.lane != other.lane
        && one.start_nanoseconds < other.end_nanoseconds
        && other.start_nanoseconds < one.end_nanoseconds
}

#[test]
fn the_timeline_shows_copies_under_compute() {
    let shape = ExpertShape { layers: 2, experts: 6, hidden: 256, intermediate: 512 };
    let store = Fated::new(shape);
    (0..6).for_each(|expert| store.set(0, expert, Some(Fate::Slow)));
    let run = |threads, oversize| {
        let options = OffloadOptions::slots(3).transfers(Transfers::threads(threads)).oversize(oversize);
        let bank = bank(&store, options.record_timeline(1000));
        let tokens = 128;
        let hidden = Tensor::from_vec(common::noise(1, tokens * 256), (tokens, 256), &Device::Cpu).unwrap();
        // A prompt that wants more experts than there are slots, again and again.
        let experts: Vec<u16> = (0..6).cycle().take(tokens).collect();
        let weights = Tensor::ones((tokens, 1), DType::F32, &Device::Cpu).unwrap();
        let routes = Routes::new(experts, weights, Phase::Prefill).unwrap();
        for _ in 0..5 {
            bank.forward(LayerId(0), &hidden, &routes).unwrap();
        }
        let timeline = bank.timeline().unwrap();
        let mut json = Vec::new();
        timeline.write_chrome_trace(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let written = json["traceEvents"].as_array().unwrap();
        assert_eq!(written.len(), timeline.events().len() + timeline.lanes().len());
        assert!(written.iter().all(|event| event["ph"] == "M" || event["dur"].as_f64().unwrap() >= 0.0));
        assert_eq!(timeline.dropped(), 0);
        timeline.events()
    };
    let copies_under_compute = |events: &[TimelineEvent]| {
        let of = |activity| events.iter().filter(move |event| event.activity == activity);
        let copies = of(Activity::Load).filter(|load| {
            let mut computes = of(Activity::Compute).chain(of(Activity::HostCompute));
            computes.any(|compute| overlap(load, compute))
        });
        copies.count()
    };
    // Of 30 loads in waves most begin while an expert before them is computed.
    let events = run(2, Oversize::Waves);
    assert!(copies_under_compute(&events) >= 5, "{events:?}");
    assert!(copies_under_compute(&run(2, Oversize::Bypass)) >= 1);
    assert_eq!(copies_under_compute(&run(0, Oversize::Waves)), 0);
}

#[test]
fn a_prompt_whose_load_fails_asks_the_disk_for_nothing_more() {
    let shape = ExpertShape { layers: 1, experts: 8, hidden: 256, intermediate: 512 };
    let store = Fated::new(shape);
    (0..8).for_each(|expert| store.set(0, expert, Some(Fate::Fails)));
    let bank = bank(&store, OffloadOptions::slots(8));
    let tokens = 128;
    let hidden = Tensor::from_vec(common::noise(1, tokens * 256), (tokens, 256), &Device::Cpu).unwrap();
    let weights = Tensor::ones((tokens, 1), DType::F32, &Device::Cpu).unwrap();
    let prompt = || Routes::new((0..8).cycle().take(tokens).collect(), weights.clone(), Phase::Prefill).unwrap();
    assert!(bank.forward(LayerId(0), &hidden, &prompt()).is_err());
    assert_eq!((0..8).filter(|&expert| store.has_begun(0, expert)).count(), 1);
    (0..8).for_each(|expert| store.set(0, expert, None));
    bank.forward(LayerId(0), &hidden, &prompt()).unwrap();
    assert_eq!((0..8).filter(|&expert| store.has_begun(0, expert)).count(), 8);
}

#[test]
fn a_timeline_is_bounded() {
    let store = Fated::new(SHAPE);
    let bank = bank(&store, OffloadOptions::slots(2).record_timeline(3));
    assert!(forward(&bank, 0, &[0, 1]).is_ok() && forward(&bank, 0, &[2, 3]).is_ok());
    let timeline = bank.timeline().unwrap();
    assert_eq!((timeline.events().len(), timeline.dropped()), (3, 5));
}

/// Writes down the names of spans and events.
#[derive(Debug, Default)]
struct Names(Mutex<Vec<String>>);

impl tracing::Subscriber for Names {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("moe_offload")
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.0.lock().unwrap().push(span.metadata().name().to_owned());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The message of an event.
#[derive(Default)]
struct Message(String);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[test]
fn what_happens_is_told_to_tracing() {
    let store = Fated::new(SHAPE);
    store.set(1, 3, Some(Fate::Fails));
    let names = Arc::new(Names::default());
    tracing::subscriber::with_default(names.clone(), || {
        let options = OffloadOptions::slots(2).prefetch_with(Box::new(Expects(vec![(1, 3)])), 1);
        let bank = bank(&store, options);
        forward(&bank, 0, &[0, 1]).unwrap();
        forward(&bank, 1, &[3, 5]).unwrap_err();
    });
    // Two loads, each computed when it has come; the prefetch fails, and so does the call that wants it.
    let expected = ["load", "compute", "load", "compute", "load", "prefetch failed", "load", "rollback"];
    assert_eq!(std::mem::take(&mut *names.0.lock().unwrap()), expected);
    // Below the slots, only what does not come from host memory is a load.
    let host = HostCache::new(store, u64::MAX, PolicyKind::Lru).unwrap();
    let bank = OffloadedExperts::new(Arc::new(host), &Device::Cpu, OffloadOptions::slots(1)).unwrap();
    tracing::subscriber::with_default(names.clone(), || {
        [4, 5, 4].iter().for_each(|&expert| drop(forward(&bank, 0, &[expert]).unwrap()));
    });
    let expected = ["load", "host load", "compute", "load", "host load", "compute", "load", "compute"];
    assert_eq!(*names.0.lock().unwrap(), expected);
}
