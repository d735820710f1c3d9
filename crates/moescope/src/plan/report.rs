//! The answer as text and as JSON.

use std::fmt::{self, Write as _};

use expert_cache::{
    Candidate, Convention, CostModel, HardwareProfile, Layout, ModelSize, Setup, Slots, Survey, Target, Verdict,
};
use moescope_cli::{Document, Provenance, per_cent, table};
use serde::Serialize;

/// Everything that was asked and found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) trace: String,
    pub(crate) sequences: usize,
    pub(crate) tokens: usize,
    /// Layers, experts, experts a token.
    pub(crate) geometry: [usize; 3],
    pub(crate) model: String,
    pub(crate) size: ModelSize,
    pub(crate) profile: HardwareProfile,
    pub(crate) from_disk: bool,
    pub(crate) costs: CostModel,
    pub(crate) target: Target,
    pub(crate) budget: Option<u64>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// Of the figure that the target is about.
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) over_bandwidth: Vec<OverBandwidth>,
    /// How all hit rates are counted.
    pub(crate) hit_rate_convention: Convention,
    pub(crate) survey: Survey,
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
}

/// Decode speed of a setup over the bandwidth of the link.
#[derive(Serialize)]
pub(crate) struct OverBandwidth {
    pub(crate) setup: Setup,
    /// Bytes a second, tokens a second.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Report {
    /// What was chosen, or comes closest.
    pub(crate) fn chosen(&self) -> Option<&Candidate> {
        match self.verdict {
            Verdict::Met { best } => Some(best),
            Verdict::PolicyFailure { best, .. } | Verdict::WorkingSet { best, .. } => best,
            Verdict::Compute => None,
        }
        .map(|at| &self.survey.candidates[at])
    }

    /// Returns the answer in words.
    pub(crate) fn verdict(&self) -> String {
        let at = |at: usize| summary(&self.survey.candidates[at]);
        let maybe = |place: Option<usize>| place.map_or("none, for no such cache was tried".to_owned(), at);
        let resident = &self.survey.all_resident;
        match self.verdict {
            Verdict::Met { best } => format!("met by {}", at(best)),
            Verdict::PolicyFailure { best, bound } => format!(
                "not met, a failure of policies: {} would meet it, but the best without the future is {}",
                at(bound),
                maybe(best)
            ),
            Verdict::WorkingSet { best, bound } => format!(
                "not met, the working set is too large: with the future known, {}; without, {}; with every expert in a \
                 slot, {:.2} tokens/s",
                maybe(bound),
                maybe(best),
                resident.tokens_per_second()
            ),
            Verdict::Compute => format!(
                "not met, computing alone is too slow: with every expert in a slot, {:.2} tokens/s, p95 {:.1} ms",
                resident.tokens_per_second(),
                1e3 * resident.quantile_seconds(0.95)
            ),
        }
    }

    fn row<'a>(&self, group: &[&'a Candidate]) -> Option<&'a Candidate> {
        let meets =
            |one: &&Candidate| !matches!(self.target, Target::Bytes(_)) && self.target.is_met(&one.speed.decode);
        let smallest = group.iter().copied().filter(meets).min_by_key(|one| one.setup.bytes);
        smallest.or_else(|| group.iter().copied().min_by(|a, b| slower(a).total_cmp(&slower(b))))
    }

    /// For each layout, policy and prefetcher the smallest cache that meets the target, or else the fastest.
    fn rows(&self) -> Vec<&Candidate> {
        let budget = match self.target {
            Target::Bytes(bytes) => bytes,
            _ => self.budget.unwrap_or(u64::MAX),
        };
        let mut groups: Vec<Vec<&Candidate>> = Vec::new();
        for candidate in self.survey.candidates.iter().filter(|candidate| candidate.setup.bytes <= budget) {
            let key = |one: &Candidate| (one.setup.layout, one.setup.policy, one.setup.prefetcher);
            match groups.iter_mut().find(|group| key(group[0]) == key(candidate)) {
                Some(group) => group.push(candidate),
                None => groups.push(vec![candidate]),
            }
        }
        groups.iter().filter_map(|group| self.row(group)).collect()
    }
}

fn slower(one: &Candidate) -> f64 {
    one.speed.decode.mean_seconds()
}

fn summary(candidate: &Candidate) -> String {
    let Candidate { setup, speed, .. } = candidate;
    format!(
        "{}, {} in {} ({}): {:.2} tokens/s, p95 {:.1} ms",
        setup.policy,
        match setup.prefetcher {
            expert_cache::PrefetcherKind::None => "no prefetching".to_owned(),
            prefetcher => format!("prefetching {prefetcher}"),
        },
        gib(setup.bytes),
        slots(setup),
        speed.decode.tokens_per_second(),
        1e3 * speed.decode.quantile_seconds(0.95)
    )
}

