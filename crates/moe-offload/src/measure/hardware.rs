//! Measures what the machine does with the experts of a model.

use std::fs::File;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use expert_cache::{HardwareProfile, Linear, Processor, SlotId, Transfer};
use moe_trace::{ExpertId, LayerId, Phase};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::bank::ExpertBank;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent};
use crate::memory::{FileReads, PAGE, os};
use crate::resident::ResidentExperts;
use crate::routes::Routes;
use crate::runtime::{OffloadOptions, OffloadedExperts, Transfers};
use crate::slots::new_slots;
use crate::store::{ExpertStore, MappedStore};
use crate::weights::WeightType;

/// Experts that are timed, at most.
const EXPERTS: usize = 256;
/// Their bytes, at most, but for one layer: several times what the processors' caches hold.
const BYTES: usize = 1 << 29;
/// Times that each is timed, at most; the best counts, since other work of the machine only ever adds to it.
const ROUNDS: usize = 20;
/// Times that each is timed, at least.
const FEWEST_ROUNDS: usize = 3;
/// Bytes that all rounds together load, more or less.
const ROUNDS_BYTES: usize = 1 << 33;
/// Layers whose banks are timed, at most.
const LAYERS: usize = 4;
/// Experts of a call of a bank, at most.
const WIDTH: usize = 4;
/// Tokens of the larger batch.
const BATCH: usize = 64;
/// Experts that are timed with it, at most: they are computed with for so long that memory hardly matters.
const BATCH_EXPERTS: usize = 8;
/// How long the disk is read.
const DISK_TIME: Duration = Duration::from_secs(1);
/// Differences below a nanosecond count as one.
const RESOLUTION_SECONDS: f64 = 1e-9;

/// Measures what `device` takes for experts and loads, and the host for experts, in the way that the banks use them.
///
/// A load costs what a call of [`OffloadedExperts`] with a miss takes longer than one with a hit; keeping the books of a
/// cache costs what a call with a hit takes longer than one of [`ResidentExperts`]. Experts of the store are used one
/// after the other, so that the processors' caches are as cold as in use; of each the best of some rounds counts, and of
/// all the median. The disk counts as fast as
/// fetching from the store; [`measure_disk`] measures a checkpoint on disk. Loads are timed one at a time and alone;
/// whether the runtime runs them beside compute depends on `transfers`, and so says the profile.
///
/// # Errors
/// Experts that cannot be fetched; a device that has no room for a quarter of the experts of four layers.
pub fn measure(
    name: &str,
    store: &Arc<dyn ExpertStore>,
    device: &Device,
    transfers: Transfers,
) -> Result<HardwareProfile> {
    store.check()?;
    let shape = store.shape();
    let sample = Sample::new(&**store);
    let calls = Calls::measure(store, device, sample)?;
    let experts: Vec<(LayerId, ExpertId)> = expert_ids(shape).take(sample.experts).collect();
    let fetch = sample.median(&experts, |&(layer, expert)| store.with_bytes(layer, expert, &mut |_| Ok(())))?;
    let weights = experts.iter().map(|&(layer, expert)| store.fetch(layer, expert)).collect::<Result<Vec<_>>>()?;
    let types = store.weight_types()[0];
    let tiny = ExpertWeights::zero(tiny_shape(types), types)?;
    let tiny_slots = new_slots(1, tiny_shape(types), types, device)?;
    let latency = sample.median(&vec![(); weights.len()], |()| {
        tiny.with_bytes(&mut |expert| tiny_slots.load(SlotId(0), expert))?;
        Ok(device.synchronize()?)
    })?;

    let bytes = shape.expert_bytes(types) as f64;
    let host = sample.processor(&weights, &tiny, shape, types, &Device::Cpu)?;
    let on_device = match device {
        Device::Cpu => host,
        _ => {
            let weights = weights.iter().map(|weights| weights.to_device(device)).collect::<Result<Vec<_>>>()?;
            sample.processor(&weights, &tiny.to_device(device)?, shape, types, device)?
        }
    };
    let load = match calls.miss - calls.hit {
        // What scatters in a fetch that takes most of the time would drown the copy.
        most if fetch > most / 2.0 => sample.copy(store, &experts, types, device)?,
        load => load - fetch,
    };
    let latency_seconds = latency.min(load / 2.0).max(0.0);
    Ok(HardwareProfile {
        name: name.to_owned(),
        link: Transfer { latency_seconds, bytes_per_second: rate(bytes, load - latency_seconds) },
        disk: Transfer { latency_seconds: 0.0, bytes_per_second: rate(bytes, fetch) },
        device: on_device,
        host,
        plan: Linear { call_seconds: (calls.hit - calls.resident).max(0.0) * calls.width as f64, seconds_each: 0.0 },
        overlap: transfers.overlap(),
    })
}

