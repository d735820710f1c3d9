//! All results of a run, as JSON and as tables.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use expert_cache::{Convention, PhaseCounts, PolicyKind};
use lrc_metrics::{CurvePolicy, MetricsReport, by_policy};
use moe_model::Tokenizer;
use moe_offload::{LayerCounters, OffloadedExperts};
use moescope_cli::{per_cent, table};
use serde::Serialize;

use crate::measure::{HitRates, POLICIES};
use crate::run::Run;
use moescope_cli::Prompt;

/// Everything that quickstart found.
#[derive(Serialize)]
pub(crate) struct Report {
    /// The model's name.
    pub(crate) model: String,
    /// MoE layers, experts a layer, experts a token.
    pub(crate) geometry: [usize; 3],
    /// SRP, curves and load of the recorded trace.
    pub(crate) metrics: MetricsReport,
    /// Mean hit rates over layers, in the convention of the metrics.
    pub(crate) hit_rates: Vec<HitRates>,
    /// The hit rate asked for.
    pub(crate) target: f64,
    /// Slots a layer that reach it, by policy.
    #[serde(serialize_with = "by_policy::serialize")]
    pub(crate) smallest_cache: BTreeMap<CurvePolicy, Option<usize>>,
    /// The offloaded run beside the resident one.
    pub(crate) generation: Generation,
    /// What was generated.
    pub(crate) samples: Vec<Sample>,
}

/// An offloaded run beside the resident one.
#[derive(Serialize)]
pub(crate) struct Generation {
    policy: String,
    /// Slots a layer.
    capacity: usize,
    /// Bytes of all slots, and of all experts.
    slot_bytes: u64,
    expert_bytes: u64,
    /// Whether both runs chose the same tokens, and the same experts with the same weights.
    same_text: bool,
    same_routing: bool,
    /// How hits are counted.
    convention: Convention,
    /// Counts of the run and of the simulation, all layers together.
    measured: PhaseCounts,
    simulated: PhaseCounts,
    /// Whether the counts are equal in every layer.
    same_counts: bool,
    /// All three of the above.
    pub(crate) exact: bool,
    /// Bytes copied into slots.
    loaded_bytes: u64,
    load_seconds: f64,
    resident: Speed,
    offloaded: Speed,
}

/// Tokens a second by phase.
#[derive(Serialize)]
struct Speed {
    prefill: f64,
    decode: f64,
}

/// A prompt and its continuation.
#[derive(Serialize)]
pub(crate) struct Sample {
    pub(crate) domain: String,
    pub(crate) prompt: String,
    pub(crate) continuation: String,
}

impl Speed {
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    fn of(run: &Run) -> Speed {
        let timings = &run.timings;
        Speed {
            prefill: timings.prefill_tokens as f64 / timings.prefill.as_secs_f64(),
            decode: timings.decode_tokens as f64 / timings.decode.as_secs_f64(),
        }
    }
}

impl Generation {
    /// Compares the runs; `simulated` has the counts of each layer.
    pub(crate) fn compare(
        policy: PolicyKind,
        resident: &Run,
        offloaded: &Run,
        bank: &OffloadedExperts,
        simulated: &[PhaseCounts],
    ) -> Result<Generation> {
        let layers = bank.counters()?;
        let mut counters = LayerCounters::default();
        layers.iter().for_each(|layer| counters.merge(layer));
        let mut sum = PhaseCounts::default();
        simulated.iter().for_each(|layer| sum.merge(layer));
        let same_text = resident.texts == offloaded.texts;
        let same_routing = resident.trace == offloaded.trace;
        let same_counts = layers.iter().map(LayerCounters::counts).eq(simulated.iter().copied());
        Ok(Generation {
            policy: policy.to_string(),
            capacity: bank.capacities()[0],
            slot_bytes: bank.slot_bytes(),
            expert_bytes: bank.expert_bytes(),
            same_text,
            same_routing,
            convention: Convention::Engine,
            measured: counters.counts(),
            simulated: sum,
            same_counts,
            exact: same_text && same_routing && same_counts,
            loaded_bytes: counters.total().loaded_bytes,
            load_seconds: counters.total().load_seconds,
            resident: Speed::of(resident),
            offloaded: Speed::of(offloaded),
        })
    }
}

