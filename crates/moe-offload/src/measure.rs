//! Measures what the machine does with the experts of a model.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use expert_cache::{HardwareProfile, Overlap, Processor, SlotId, Transfer};
use moe_trace::{ExpertId, LayerId};
use rustix::fs::{Advice, fadvise};

use crate::slots::SlotTensors;
use crate::{ExpertShape, ExpertStore, ExpertWeights, MappedStore, OffloadError, Result};

/// Experts that are timed, at most.
const EXPERTS: usize = 256;
/// Times that each is timed.
const ROUNDS: usize = 3;
/// Tokens of the larger batch.
const BATCH: usize = 64;
/// Differences below a nanosecond count as one.
const RESOLUTION_SECONDS: f64 = 1e-9;
/// Sizes of an expert that costs nothing but its call.
const TINY: ExpertShape = ExpertShape { layers: 1, experts: 1, hidden: 8, intermediate: 8 };

/// Measures loads from `store` into slots of `device`, and the compute of experts on `device` and on the host.
///
/// Experts of the store are used one after the other, so that caches are as cold as in use; medians are taken. The disk
/// counts as fast as reading the store; [`measure_disk`] measures a checkpoint on disk. The runtime does not run copies
/// beside compute, and so says the profile.
///
/// # Errors
/// Experts that cannot be fetched; a device that has no room for one slot.
pub fn measure(name: &str, store: &dyn ExpertStore, device: &Device) -> Result<HardwareProfile> {
    let shape = store.shape();
    shape.check()?;
    let slots = SlotTensors::new(1, shape, store.dtype(), device)?;
    let tiny_slots = SlotTensors::new(1, TINY, store.dtype(), device)?;
    let tiny = tiny_slots.get(SlotId(0)).clone();
    let experts: Vec<(LayerId, ExpertId)> = expert_ids(shape).take(EXPERTS).collect();

    let fetch = median(&experts, |&(layer, expert)| store.fetch(layer, expert).map(drop))?;
    let weights = experts.iter().map(|&(layer, expert)| store.fetch(layer, expert)).collect::<Result<Vec<_>>>()?;
    let load = median(&weights, |weights| {
        slots.load(SlotId(0), weights)?;
        Ok(device.synchronize()?)
    })?;
    let tiny_host = SlotTensors::new(1, TINY, store.dtype(), &Device::Cpu)?.get(SlotId(0)).clone();
    let latency = median(&vec![(); weights.len()], |()| {
        tiny_slots.load(SlotId(0), &tiny_host)?;
        Ok(device.synchronize()?)
    })?;

    let bytes = shape.expert_bytes(store.dtype()) as f64;
    let link = Transfer { latency_seconds: latency, bytes_per_second: rate(bytes, load - latency) };
    let disk = Transfer { latency_seconds: 0.0, bytes_per_second: rate(bytes, fetch) };
    let on_device = weights.iter().map(|weights| weights.to_device(device)).collect::<Result<Vec<_>>>()?;
    Ok(HardwareProfile {
        name: name.to_owned(),
        link,
        disk,
        device: processor(&on_device, &tiny, shape, store.dtype(), device)?,
        host: processor(&weights, &tiny_host, shape, store.dtype(), &Device::Cpu)?,
        overlap: Overlap::None,
    })
}

/// Measures reading experts from the checkpoint `files` after the operating system was asked to forget them, one expert
/// after the other in the order of execution.
///
/// Pages that another open store has mapped and touched stay in memory, and read faster; measure before opening one.
///
/// # Errors
/// As [`MappedStore::open`], and [`OffloadError::Io`] if the operating system refuses.
pub fn measure_disk(
    files: &[PathBuf],
    shape: ExpertShape,
    dtype: DType,
    names: impl Fn(LayerId, ExpertId) -> [String; 3],
) -> Result<Transfer> {
    for path in files {
        let io = |source| OffloadError::Io { path: path.clone(), source };
        let file = File::open(path).map_err(io)?;
        // Pages that were written and not yet synced cannot be dropped.
        file.sync_all().map_err(io)?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| io(error.into()))?;
    }
    let store = MappedStore::open(files, shape, dtype, names)?;
    let mut bytes = 0;
    let started = Instant::now();
    for (layer, expert) in expert_ids(shape).take(EXPERTS) {
        store.fetch(layer, expert)?;
        bytes += shape.expert_bytes(dtype);
    }
    Ok(Transfer { latency_seconds: 0.0, bytes_per_second: rate(bytes as f64, started.elapsed().as_secs_f64()) })
}

fn rate(amount: f64, seconds: f64) -> f64 {
    amount / seconds.max(RESOLUTION_SECONDS)
}

fn expert_ids(shape: ExpertShape) -> impl Iterator<Item = (LayerId, ExpertId)> {
    let experts = move |layer| (0..).take(shape.experts).map(move |expert| (layer, ExpertId(expert)));
    (0..).take(shape.layers).map(LayerId).flat_map(experts)
}

fn processor(
    experts: &[ExpertWeights],
    tiny: &ExpertWeights,
    shape: ExpertShape,
    dtype: DType,
    device: &Device,
) -> Result<Processor> {
    let seconds = |experts: &[ExpertWeights], tokens: usize, hidden: usize| {
        let tokens = Tensor::ones((tokens, hidden), dtype, device)?;
        median(experts, |expert| {
            expert.forward(&tokens)?;
            Ok(device.synchronize()?)
        })
    };
    let call_seconds = seconds(&vec![tiny.clone(); experts.len()], 1, TINY.hidden)?;
    let one = seconds(experts, 1, shape.hidden)?;
    let batch = seconds(experts, BATCH, shape.hidden)?;
    let each = (batch - one) / (BATCH - 1) as f64;
    Ok(Processor {
        call_seconds,
        bytes_per_second: rate(shape.expert_bytes(dtype) as f64, one - call_seconds - each),
        operations_per_second: rate((6 * shape.hidden * shape.intermediate) as f64, each),
    })
}

/// Median seconds of `run` over all items, each a few times; the items take turns, as experts do in use.
fn median<T>(items: &[T], run: impl Fn(&T) -> Result<()>) -> Result<f64> {
    let mut seconds = Vec::with_capacity(items.len() * ROUNDS);
    for item in std::iter::repeat_n(items, ROUNDS).flatten() {
        let started = Instant::now();
        run(item)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_unstable_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