/// Seconds that a bank takes for one token, by expert that it wants.
struct Calls {
    resident: f64,
    hit: f64,
    miss: f64,
    /// Experts of a call.
    width: usize,
}

impl Calls {
    /// Times three banks of the same slots, each with all of its experts in turn.
    fn measure(store: &Arc<dyn ExpertStore>, device: &Device, sample: Sample) -> Result<Calls> {
        let store = Arc::new(FirstLayers { layers: sample.layers, store: Arc::clone(store) });
        let shape = store.shape();
        let capacity = shape.experts.div_ceil(4);
        let width = capacity.min(WIDTH);
        let offloaded = || OffloadedExperts::new(store.clone(), device, OffloadOptions::slots(capacity));
        let mut resident = Vec::new();
        for layer in layer_ids(shape.layers) {
            let expert = |expert| store.fetch(layer, expert)?.to_device(device);
            resident.push(expert_ids_of(capacity).map(expert).collect::<Result<_>>()?);
        }
        let (resident, hits, misses) = (ResidentExperts::new(resident), offloaded()?, offloaded()?);
        let activations = store.activations();
        let hidden = Tensor::ones((1, shape.hidden), activations, device)?;
        let weights = Tensor::ones((1, width), activations, device)?;
        let ids: Vec<u16> = expert_ids_of(shape.experts).map(|expert| expert.0).collect();
        let turn = |bank: &dyn ExpertBank, experts: usize, best: &mut Vec<f64>| -> Result<()> {
            let calls = ids[..experts]
                .chunks_exact(width)
                .flat_map(|experts| layer_ids(shape.layers).map(move |layer| (layer, experts)));
            for (number, (layer, experts)) in calls.enumerate() {
                let routes = Routes::new(experts.to_vec(), weights.clone(), Phase::Decode)?;
                let started = Instant::now();
                bank.forward(layer, &hidden, &routes)?;
                device.synchronize()?;
                let seconds = started.elapsed().as_secs_f64();
                match best.get_mut(number) {
                    Some(best) => *best = best.min(seconds),
                    None => best.push(seconds),
                }
            }
            Ok(())
        };
        turn(&hits, capacity, &mut Vec::new())?;
        turn(&misses, capacity, &mut Vec::new())?;
        let (mut resident_best, mut hit_best, mut miss_best) = (Vec::new(), Vec::new(), Vec::new());
        // Turns alternate, so that a machine that slows down does so for all three; each bank has two in a row, so that it
        // finds its weights in the processor's caches as the others do.
        for _ in 0..sample.rounds {
            for _ in 0..2 {
                turn(&resident, capacity, &mut resident_best)?;
            }
            for _ in 0..2 {
                turn(&hits, capacity, &mut hit_best)?;
            }
            // More experts than slots, in a cycle: never a hit.
            for _ in 0..2 {
                turn(&misses, shape.experts, &mut miss_best)?;
            }
        }
        let [resident, hit, miss] = [resident_best, hit_best, miss_best].map(|best| middle(best) / width as f64);
        Ok(Calls { resident, hit, miss, width })
    }
}

/// A store of fewer layers.
#[derive(Debug)]
struct FirstLayers {
    layers: usize,
    store: Arc<dyn ExpertStore>,
}

impl ExpertStore for FirstLayers {
    fn shape(&self) -> ExpertShape {
        ExpertShape { layers: self.layers, ..self.store.shape() }
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.store.weight_types()[..self.layers]
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        self.store.fetch(layer, expert)
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        self.store.lend(layer, expert, lend)
    }
}

/// Measures reading experts from the checkpoint `files` for a second, in an order that looks random, as loads want them;
/// `open` opens the files, and chooses how they are [read](FileReads). If that is through the page cache, the operating
/// system is asked to forget them first.
///
/// Pages that another open store has mapped and touched stay in memory, and read faster; measure before opening one.
///
/// # Errors
/// What `open` says, and [`OffloadError::Io`] if the operating system refuses; only Linux can be asked to forget files.
pub fn measure_disk(files: &[PathBuf], open: impl FnOnce() -> Result<MappedStore>) -> Result<Transfer> {
    let store = open()?;
    let mapped = store.reads() == FileReads::Cached;
    // Reads past the page cache find nothing there, and would be slower after a flush.
    for path in files.iter().filter(|_| mapped) {
        let io = |source| OffloadError::Io { path: path.clone(), source };
        let file = File::open(path).map_err(io)?;
        // Pages that were written and not yet synced cannot be dropped.
        file.sync_all().map_err(io)?;
        os::forget(&file, 0, None).map_err(io)?;
    }
    let mut experts: Vec<_> = expert_ids(store.shape()).collect();
    experts.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    let mut bytes = 0;
    let started = Instant::now();
    let mut all = experts.iter().zip(0usize..);
    while let Some((&(layer, expert), number)) = all.next()
        && (number < WIDTH || started.elapsed() < DISK_TIME)
    {
        (&store as &dyn ExpertStore).with_bytes(layer, expert, &mut |projections| {
            for projection in projections.each() {
                if mapped {
                    // Mapped bytes are read from disk when they are touched.
                    projection.iter().step_by(PAGE).for_each(|byte| _ = black_box(*byte));
                }
                bytes += projection.len();
            }
            Ok(())
        })?;
    }
    Ok(Transfer { latency_seconds: 0.0, bytes_per_second: rate(bytes as f64, started.elapsed().as_secs_f64()) })
}