/// Prompts and continuations as text.
pub(crate) fn samples(prompts: &[Prompt], run: &Run, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
    let sample = |(prompt, tokens): (&Prompt, &Vec<u32>)| -> Result<Sample> {
        Ok(Sample {
            domain: prompt.domain.clone(),
            prompt: tokenizer.decode(&prompt.tokens)?,
            continuation: tokenizer.decode(tokens)?,
        })
    };
    prompts.iter().zip(&run.texts).map(sample).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [layers, experts, top_k] = self.geometry;
        writeln!(
            f,
            "{}: {layers} MoE layers x {experts} experts, top-{top_k}; {} sequences, {} tokens\n",
            self.model, self.metrics.sequences, self.metrics.tokens
        )?;

        let mut srp = table(["m", "SRP %", "rho^"]);
        for (window, value) in &self.metrics.model.srp {
            srp.add_row([window.to_string(), per_cent(value.srp), format!("{:.2}", value.rho)]);
        }
        writeln!(f, "Segment routing best performance (how well one set of experts serves m tokens)\n{srp}\n")?;

        let mut rates = table(["rho", "slots a layer", "LRU %", "LFU %", "Belady %", "SCH(16) %"]);
        for row in &self.hit_rates {
            let rate = |policy| row.hit_rate.get(&policy).copied().map_or("-".to_owned(), per_cent);
            let [lru, lfu, belady, sch] = POLICIES.map(rate);
            rates.add_row([row.rho.to_string(), row.capacity.to_string(), lru, lfu, belady, sch]);
        }
        writeln!(
            f,
            "Hit rate of a cache of rho times the experts of a token ({})\n{rates}\n",
            self.metrics.convention.description()
        )?;

        let mut smallest = table(["", "LRU", "LFU", "Belady", "SCH(16)"]);
        let slots = |policy| match self.smallest_cache.get(&policy).copied().flatten() {
            Some(slots) => format!("{slots} of {experts}"),
            None => "none".to_owned(),
        };
        let [lru, lfu, belady, sch] = POLICIES.map(slots);
        smallest.add_row(["slots a layer".to_owned(), lru, lfu, belady, sch]);
        writeln!(f, "Smallest cache with a hit rate of {} % (paper convention)\n{smallest}\n", per_cent(self.target))?;
        write!(f, "{}", self.generation)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs = table(["experts", "memory for experts", "prefill tokens/s", "decode tokens/s"]);
        let mut row = |name: String, bytes: u64, speed: &Speed| {
            let tokens = |speed: f64| format!("{speed:.0}");
            runs.add_row([name, mebibytes(bytes), tokens(speed.prefill), tokens(speed.decode)]);
        };
        row("all resident".to_owned(), self.expert_bytes, &self.resident);
        row(format!("{} slots a layer, {}", self.capacity, self.policy), self.slot_bytes, &self.offloaded);
        writeln!(f, "Generation\n{runs}\n")?;

        let mut counts = table(["phase", "accesses", "hits", "simulated hits", "hit rate %"]);
        for (name, measured, simulated) in [
            ("prefill", self.measured.prefill, self.simulated.prefill),
            ("decode", self.measured.decode, self.simulated.decode),
        ] {
            counts.add_row([
                name.to_owned(),
                measured.accesses().to_string(),
                measured.hits.to_string(),
                simulated.hits.to_string(),
                per_cent(measured.hit_rate()),
            ]);
        }
        writeln!(f, "The offloaded run's cache beside its simulation ({})\n{counts}\n", self.convention.description())?;
        let yes = |yes| if yes { "yes" } else { "NO" };
        writeln!(
            f,
            "same text: {}; same routing: {}; same counts in every layer: {}; moved {} in {:.2} s",
            yes(self.same_text),
            yes(self.same_routing),
            yes(self.same_counts),
            mebibytes(self.loaded_bytes),
            self.load_seconds
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
