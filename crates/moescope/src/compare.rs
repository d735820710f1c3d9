//! The simulator beside a run that recorded what was resident.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use expert_cache::{
    ExpertCache, ExpertKey, ExpertSizes, MissCost, MissPolicy, Oversize, PolicyKind, Pool, Request, Simulation,
};
use moe_trace::{ExpertId, ImportOptions, Phase, RoutingSource, import};
use moescope_cli::{per_cent, print_warnings};
use serde::Deserialize;

/// Compare the simulator with a recorded run of another engine, access by access.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope compare route.csv --cache 4000MiB")]
pub(crate) struct Arguments {
    /// A route trace of `BigMoeOnEdge`, with the columns `residency` and `expert_bytes`.
    trace: PathBuf,

    /// Bytes of the recorded run's cache, which all layers share.
    #[arg(long, value_name = "SIZE", value_parser = crate::plan::parse_bytes)]
    cache: u64,

    /// Policy of the recorded run.
    #[arg(long, value_name = "POLICY", default_value = "lru")]
    policy: PolicyKind,
}

#[derive(Deserialize)]
struct Row {
    turn: u64,
    phase: u8,
    step: u64,
    layer: u16,
    expert: u16,
    residency: u8,
    expert_bytes: u64,
    /// 1 if the expert was missing, and was neither loaded nor computed.
    #[serde(default)]
    dropped: u8,
}

/// Misses of decoded tokens that the recorded run did not load: loading them costs more than leaving them.
#[derive(Debug)]
struct Dropped {
    pool: Pool,
    /// Token, layer and expert.
    misses: HashSet<(usize, usize, ExpertId)>,
    /// The decoded token that is served.
    token: Arc<AtomicUsize>,
}

impl MissCost for Dropped {
    fn load(&self, request: &Request<'_>, expert: ExpertKey) -> f64 {
        let token = self.token.load(Ordering::Relaxed);
        let dropped = request.phase() == Phase::Decode
            && self.pool.expert(expert).is_some_and(|(layer, id)| self.misses.contains(&(token, layer.index(), id)));
        f64::from(u8::from(dropped))
    }

    fn host(&self, _: &Request<'_>, _: ExpertKey) -> f64 {
        0.5
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.trace;
    let trace = import(path, &ImportOptions::default()).with_context(|| format!("cannot import {}", path.display()))?;
    print_warnings(trace.import_report());
    let rows = rows(path)?;
    let geometry = trace.geometry();
    let mut layer_of = HashMap::new();
    for (layer, moe) in geometry.layer_ids().zip(geometry.moe_layers()) {
        layer_of.insert(moe.model_layer, layer);
    }
    let mut bytes = vec![0; geometry.layers()];
    // Whether each expert that a decoded token wanted was resident, in the order of the file.
    let mut recorded: HashMap<(usize, usize), Vec<(ExpertId, bool)>> = HashMap::new();
    let (mut misses, mut dropped_in_prefill) = (HashSet::new(), 0);
    let mut token = 0;
    let mut last = None;
    for row in &rows {
        let Some(&layer) = layer_of.get(&u32::from(row.layer)) else {
            bail!("{}: layer {} has no experts", path.display(), row.layer);
        };
        // Hits have 0.
        bytes[layer.index()] = row.expert_bytes.max(bytes[layer.index()]);
        if Phase::from_code(row.phase) == Some(Phase::Decode) {
            if last.is_some_and(|last| last != (row.turn, row.step)) {
                token += 1;
            }
            last = Some((row.turn, row.step));
            recorded.entry((token, layer.index())).or_default().push((ExpertId(row.expert), row.residency != 0));
            if row.dropped != 0 {
                misses.insert((token, layer.index(), ExpertId(row.expert)));
            }
        } else {
            dropped_in_prefill += u64::from(row.dropped != 0);
        }
    }

    let pool = Pool::model(geometry);
    let sizes = ExpertSizes::by_layer(&pool, &bytes).context("a layer has no rows, or experts of 0 bytes")?;
    let slots = sizes.most_within(arguments.cache);
    ensure!(slots > 0, "no expert fits into --cache");
    ensure!(!arguments.policy.needs_future(), "--policy is {}, nothing recorded can have known", arguments.policy);
    let policy = arguments.policy.build(pool.shape(), slots, None)?;
    let mut cache = ExpertCache::in_bytes(policy, sizes, arguments.cache, Oversize::Waves)?;
    let (dropped, served_token) = (misses.len(), Arc::new(AtomicUsize::new(0)));
    if dropped > 0 {
        let misses = Dropped { pool: pool.clone(), misses, token: Arc::clone(&served_token) };
        cache = cache.with_misses(MissPolicy::Cheaper(Arc::new(misses)));
    }
    let mut simulation = Simulation::new(pool.clone(), cache)?;
    let (mut agreeing, mut accesses, mut hits) = (0u64, 0u64, 0u64);
    simulation.observe(&trace, |served| {
        let layer = served.request.layer();
        if served.request.phase() == Phase::Prefill {
            return;
        }
        let token = served_token.load(Ordering::Relaxed);
        for &(expert, resident) in recorded.get(&(token, layer.index())).into_iter().flatten() {
            let hit = served.plan.hits().iter().any(|hit| pool.expert(hit.key) == Some((layer, expert)));
            accesses += 1;
            hits += u64::from(resident);
            agreeing += u64::from(hit == resident);
        }
        served_token.fetch_add(usize::from(layer.index() + 1 == geometry.layers()), Ordering::Relaxed);
    })?;
    ensure!(accesses > 0, "{} has no decoded tokens", path.display());
    let (mut decode, mut total) = (expert_cache::Counts::default(), expert_cache::Counts::default());
    for counts in simulation.counts() {
        decode.merge(&counts.decode);
        total.merge(&counts.total());
    }
    let share = |part: u64, of: u64| per_cent(part as f64 / of as f64);
    let prefill = total.accesses() - decode.accesses();
    let mut table = moescope_cli::table(["hit rate, % (engine convention)", "recorded", "simulated"]);
    table.add_row(["decoded tokens".into(), share(hits, accesses), per_cent(decode.hit_rate())]);
    // The recorded run marks every prefilled access as a miss.
    table.add_row([
        "prefilled experts once each, and decoded tokens".to_owned(),
        share(hits, accesses + prefill),
        per_cent(total.hit_rate()),
    ]);
    moescope_cli::outln!("{table}");
    moescope_cli::outln!("{agreeing} of {accesses} accesses of decoded tokens agree: {} %", share(agreeing, accesses));
    if dropped > 0 {
        moescope_cli::outln!(
            "{dropped} misses of decoded tokens were dropped in the run, and load nothing here either"
        );
    }
    if dropped_in_prefill > 0 {
        moescope_cli::outln!(
            "{dropped_in_prefill} misses of prefilled tokens were dropped in the run, and are loaded here"
        );
    }
    Ok(())
}

fn rows(path: &Path) -> Result<Vec<Row>> {
    let reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_path(path);
    let mut reader = reader.with_context(|| format!("cannot read {}", path.display()))?;
    let rows = reader.deserialize().collect::<Result<_, _>>();
    rows.with_context(|| format!("{} lacks columns that a residency needs", path.display()))
}