/// Sizes of an expert that costs nothing but its call.
fn tiny_shape(types: ExpertTypes) -> ExpertShape {
    let width = types.each().map(WeightType::block_weights).into_iter().fold(8, usize::max);
    ExpertShape { layers: 1, experts: 1, hidden: width, intermediate: width }
}

fn rate(amount: f64, seconds: f64) -> f64 {
    amount / seconds.max(RESOLUTION_SECONDS)
}

fn expert_ids(shape: ExpertShape) -> impl Iterator<Item = (LayerId, ExpertId)> {
    let experts = move |layer| expert_ids_of(shape.experts).map(move |expert| (layer, expert));
    layer_ids(shape.layers).flat_map(experts)
}

fn expert_ids_of(experts: usize) -> impl Iterator<Item = ExpertId> {
    (0..).take(experts).map(ExpertId)
}

fn layer_ids(layers: usize) -> impl Iterator<Item = LayerId> {
    (0..).take(layers).map(LayerId)
}

/// How much is timed, so that large experts do not take forever.
#[derive(Clone, Copy, Debug)]
struct Sample {
    layers: usize,
    experts: usize,
    rounds: usize,
}

impl Sample {
    fn new(store: &dyn ExpertStore) -> Sample {
        let shape = store.shape();
        let expert = shape.expert_bytes(store.weight_types()[0]).max(1);
        let layer = shape.experts * expert;
        let layers = (BYTES / layer).clamp(1, LAYERS.min(shape.layers));
        Sample {
            layers,
            experts: (BYTES / expert).clamp(WIDTH, EXPERTS),
            rounds: (ROUNDS_BYTES / (layers * layer)).clamp(FEWEST_ROUNDS, ROUNDS),
        }
    }

    /// Seconds from bytes that were lent to a slot; none where the store reads into slots.
    fn copy(
        self,
        store: &Arc<dyn ExpertStore>,
        experts: &[(LayerId, ExpertId)],
        types: ExpertTypes,
        device: &Device,
    ) -> Result<f64> {
        if device.is_cpu() && store.loads_straight(experts[0].0)? {
            return Ok(0.0);
        }
        let slots = new_slots(1, store.shape(), types, device)?;
        let mut seconds = Vec::with_capacity(experts.len());
        for &(layer, expert) in experts {
            store.with_bytes(layer, expert, &mut |bytes| {
                let started = Instant::now();
                slots.load(SlotId(0), bytes)?;
                device.synchronize()?;
                seconds.push(started.elapsed().as_secs_f64());
                Ok(())
            })?;
        }
        Ok(middle(seconds))
    }

    fn processor(
        self,
        experts: &[ExpertWeights],
        tiny: &ExpertWeights,
        shape: ExpertShape,
        types: ExpertTypes,
        device: &Device,
    ) -> Result<Processor> {
        let seconds = |experts: &[ExpertWeights], tokens: usize, hidden: usize| {
            let tokens = Tensor::ones((tokens, hidden), types.activations(), device)?;
            self.median(experts, |expert| {
                expert.forward(&tokens)?;
                Ok(device.synchronize()?)
            })
        };
        let call_seconds = seconds(&vec![tiny.clone(); experts.len()], 1, tiny_shape(types).hidden)?;
        let one = seconds(experts, 1, shape.hidden)?;
        let few = &experts[..experts.len().min(BATCH_EXPERTS)];
        let each = (seconds(few, BATCH, shape.hidden)? - seconds(few, 1, shape.hidden)?) / (BATCH - 1) as f64;
        Ok(Processor {
            call_seconds,
            bytes_per_second: rate(shape.expert_bytes(types) as f64, one - call_seconds - each),
            operations_per_second: rate((6 * shape.hidden * shape.intermediate) as f64, each),
        })
    }

    /// Median over the items of the seconds of `run`, the best of some rounds; the items take turns, as experts do in use.
    fn median<T>(self, items: &[T], run: impl Fn(&T) -> Result<()>) -> Result<f64> {
        let mut best = vec![f64::INFINITY; items.len()];
        for _ in 0..self.rounds {
            for (item, best) in items.iter().zip(&mut best) {
                let started = Instant::now();
                run(item)?;
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
        Ok(middle(best))
    }
}

/// The median of some seconds, of which there is at least one.
fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
