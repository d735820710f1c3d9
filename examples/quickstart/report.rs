//! All results of a run, as JSON and as tables.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use anyhow::Result;
use expert_cache::{Convention, PhaseCounts, PolicyKind};
use lrc_metrics::{CurvePolicy, MetricsReport, by_policy};
use moe_model::Tokenizer;
use moe_offload::{LayerCounters, OffloadedExperts};
use moescope_cli::{Document, per_cent, table};
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

impl Report {
    /// Returns the main results in words.
    pub(crate) fn verdict(&self) -> String {
        let mut verdict = String::new();
        let lru = |row: &&HitRates| Some((row.capacity, row.hit_rate.get(&CurvePolicy::Lru).copied()?));
        if let Some((capacity, rate)) = self.hit_rates.iter().find(|row| row.rho == 2).as_ref().and_then(lru) {
            let rate = per_cent(rate);
            // Writing to a string cannot fail.
            let _ = write!(
                verdict,
                "With 2x the experts of a token ({capacity} slots per layer), LRU serves {rate} % of the accesses. "
            );
        }
        let (target, experts) = (per_cent(self.target), self.geometry[1]);
        let _ = match self.smallest_cache.get(&CurvePolicy::Lru).copied().flatten() {
            Some(slots) => write!(verdict, "{slots} of {experts} slots per layer reach {target} %. "),
            None => write!(verdict, "No number of slots reaches {target} %. "),
        };
        let same = match self.generation.exact {
            true => "the same text, routing and hit counts as",
            false => "another text, routing or hit count than",
        };
        let Generation { capacity, policy, .. } = &self.generation;
        let _ = write!(
            verdict,
            "The offloaded run ({capacity} slots per layer, {policy}) has {same} the resident run and the simulation."
        );
        verdict
    }

    /// Returns all results as text and tables.
    pub(crate) fn document(&self) -> Document {
        let mut document = Document::new();
        // Writing to a document cannot fail.
        let _ = self.write(&mut document);
        document
    }

    fn write(&self, f: &mut Document) -> fmt::Result {
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
        f.table("Segment routing best performance (how well one set of experts serves m tokens)", srp);
        writeln!(f, "\n")?;

        let mut rates = table(["rho", "slots a layer", "LRU %", "LFU %", "Belady %", "SCH(16) %"]);
        for row in &self.hit_rates {
            let rate = |policy| row.hit_rate.get(&policy).copied().map_or("-".to_owned(), per_cent);
            let [lru, lfu, belady, sch] = POLICIES.map(rate);
            rates.add_row([row.rho.to_string(), row.capacity.to_string(), lru, lfu, belady, sch]);
        }
        let convention = self.metrics.convention.description();
        f.table(format!("Hit rate of a cache of rho times the experts of a token ({convention})"), rates);
        writeln!(f, "\n")?;

        let mut smallest = table(["", "LRU", "LFU", "Belady", "SCH(16)"]);
        let slots = |policy| match self.smallest_cache.get(&policy).copied().flatten() {
            Some(slots) => format!("{slots} of {experts}"),
            None => "none".to_owned(),
        };
        let [lru, lfu, belady, sch] = POLICIES.map(slots);
        smallest.add_row(["slots a layer".to_owned(), lru, lfu, belady, sch]);
        let target = per_cent(self.target);
        f.table(format!("Smallest cache with a hit rate of {target} % (paper convention)"), smallest);
        writeln!(f, "\n")?;
        self.generation.write(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.document().fmt(f)
    }
}

impl Generation {
    fn write(&self, f: &mut Document) -> fmt::Result {
        let mut runs = table(["experts", "memory for experts", "prefill tokens/s", "decode tokens/s"]);
        let mut row = |name: String, bytes: u64, speed: &Speed| {
            let tokens = |speed: f64| format!("{speed:.0}");
            runs.add_row([name, mebibytes(bytes), tokens(speed.prefill), tokens(speed.decode)]);
        };
        row("all resident".to_owned(), self.expert_bytes, &self.resident);
        row(format!("{} slots a layer, {}", self.capacity, self.policy), self.slot_bytes, &self.offloaded);
        f.table("Generation", runs);
        writeln!(f, "\n")?;

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
        let convention = self.convention.description();
        f.table(format!("The offloaded run's cache beside its simulation ({convention})"), counts);
        writeln!(f, "\n")?;
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