fn slots(setup: &Setup) -> String {
    match &setup.slots {
        Slots::PerLayer(slots) if setup.layout == Layout::Uniform => format!("{} slots a layer", slots[0]),
        Slots::PerLayer(slots) => {
            let (least, most) = (slots.iter().min().unwrap_or(&0), slots.iter().max().unwrap_or(&0));
            format!("{least} to {most} slots a layer")
        }
        Slots::SharedBytes(_) => "one pool of all layers".to_owned(),
    }
}

pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

impl Report {
    /// Returns the answer as text and tables.
    pub(crate) fn document(&self) -> Document {
        let mut document = Document::new();
        // Writing to a document cannot fail.
        let _ = self.write(&mut document);
        document
    }

    fn write(&self, f: &mut Document) -> fmt::Result {
        let [layers, experts, top_k] = self.geometry;
        writeln!(f, "trace:   {}, {} sequences, {} tokens", self.trace, self.sequences, self.tokens)?;
        if let Some(unused) = self.provenance.unused_layers_line() {
            writeln!(f, "         {unused}")?;
        }
        let (expert, all) = (self.size.expert_bytes[0] as f64 / 1e6, gib(self.survey.all_bytes));
        writeln!(f, "model:   {}, {layers} layers of {experts} experts, {top_k} a token", self.model)?;
        writeln!(f, "         {expert:.2} MB an expert, {all} all experts")?;
        let store = if self.from_disk { "disk" } else { "host memory" };
        writeln!(f, "machine: {}, experts in {store}", self.profile.name)?;
        let costs = &self.costs;
        writeln!(
            f,
            "         {:.3} ms a load, {:.3} ms an expert on the device, {:.3} ms on the host, {:.2} ms a token for the rest",
            1e3 * costs.load_seconds[0],
            1e3 * costs.device_expert.seconds(1, 1),
            1e3 * costs.host_expert.seconds(1, 1),
            1e3 * (costs.dense.seconds(1, 1) * layers as f64 + costs.head.seconds(1, 1)),
        )?;
        let target = match self.target {
            Target::TokensPerSecond(tokens) => format!("at least {tokens} tokens/s"),
            Target::P95Seconds(seconds) => format!("95 of 100 tokens within {:.3} ms", 1e3 * seconds),
            Target::Bytes(bytes) => format!("as fast as possible in {}", gib(bytes)),
        };
        let budget = self.budget.map_or(String::new(), |bytes| format!(", in {}", gib(bytes)));
        writeln!(f, "target:  {target}{budget}")?;
        writeln!(f, "verdict: {}", self.verdict())?;
        let figure = |value: f64| match self.target {
            Target::P95Seconds(_) => format!("{:.3} ms", 1e3 * value),
            _ => format!("{value:.3} tokens/s"),
        };
        match self.interval {
            Some((low, high)) => {
                writeln!(f, "         95 % interval over sequences: {} to {}", figure(low), figure(high))?
            }
            None if self.chosen().is_some() => writeln!(f, "         no interval: it takes two sequences")?,
            None => {}
        }
        let mut table = table([
            "layout",
            "policy",
            "prefetcher",
            "slots",
            "GiB",
            "hit %",
            "tokens/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "compute ms",
            "exposed ms",
            "hidden ms",
            "host ms",
            "prefetches: in time / late / useless",
        ]);
        for candidate in self.rows() {
            let Candidate { setup, prefetches, .. } = candidate;
            let decode = &candidate.speed.decode;
            let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
            let each = |seconds: f64| ms(seconds / decode.tokens.max(1) as f64);
            table.add_row([
                setup.layout.to_string(),
                format!("{}{}", setup.policy, if setup.is_online() { "" } else { " (bound)" }),
                setup.prefetcher.to_string(),
                slots(setup),
                format!("{:.2}", setup.bytes as f64 / (1u64 << 30) as f64),
                per_cent(candidate.hit_rate),
                format!("{:.2}", decode.tokens_per_second()),
                ms(decode.quantile_seconds(0.5)),
                ms(decode.quantile_seconds(0.95)),
                ms(decode.quantile_seconds(0.99)),
                each(decode.compute_seconds),
                each(decode.exposed_seconds),
                each(decode.hidden_seconds),
                each(decode.host_seconds),
                format!("{} / {} / {}", prefetches.useful, prefetches.late, prefetches.useless),
            ]);
        }
        writeln!(f, "\nSmallest cache of each kind that meets the target, or else the fastest:\n")?;
        f.table("", table);
        write!(f, "\nhit rates: {}", self.hit_rate_convention.description())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.document().fmt(f)
    }
}
