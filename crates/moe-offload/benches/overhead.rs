//! What keeping the books of a cache costs a call that finds everything resident.
//!
//! Two resident banks, and offloaded ones whose slots hold all experts, serve the same decoded tokens in turn; of every call
//! the best of all rounds counts, for other work of the machine only ever adds to it. Each has its weights in memory of its
//! own, and each is the first as often as the others: what the second resident bank differs from the first is what a
//! difference must exceed to mean anything. `small` or `large` as an argument leaves the other out.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use expert_cache::PrefetcherKind;
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, HostStore, OffloadOptions, OffloadedExperts, RandomExperts, ResidentExperts,
    Result, Routes, Transfers, WeightType,
};
use moe_trace::{ExpertId, LayerId, Phase};

fn main() -> Result<()> {
    let small = ExpertShape { layers: 4, experts: 32, hidden: 128, intermediate: 64 };
    let large = ExpertShape { layers: 1, experts: 8, hidden: 2880, intermediate: 2880 };
    println!("{:42} {:>12} {:>30} {:>12} {:>10}", "experts", "resident us", "bank of all experts", "us", "overhead");
    let chosen = |name: &str| std::env::args().skip(1).all(|argument| argument.starts_with('-') || argument == name);
    if chosen("small") {
        compare(small, WeightType::F32, 400)?;
    }
    if chosen("large") {
        compare(large, WeightType::Q8_0, 40)?;
    }
    Ok(())
}

fn compare(shape: ExpertShape, weight_type: WeightType, rounds: usize) -> Result<()> {
    let store = Arc::new(HostStore::from_store(&RandomExperts::new(shape, weight_type, 0)?)?);
    let resident = || -> Result<ResidentExperts> {
        let copy = HostStore::from_store(&*store)?;
        let layer =
            |layer| (0..).take(shape.experts).map(|expert| copy.fetch(LayerId(layer), ExpertId(expert))).collect();
        Ok(ResidentExperts::new((0..).take(shape.layers).map(layer).collect::<Result<_>>()?))
    };
    let offloaded = |threads, prefetcher| {
        let options = OffloadOptions::slots(shape.experts).transfers(Transfers::threads(threads));
        OffloadedExperts::new(store.clone(), &Device::Cpu, options.prefetch(prefetcher, 1, 4))
    };
    let banks: [(&str, Box<dyn ExpertBank>); 5] = [
        ("resident", Box::new(resident()?)),
        ("resident once more", Box::new(resident()?)),
        ("inline", Box::new(offloaded(0, PrefetcherKind::None)?)),
        ("1 thread", Box::new(offloaded(1, PrefetcherKind::None)?)),
        ("1 thread, next-layer prefetcher", Box::new(offloaded(1, PrefetcherKind::NextLayer)?)),
    ];
    let mut best = banks.each_ref().map(|_| Vec::new());
    for round in 0..rounds {
        for number in 0..banks.len() {
            let number = (round + number) % banks.len();
            turn(&*banks[number].1, shape, weight_type, &mut best[number])?;
        }
    }
    let mean = |best: &[f64]| 1e6 * best.iter().sum::<f64>() / best.len() as f64;
    let experts = format!("{} x {} {weight_type}, 1 token, top-4", shape.hidden, shape.intermediate);
    for ((name, _), best_of) in banks.iter().zip(&best).skip(1) {
        let (resident, ours) = (mean(&best[0]), mean(best_of));
        println!("{experts:42} {resident:12.2} {name:>30} {ours:12.2} {:9.2}%", 100.0 * (ours / resident - 1.0));
    }
    Ok(())
}

/// Times a call a layer for every group of four experts.
fn turn(bank: &dyn ExpertBank, shape: ExpertShape, weight_type: WeightType, best: &mut Vec<f64>) -> Result<()> {
    let hidden = Tensor::ones((1, shape.hidden), DType::F32, &Device::Cpu)?.to_dtype(weight_type.activations())?;
    let weights = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?.to_dtype(weight_type.activations())?;
    let ids: Vec<u16> = (0..).take(shape.experts).collect();
    let calls = ids.chunks(4).flat_map(|experts| (0..).take(shape.layers).map(move |layer| (LayerId(layer), experts)));
    for (number, (layer, experts)) in calls.enumerate() {
        let routes = Routes::new(experts.to_vec(), weights.clone(), Phase::Decode)?;
        let started = Instant::now();
        bank.forward(layer, &hidden, &routes)?;
        let seconds = started.elapsed().as_secs_f64();
        match best.get_mut(number) {
            Some(best) => *best = best.min(seconds),
            None => best.push(seconds),
        }
    }
    Ok(())
}
