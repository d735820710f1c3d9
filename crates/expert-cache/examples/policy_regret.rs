//! What every policy costs against Belady on a trace: a Markdown table of hit rates and loads.
//!
//! Per-layer pools are served layer by layer and added up; a pool of the whole model has as many slots as all of them.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use expert_cache::{Convention, Counts, ExpertCache, Oversize, PolicyKind, Pool, Requests, Simulation};
use rayon::prelude::*;

#[derive(Parser)]
#[command(about = "Prints what every policy costs against Belady on a trace.")]
struct Arguments {
    /// A trace.
    trace: PathBuf,
    /// Slots a layer.
    #[arg(long = "slots", value_delimiter = ',', default_values_t = [8, 16, 24])]
    slots: Vec<usize>,
    /// Policies by name; all if none is given.
    #[arg(long = "policy", value_delimiter = ',')]
    policies: Vec<PolicyKind>,
    /// One pool for the whole model instead of one a layer.
    #[arg(long)]
    model: bool,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let trace = moe_trace::open(&arguments.trace)?;
    let geometry = trace.geometry();
    let (pools, slots_a_pool): (Vec<Pool>, usize) = if arguments.model {
        (vec![Pool::model(geometry)], geometry.layers())
    } else {
        (geometry.layer_ids().map(|layer| Pool::layer(geometry, layer)).collect::<Result<_, _>>()?, 1)
    };
    let futures = pools
        .par_iter()
        .map(|pool| Ok((pool, Arc::new(Requests::from_source(&*trace, pool)?))))
        .collect::<Result<Vec<_>, Error>>()?;
    let serve = |kind: PolicyKind, slots: usize| {
        let counts = futures.par_iter().map(|(pool, future)| {
            let capacity = slots * slots_a_pool;
            let shape = pool.shape();
            let policy = kind.build(shape, capacity, Some(future))?;
            let cache = ExpertCache::new(policy, shape.universe(), capacity, Oversize::Waves)?;
            let mut simulation = Simulation::new((*pool).clone(), cache)?;
            simulation.run(&*trace)?;
            let mut total = Counts::default();
            simulation.counts().iter().for_each(|counts| total.merge(&counts.total()));
            Ok(total)
        });
        counts.try_reduce(Counts::default, |mut left: Counts, right| {
            left.merge(&right);
            Ok::<_, Error>(left)
        })
    };
    let optima =
        arguments.slots.iter().map(|&slots| serve(PolicyKind::Belady, slots)).collect::<Result<Vec<_>, _>>()?;
    let columns: String = arguments.slots.iter().map(|slots| format!(" {slots} slots |")).collect();
    println!("Hit rate and loads over Belady's; {}\n", Convention::Engine.description());
    println!("| policy |{columns}");
    println!("| --- |{}", " --- |".repeat(arguments.slots.len()));
    let policies = if arguments.policies.is_empty() { PolicyKind::all() } else { &arguments.policies };
    for &kind in policies {
        let mut row = format!("| `{kind}` |");
        for (&slots, optimum) in arguments.slots.iter().zip(&optima) {
            let counts = serve(kind, slots)?;
            row += &format!(" {:.1} % · {:.2} |", 100.0 * counts.hit_rate(), misses(&counts) / misses(optimum));
        }
        println!("{row}");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn misses(counts: &Counts) -> f64 {
    (counts.loads + counts.bypasses) as f64
}
