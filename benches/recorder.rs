//! What share of a decode step does a recorder take?
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench -p moe-benches --bench recorder
//! ```
//!
//! The model of this repository decodes the same tokens again and again: without an observer, with a recorder into memory,
//! and with a recorder whose sequences a writer thread writes as shards. The three take turns at every single step, so that
//! whatever slows the machine down slows all of them, and of every step the shortest time counts. `alone` replays the
//! events of the same steps into the recorder, without the model: where the difference of two steps is smaller than their
//! noise, that is the figure.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device};
use moe_model::{Checkpoint, Chunk, GenerateOptions, KvCache, LogitsAt, Olmoe, Sampling, generate};
use moe_trace::{
    BackPressure, IgnoreRouting, MemoryTrace, Phase, QueuedSink, Recorder, RouterObserver, RoutingEvent, RoutingSource,
    ShardedWriter,
};

/// Decode steps of a sequence; every contender decodes it [`ROUNDS`] times.
const STEPS: usize = 128;
const ROUNDS: usize = 60;
/// Sequences replayed without the model.
const REPLAYS: usize = 2_000;

/// One way to decode, and the shortest time that each step took.
struct Contender<'a> {
    name: &'static str,
    observer: &'a mut dyn RouterObserver,
    cache: KvCache,
    shortest: Vec<Duration>,
}

impl Contender<'_> {
    /// Runs one token through the model.
    fn step(&mut self, model: &Olmoe, tokens: &[u32], step: usize, phase: Phase) -> Result<()> {
        let chunk = Chunk { sequence: 0, tokens, cache: &mut self.cache, phase };
        let start = Instant::now();
        black_box(model.forward(&mut [chunk], LogitsAt::Last, self.observer)?);
        if step + 1 == STEPS {
            self.observer.sequence_end(0);
        }
        if phase == Phase::Decode {
            self.shortest[step] = self.shortest[step].min(start.elapsed());
        }
        Ok(())
    }

    fn seconds_a_step(&self) -> f64 {
        self.shortest.iter().map(Duration::as_secs_f64).sum::<f64>() / f64::from(u32::try_from(STEPS).unwrap_or(1))
    }
}

fn main() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default");
    let checkpoint = Checkpoint::open(folder)?;
    let (dtype, device) = (DType::F32, Device::Cpu);
    let model = checkpoint.load_resident(dtype, &device)?;
    let geometry = checkpoint.config().geometry();
    let prompt = checkpoint.tokenizer()?.encode("DESCRIPTION\nThe program reads the file line by line and ")?;

    let mut recorded = Recorder::new(MemoryTrace::new(geometry.clone()));
    let options = GenerateOptions {
        max_new_tokens: STEPS + 1,
        sampler: Sampling::Greedy,
        seeds: Vec::new(),
        stop_tokens: Vec::new(),
    };
    let generated = generate(&model, std::slice::from_ref(&prompt), &options, &mut recorded, |_, _| ())?;
    let tokens = &generated.sequences[0].tokens[..STEPS];
    let trace = recorded.finish()?;

    let folder = tempfile::tempdir()?;
    let writer = ShardedWriter::create(folder.path().join("steps"), geometry.clone(), &[], None, 1 << 16)?;
    let mut ignored = IgnoreRouting;
    let mut memory = Recorder::new(MemoryTrace::new(geometry.clone()));
    let mut shards = Recorder::new(QueuedSink::new(writer, 64, BackPressure::Block));
    let contender = |name, observer| Contender {
        name,
        observer,
        cache: KvCache::new(checkpoint.config()),
        shortest: vec![Duration::MAX; STEPS],
    };
    let mut contenders = [
        contender("no observer", &mut ignored),
        contender("into memory", &mut memory),
        contender("queue, writer thread, shards", &mut shards),
    ];
    for round in 0..ROUNDS {
        for contender in &mut contenders {
            contender.cache = KvCache::new(checkpoint.config());
            contender.step(&model, &prompt, 0, Phase::Prefill)?;
        }
        for (step, token) in tokens.iter().enumerate() {
            for turn in 0..contenders.len() {
                let index = (round + step + turn) % contenders.len();
                contenders[index].step(&model, std::slice::from_ref(token), step, Phase::Decode)?;
            }
        }
    }
    let plain = contenders[0].seconds_a_step();
    println!("a decode step of {} layers x top-{}: {:.1} us", geometry.layers(), geometry.top_k(), plain * 1e6);
    for contender in &contenders[1..] {
        println!("{}: {:+.3} % of a step", contender.name, (contender.seconds_a_step() / plain - 1.0) * 100.0);
    }
    drop(contenders);
    memory.finish()?;
    shards.finish()?.finish()?.0.finish()?;

    let writer = ShardedWriter::create(folder.path().join("replay"), geometry.clone(), &[], None, 1 << 16)?;
    let alone = [
        ("into memory", replay(Recorder::new(MemoryTrace::new(geometry)), &trace)?),
        (
            "queue, writer thread, shards",
            replay(Recorder::new(QueuedSink::new(writer, 64, BackPressure::Block)), &trace)?,
        ),
    ];
    for (name, seconds) in alone {
        println!("{name}, alone: {:.0} ns, {:.4} % of a step", seconds * 1e9, seconds / plain * 100.0);
    }
    Ok(())
}

/// Seconds that the recorder takes for the events of one step; the shortest of many sequences, its end included.
fn replay<S: moe_trace::SequenceSink>(mut recorder: Recorder<S>, trace: &MemoryTrace) -> Result<f64> {
    let sequence = &trace.sequences()[0];
    let (layers, k) = (trace.geometry().layers(), trace.geometry().top_k());
    let weights = sequence.weights.as_deref().unwrap_or_default();
    let token_ids = sequence.token_ids.as_deref().unwrap_or_default();
    let mut shortest = Duration::MAX;
    for _ in 0..REPLAYS {
        let start = Instant::now();
        for (token, token_id) in token_ids.iter().enumerate() {
            for (layer, id) in trace.geometry().layer_ids().enumerate() {
                let row = (token * layers + layer) * k;
                recorder.routed(black_box(&RoutingEvent {
                    sequence: 0,
                    layer: id,
                    phase: Phase::Decode,
                    token_ids: std::slice::from_ref(token_id),
                    experts: &sequence.experts[row..row + k],
                    weights: &weights[row..row + k],
                    logits: None,
                }));
            }
        }
        recorder.sequence_end(0);
        shortest = shortest.min(start.elapsed());
    }
    recorder.finish()?;
    Ok(shortest.as_secs_f64() / f64::from(u32::try_from(token_ids.len())?))
}
