//! Speed of loads into slots, beside plain copies of the same bytes.

mod plain;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use expert_cache::SlotId;
use moe_offload::{CpuSlots, ExpertShape, ExpertSlots, ExpertStore, RandomExperts, WeightType};
use moe_trace::{ExpertId, LayerId};
use moescope_cli::{DeviceName, host_experts, table, whole};

use self::plain::Plain;

/// Measure how fast experts are loaded from host memory into slots, beside plain copies of the same bytes.
///
/// Experts and slots are of the shape and type given; each round loads and copies every expert once, and the best round
/// counts. On a GPU first from pageable, then from page-locked memory.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope bench-copy --device cpu --type q4_0")]
pub(crate) struct Arguments {
    /// Device of the slots: cpu, cuda, or cuda:N with the number of a GPU.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Width of the tokens [default: as in gpt-oss-20b].
    #[arg(long, value_name = "N", default_value_t = 2880, value_parser = whole::<usize>(1..=1 << 20))]
    hidden: usize,

    /// Width inside an expert [default: as in gpt-oss-20b].
    #[arg(long, value_name = "N", default_value_t = 2880, value_parser = whole::<usize>(1..=1 << 20))]
    intermediate: usize,

    /// Type of the weights.
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    weights: WeightType,

    /// Experts in host memory.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<usize>(1..=65535))]
    experts: usize,

    /// Slots on the device.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole::<usize>(1..=65535))]
    slots: usize,

    /// Rounds.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = whole::<usize>(1..))]
    rounds: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let Arguments { hidden, intermediate, experts, weights, .. } = *arguments;
    let store = RandomExperts::new(ExpertShape { layers: 1, experts, hidden, intermediate }, weights, 0)?;
    let store = Arc::new(host_experts(&store)?);
    let slots = slots(arguments.slots, store.shape(), weights, &device)?;
    let dims = store.shape().projections();
    let mut plain = Plain::new(arguments.slots, dims.map(|(rows, columns)| weights.bytes(rows, columns)), &device)?;
    moescope_cli::outln!(
        "{experts} experts of {} bytes ({hidden} x {intermediate}, {weights}) from host memory into {} slots on {}\n",
        store.shape().expert_bytes(weights),
        arguments.slots,
        arguments.device
    );
    let mut rows = table(["host memory", "copy GB/s", "load GB/s", "load of copy %"]);
    let mut measure = |memory: &str| -> Result<()> {
        let [copy, load] = best_seconds(arguments, &*store, &mut plain, &*slots)?;
        let rate = |seconds: f64| (experts * store.shape().expert_bytes(weights)) as f64 / seconds / 1e9;
        rows.add_row([
            memory.to_owned(),
            format!("{:.2}", rate(copy)),
            format!("{:.2}", rate(load)),
            moescope_cli::per_cent(copy / load),
        ]);
        Ok(())
    };
    measure("pageable")?;
    #[cfg(feature = "cuda")]
    if !device.is_cpu() {
        let loader = moe_offload::CudaLoader::of(&device)?;
        let pinning = loader.pin(&store, u64::MAX)?;
        measure("page-locked")?;
        moescope_cli::outln!("{pinning}; loaded {:?}\n", loader.copied());
    }
    moescope_cli::outln!("{rows}");
    Ok(())
}

/// Seconds of the best round of plain copies, and of loads.
fn best_seconds(
    arguments: &Arguments,
    store: &dyn ExpertStore,
    plain: &mut Plain,
    slots: &dyn ExpertSlots,
) -> Result<[f64; 2]> {
    let [mut copy, mut load] = [f64::INFINITY; 2];
    let ids = || (0..).take(arguments.experts).map(ExpertId);
    for _ in 0..arguments.rounds {
        let started = Instant::now();
        for expert in ids() {
            let mut result = Ok(());
            store.with_bytes(LayerId(0), expert, &mut |bytes| {
                result = plain.copy(expert.index() % arguments.slots, bytes.each());
                Ok(())
            })?;
            result?;
        }
        plain.finish()?;
        copy = copy.min(started.elapsed().as_secs_f64());
        let started = Instant::now();
        for expert in ids() {
            let slot = SlotId(u32::try_from(expert.index() % arguments.slots)?);
            store.with_bytes(LayerId(0), expert, &mut |bytes| slots.load(slot, bytes))?;
        }
        load = load.min(started.elapsed().as_secs_f64());
    }
    Ok([copy, load])
}

fn slots(slots: usize, shape: ExpertShape, weights: WeightType, device: &Device) -> Result<Box<dyn ExpertSlots>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Ok(Box::new(moe_offload::CudaSlots::new(slots, shape, weights, device)?)),
        _ => Ok(Box::new(CpuSlots::new(slots, shape, weights)?)),
    }
}
