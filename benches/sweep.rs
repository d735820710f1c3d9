//! How long do policies at every capacity of a whole model take?
//!
//! One line a policy: seconds, and expert accesses a second over all capacities and layers.

use std::time::Instant;

use clap::Parser;
use expert_cache::{Partition, PolicyKind, Sweep};
use indicatif::ProgressBar;
use moe_trace::{Geometry, MemoryTrace};

/// Simulates policies at every capacity of every layer of a seeded synthetic trace.
#[derive(Debug, Parser)]
struct Arguments {
    /// Policies, by name.
    #[arg(default_values_t = [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Belady])]
    policies: Vec<PolicyKind>,
    /// MoE layers.
    #[arg(long, default_value_t = 24)]
    layers: usize,
    /// Experts a layer.
    #[arg(long, default_value_t = 64)]
    experts: usize,
    /// Experts a token.
    #[arg(long, default_value_t = 8)]
    top_k: usize,
    /// Tokens, rounded up to whole sequences.
    #[arg(long, default_value_t = 200_000)]
    tokens: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let geometry = Geometry::decoder(arguments.layers, arguments.experts, arguments.top_k)?;
    let sequences = arguments.tokens.div_ceil(moe_benches::TOKENS);
    let started = Instant::now();
    let trace: MemoryTrace = moe_benches::synthetic_model(&geometry, sequences);
    println!("trace of {} tokens: {:.1} s", sequences * moe_benches::TOKENS, started.elapsed().as_secs_f64());
    for policy in arguments.policies {
        let bar = ProgressBar::new(0);
        let started = Instant::now();
        let pools = Sweep::new(Partition::per_layer(&geometry), &[policy]).run(&trace, |done, runs| {
            bar.set_length(runs as u64);
            bar.set_position(done as u64);
        })?;
        let seconds = started.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let runs = pools.iter().flat_map(|pool| pool.policies[0].totals());
        let accesses: u64 = runs.map(|counts| counts.total().accesses()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate in millions")]
        let rate = accesses as f64 / seconds / 1e6;
        println!("{policy}: {seconds:.1} s, {rate:.1} M accesses/s");
    }
    Ok(())
}
