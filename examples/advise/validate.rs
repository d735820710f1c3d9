//! Predicted and measured speed of the runtime, side by side.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use expert_cache::{
    CostModel, Counts, EvictionPolicy, ExpertCache, HardwareProfile, Linear, ModelSize, Oversize, Partition,
    PolicyKind, Pool, PoolShape, Requests, Simulation, Speed, Timeline,
};
use moe_examples::{progress_bar, table};
use moe_model::{Checkpoint, GenerateOptions, Olmoe, OlmoeConfig, Sampling, generate};
use moe_offload::{
    ExpertBank, ExpertStore, HostStore, MappedStore, OffloadOptions, OffloadedExperts, ResidentExperts, Transfers,
    WeightType, measure,
};
use moe_trace::{LayerId, MemoryTrace, Recorder, RoutingSource};
use serde::{Deserialize, Serialize};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout [default: the model of this repository].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Slots a layer to try.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16,24,32")]
    capacities: Vec<usize>,

    /// Policies to try.
    #[arg(long, value_delimiter = ',', default_value = "lru,lfu,belady")]
    policies: Vec<PolicyKind>,

    /// Tokens to generate for each prompt.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,

    /// Times that every run is repeated; of every step the best counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Write all figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
}

/// Where the weights lie and how they are cached.
#[derive(Clone, Copy)]
struct Case {
    store: usize,
    policy: PolicyKind,
    capacity: usize,
}

/// Predicted and measured speed of one case.
#[derive(Serialize)]
struct Row {
    store: &'static str,
    policy: String,
    capacity: usize,
    hit_rate: f64,
    decode_ms: Compared,
    prefill_tokens_per_second: Compared,
}

#[derive(Clone, Copy, Serialize)]
struct Compared {
    predicted: f64,
    measured: f64,
}

impl Compared {
    fn error(self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// The best seconds of each prefill and of each decode step: other work of the machine only ever adds to them.
#[derive(Clone, Default)]
struct Best {
    prefill: Vec<f64>,
    decode: Vec<f64>,
    prefill_tokens: usize,
}

impl Best {
    /// Keeps the better of each pair of seconds.
    fn merge(&mut self, other: Best) {
        if self.prefill.is_empty() {
            *self = other;
            return;
        }
        let better = |ours: &mut [f64], theirs: &[f64]| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours = ours.min(*theirs));
        };
        better(&mut self.prefill, &other.prefill);
        better(&mut self.decode, &other.decode);
    }

    /// Mean seconds of a decoded token.
    fn decode_seconds(&self) -> f64 {
        self.decode.iter().sum::<f64>() / self.decode.len() as f64
    }

    /// Mean seconds of a prefilled token.
    fn prefill_seconds(&self) -> f64 {
        self.prefill.iter().sum::<f64>() / self.prefill_tokens as f64
    }
}

/// The runtime and what it runs again and again.
struct Runtime {
    config: OlmoeConfig,
    vb: VarBuilder<'static>,
    stores: [(&'static str, Arc<dyn ExpertStore>); 2],
    resident: Arc<ResidentExperts>,
    prompts: Vec<Vec<u32>>,
    new_tokens: usize,
}

/// What rounds of runs gave.
struct Measured {
    resident: Best,
    /// Of each case.
    cases: Vec<Best>,
    /// Of each store, a profile a round.
    profiles: Vec<Vec<HardwareProfile>>,
}

/// The routing of the runs, and what each layer will want, for policies that know it.
struct Recorded {
    trace: MemoryTrace,
    futures: Vec<Arc<Requests>>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds is 0, give at least 1");
    ensure!(arguments.new_tokens > 1, "--new-tokens is {}, give at least 2", arguments.new_tokens);
    let runtime = Runtime::open(arguments)?;
    let experts = runtime.config.geometry().experts();
    if let Some(capacity) = arguments.capacities.iter().find(|&&capacity| capacity == 0 || capacity > experts) {
        bail!("--capacities has {capacity}, the model allows 1..={experts}");
    }
    let mut cases = Vec::new();
    for store in 0..runtime.stores.len() {
        for &policy in &arguments.policies {
            cases.extend(arguments.capacities.iter().map(|&capacity| Case { store, policy, capacity }));
        }
    }
    let recorded = Recorded::new(runtime.run(runtime.resident.clone())?.1)?;
    let Measured { resident, cases: measured, profiles } = runtime.measure(&cases, &recorded, arguments.rounds)?;

    let mut costs = Vec::new();
    for (store, profiles) in profiles.iter().enumerate() {
        let size = runtime.size()?;
        let of_rounds = profiles.iter().map(|profile| CostModel::new(profile, &size, store == 1));
        let mut of_store = medians(&of_rounds.collect::<Result<Vec<_>, _>>()?);
        recorded.calibrate(&mut of_store, &resident)?;
        println!(
            "{} store: {:.2} us a load, {:.2} us for the books of a layer; the rest {:.2} us a layer and {:.2} us a token",
            runtime.stores[store].0,
            1e6 * of_store.load_seconds[0],
            1e6 * of_store.plan.call_seconds,
            1e6 * of_store.dense.call_seconds,
            1e6 * of_store.dense.seconds_each,
        );
        costs.push(of_store);
    }
    let row = |(case, best): (&Case, &Best)| -> Result<Row> {
        let (speed, hit_rate) = recorded.predict(&costs[case.store], case.policy, case.capacity)?;
        let decode_ms =
            Compared { predicted: 1e3 * speed.decode.mean_seconds(), measured: 1e3 * best.decode_seconds() };
        let prefill_tokens_per_second =
            Compared { predicted: speed.prefill.tokens_per_second(), measured: 1.0 / best.prefill_seconds() };
        let (store, policy) = (runtime.stores[case.store].0, case.policy.to_string());
        Ok(Row { store, policy, capacity: case.capacity, hit_rate, decode_ms, prefill_tokens_per_second })
    };
    let rows: Vec<Row> = cases.iter().zip(&measured).map(row).collect::<Result<_>>()?;
    println!("{}", report(&rows, &resident)?);
    if let Some(path) = &arguments.json {
        moe_examples::write_json(path, &rows)?;
    }
    Ok(())
}

impl Runtime {
    fn open(arguments: &Arguments) -> Result<Runtime> {
        let folder = arguments.model.clone().unwrap_or_else(moe_examples::default_model);
        let checkpoint = Checkpoint::open(&folder)
            .with_context(|| format!("cannot use the model in {}; see --model in --help", folder.display()))?;
        let (config, device, dtype) = (checkpoint.config().clone(), Device::Cpu, DType::F32);
        let tokenizer = checkpoint.tokenizer()?;
        let texts: Vec<Prompt> = serde_json::from_str(include_str!("../../models/default/prompts.json"))?;
        let room = config.params().max_position_embeddings.saturating_sub(arguments.new_tokens);
        ensure!(room > 0, "--new-tokens is {}, the model has not so many positions", arguments.new_tokens);
        let prompt = |prompt: &Prompt| -> Result<Vec<u32>> {
            let mut tokens = tokenizer.encode(&prompt.text)?;
            tokens.truncate(room);
            Ok(tokens)
        };
        let names = |layer, expert| checkpoint.expert_names(layer, expert);
        let mapped = MappedStore::open(checkpoint.files(), config.expert_shape(), dtype, names)?;
        let host = HostStore::from_store(&mapped)?;
        let vb = checkpoint.var_builder(dtype, &device)?;
        Ok(Runtime {
            stores: [("host", Arc::new(host)), ("disk", Arc::new(mapped))],
            resident: Arc::new(moe_model::resident_experts(&config, &vb)?),
            prompts: texts.iter().map(prompt).collect::<Result<_>>()?,
            new_tokens: arguments.new_tokens,
            config,
            vb,
        })
    }

    /// Sizes of the experts; what else there is, is calibrated.
    fn size(&self) -> Result<ModelSize> {
        let shape = self.config.expert_shape();
        Ok(ModelSize {
            expert_bytes: vec![u64::try_from(shape.expert_bytes(WeightType::F32))?; shape.layers],
            expert_weights: 3 * (shape.hidden * shape.intermediate) as u64,
            dense_bytes: 0,
            dense_weights: 0,
            head_bytes: 0,
            head_weights: 0,
        })
    }

    /// Continues every prompt.
    fn run(&self, bank: Arc<dyn ExpertBank>) -> Result<(Best, MemoryTrace)> {
        let model = Olmoe::new(&self.config, &self.vb, bank)?;
        let mut recorder = Recorder::new(MemoryTrace::new(self.config.geometry()));
        let options =
            GenerateOptions { max_new_tokens: self.new_tokens, sampler: Sampling::Greedy, stop_tokens: Vec::new() };
        let mut best = Best::default();
        for prompt in &self.prompts {
            let mut stops = vec![Instant::now()];
            generate(&model, std::slice::from_ref(prompt), &options, &mut recorder, |_, _| {
                stops.push(Instant::now());
            })?;
            let mut seconds = stops.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64());
            best.prefill.extend(seconds.next());
            best.decode.extend(seconds);
            best.prefill_tokens += prompt.len();
        }
        Ok((best, recorder.finish()?))
    }

    /// Measures the machine, runs the resident bank and all cases in turn, so that a machine that slows down does so for
    /// all.
    fn measure(&self, cases: &[Case], recorded: &Recorded, rounds: usize) -> Result<Measured> {
        let bar = progress_bar(rounds * (cases.len() + 1), "runs");
        let (mut resident, mut measured) = (Best::default(), vec![Best::default(); cases.len()]);
        let mut profiles = vec![Vec::new(); self.stores.len()];
        for _ in 0..rounds {
            for ((name, store), profiles) in self.stores.iter().zip(&mut profiles) {
                profiles.push(measure(name, store, &Device::Cpu, Transfers::Inline)?);
            }
            resident.merge(self.run(self.resident.clone())?.0);
            bar.inc(1);
            for (case, best) in cases.iter().zip(&mut measured) {
                let store = Arc::clone(&self.stores[case.store].1);
                let policy = |pool: &Pool, slots| recorded.policy(case.policy, slots, pool.layers()[0]);
                let options = OffloadOptions::slots(case.capacity).policy_with(policy);
                let bank = OffloadedExperts::new(store, &Device::Cpu, options)?;
                let (run, trace) = self.run(Arc::new(bank))?;
                ensure!(trace == recorded.trace, "an offloaded run routed otherwise than the resident one");
                best.merge(run);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Measured { resident, cases: measured, profiles })
    }
}

impl Recorded {
    fn new(trace: MemoryTrace) -> Result<Recorded> {
        let geometry = trace.geometry();
        let future = |layer| Ok(Arc::new(Requests::from_source(&trace, &Pool::layer(geometry, layer)?)?));
        let futures = geometry.layer_ids().map(future).collect::<Result<_>>()?;
        Ok(Recorded { trace, futures })
    }

    fn policy(
        &self,
        policy: PolicyKind,
        capacity: usize,
        layer: LayerId,
    ) -> expert_cache::Result<Box<dyn EvictionPolicy>> {
        let shape = PoolShape { layers: 1, experts: self.trace.geometry().experts() };
        policy.build(shape, capacity, Some(&self.futures[layer.index()]))
    }

    /// Chooses the dense costs so that the resident run takes as long as it did.
    fn calibrate(&self, costs: &mut CostModel, resident: &Best) -> Result<()> {
        let mut experts_alone = costs.clone();
        experts_alone.load_seconds.fill(0.0);
        (experts_alone.plan, experts_alone.dense, experts_alone.head) = Default::default();
        let speed = self.predict(&experts_alone, PolicyKind::Lru, self.trace.geometry().experts())?.0;
        // A pass of n tokens costs each layer call + n * each; decode has 1 token a pass, prefill a prompt.
        let layers = costs.load_seconds.len() as f64;
        let (tokens, passes) = (speed.prefill.tokens as f64, self.trace.len() as f64);
        let decode = (resident.decode_seconds() - speed.decode.mean_seconds()) / layers;
        let prefill = (resident.prefill_seconds() * tokens - speed.prefill.seconds) / layers;
        costs.dense.seconds_each = ((prefill - passes * decode) / (tokens - passes)).clamp(0.0, decode.max(0.0));
        costs.dense.call_seconds = (decode - costs.dense.seconds_each).max(0.0);
        costs.head = Linear::default();
        Ok(())
    }

    /// Predicted speed, and hit rate of decoded tokens.
    fn predict(&self, costs: &CostModel, policy: PolicyKind, capacity: usize) -> Result<(Speed, f64)> {
        let geometry = self.trace.geometry();
        let cache = |layer| {
            let policy = self.policy(policy, capacity, layer)?;
            ExpertCache::new(policy, geometry.experts(), capacity, Oversize::Waves)
        };
        let caches = geometry.layer_ids().map(cache).collect::<expert_cache::Result<_>>()?;
        let mut simulation = Simulation::of_pools(Partition::per_layer(geometry).into_pools(), caches)?;
        let mut timeline = Timeline::new(costs.clone(), simulation.pools())?;
        simulation.observe(&self.trace, |served| {
            timeline.serve(served);
        })?;
        let mut counts = Counts::default();
        simulation.counts().iter().for_each(|layer| counts.merge(&layer.decode));
        Ok((timeline.speed().clone(), counts.hit_rate()))
    }
}

/// The median of each cost that is used.
fn medians(costs: &[CostModel]) -> CostModel {
    let of = |cost: fn(&CostModel) -> f64| median(costs.iter().map(cost));
    let linear = |call_seconds, seconds_each| Linear { call_seconds: of(call_seconds), seconds_each: of(seconds_each) };
    let mut all = CostModel::loads(vec![of(|one| one.load_seconds[0]); costs[0].load_seconds.len()], costs[0].overlap);
    all.device_expert = linear(|one| one.device_expert.call_seconds, |one| one.device_expert.seconds_each);
    all.plan = linear(|one| one.plan.call_seconds, |one| one.plan.seconds_each);
    all
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One of a row's figures.
type Figure = fn(&Row) -> Compared;

fn report(rows: &[Row], resident: &Best) -> Result<String> {
    let mut table = table([
        "store",
        "policy",
        "slots",
        "hit %",
        "decode ms: predicted",
        "measured",
        "error %",
        "prefill tokens/s: predicted",
        "measured",
        "error %",
    ]);
    let error = |compared: Compared| format!("{:+.1}", 100.0 * compared.error());
    for row in rows {
        let (decode, prefill) = (row.decode_ms, row.prefill_tokens_per_second);
        table.add_row([
            row.store.to_owned(),
            row.policy.clone(),
            row.capacity.to_string(),
            moe_examples::per_cent(row.hit_rate),
            format!("{:.3}", decode.predicted),
            format!("{:.3}", decode.measured),
            error(decode),
            format!("{:.0}", prefill.predicted),
            format!("{:.0}", prefill.measured),
            error(prefill),
        ]);
    }
    let mut text = table.to_string();
    let (decode, prefill) = (1e3 * resident.decode_seconds(), 1.0 / resident.prefill_seconds());
    write!(text, "\nresident: {decode:.3} ms a decoded token, {prefill:.0} prefilled tokens/s")?;
    let kinds: [(&str, Figure, f64); 2] =
        [("decode", |row| row.decode_ms, decode), ("prefill", |row| row.prefill_tokens_per_second, prefill)];
    for (name, of, resident) in kinds {
        let errors = || rows.iter().map(|row| of(row).error().abs());
        let naive = rows.iter().map(|row| Compared { predicted: resident, ..of(row) }.error().abs());
        write!(
            text,
            "\n{name}: median error {:.1} %, worst {:.1} %; of taking the resident speed, {:.1} % and {:.1} %",
            100.0 * median(errors()),
            100.0 * errors().fold(0.0, f64::max),
            100.0 * median(naive.clone()),
            100.0 * naive.fold(0.0, f64::max),
        )?;
    }
    Ok(text)
}
