//! Figures of a run, as a table and as JSON.

use std::fmt::{self, Write as _};

use expert_cache::{Convention, Speed};
use moe_offload::{HostReport, Latency, LayerReport};
use moescope_cli::{Document, Provenance, per_cent, table};
use serde::Serialize;

use super::calibrate::{Prices, median};
use super::case::{Case, Predicted};
use super::steps::Steps;
use super::stores::Ahead;
use super::workload::{Layers, Workload};

/// Everything that `moescope run` found.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Layers of experts that were run.
    pub(crate) layers: Layers,
    /// Seconds of a load from host memory.
    pub(crate) load_seconds: f64,
    /// Seconds more of a load from disk before the first run.
    pub(crate) disk_seconds: f64,
    /// Tokens a second with all experts resident, or where they do not fit in memory, with others in their place.
    pub(crate) resident: Speeds,
    /// Tokens a second straight from the mapped files, where the experts do not fit in memory.
    pub(crate) mapped: Option<Speeds>,
    /// How all hit rates are counted.
    pub(crate) hit_rate_convention: Convention,
    pub(crate) rows: Vec<Row>,
    /// The facts about the trace that was replayed.
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
}

/// Tokens a second of both phases; a phase without tokens has none.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Speeds {
    pub(crate) decode: Option<f64>,
    pub(crate) prefill: Option<f64>,
}

/// Predicted and measured speed of one case.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) rho: f64,
    pub(crate) slots: usize,
    pub(crate) policy: String,
    pub(crate) prefetcher: String,
    pub(crate) misses: String,
    /// What is read ahead, if anything.
    pub(crate) read_ahead: Option<Ahead>,
    /// Hits of the slots per access of decoded tokens, simulated.
    pub(crate) simulated_hit_rate: f64,
    /// Hits of the slots per access of decoded tokens, counted in the last run.
    pub(crate) counted_hit_rate: f64,
    /// Hits of a cache in host memory per expert that it was asked for, simulated without threads and without reading ahead.
    pub(crate) simulated_host_hit_rate: Option<f64>,
    /// Hits of a cache in host memory per expert that it was asked for, counted in the last run.
    pub(crate) counted_host_hit_rate: Option<f64>,
    pub(crate) predicted: Speeds,
    pub(crate) measured: Speeds,
    /// Seconds more of a load from disk at that time.
    pub(crate) disk_seconds: f64,
    /// What the bank counted in the last run.
    pub(crate) bank: LayerReport,
}

impl Speeds {
    fn measured(steps: &Steps) -> Speeds {
        let speed = |seconds: f64| seconds.is_finite().then(|| 1.0 / seconds);
        Speeds { decode: speed(steps.decode_seconds()), prefill: speed(steps.prefill_seconds()) }
    }

    fn predicted(speed: &Speed) -> Speeds {
        let of = |phase: &expert_cache::PhaseSpeed| (phase.tokens > 0).then(|| phase.tokens_per_second());
        Speeds { decode: of(&speed.decode), prefill: of(&speed.prefill) }
    }
}

impl Row {
    pub(crate) fn new(case: &Case, predicted: &Predicted, steps: &Steps, bank: &LayerReport, disk_seconds: f64) -> Row {
        Row {
            rho: case.rho,
            slots: case.slots,
            policy: case.policy.to_string(),
            prefetcher: case.prefetcher.to_string(),
            misses: case.misses.to_string(),
            read_ahead: case.ahead,
            simulated_hit_rate: predicted.counts.hit_rate(),
            counted_hit_rate: bank.decode.counters.counts.hit_rate(),
            simulated_host_hit_rate: predicted.host.map(|host| host.hit_rate()),
            counted_host_hit_rate: bank.host.map(|host| host.counters.hit_rate()),
            predicted: Speeds::predicted(&predicted.speed),
            measured: Speeds::measured(steps),
            disk_seconds,
            bank: *bank,
        }
    }
}

/// The tokens a second of one phase.
type OfPhase = fn(&Speeds) -> Option<f64>;

/// What the seconds of a token were predicted too high by, as a share of those measured.
fn error(predicted: Option<f64>, measured: Option<f64>) -> Option<f64> {
    Some(measured? / predicted? - 1.0)
}

impl Report {
    pub(crate) fn new(
        workload: &Workload,
        prices: &Prices,
        resident: &Steps,
        mapped: Option<&Steps>,
        rows: Vec<Row>,
    ) -> Report {
        Report {
            layers: workload.layers,
            load_seconds: prices.costs(&|_| 0.0, 0.0).load_seconds[0],
            disk_seconds: prices.disk_seconds,
            resident: Speeds::measured(resident),
            mapped: mapped.map(Speeds::measured),
            hit_rate_convention: Convention::Engine,
            rows,
            provenance: workload.provenance.clone(),
        }
    }

    /// What the last run of each case counted of host memory and of reads ahead, if there was either.
    fn below_the_slots(&self, f: &mut Document) -> fmt::Result {
        if self.rows.iter().all(|row| row.bank.host.is_none() && row.read_ahead.is_none()) {
            return Ok(());
        }
        let mut table = table([
            "rho",
            "policy",
            "prefetch",
            "misses",
            "counted host hit %",
            "wished ahead",
            "dropped",
            "loads from disk",
            "read ahead",
            "p50 ms",
            "p99 ms",
            "max ms",
        ]);
        for row in &self.rows {
            let host = |show: &dyn Fn(&HostReport) -> String| row.bank.host.as_ref().map_or("-".to_owned(), show);
            let milliseconds = |seconds: fn(&Latency) -> f64| host(&|host| format!("{:.2}", 1e3 * seconds(&host.load)));
            let wished = |count: u64| row.read_ahead.map_or("-".to_owned(), |_| count.to_string());
            table.add_row([
                row.rho.to_string(),
                row.policy.clone(),
                row.prefetcher.clone(),
                row.misses.clone(),
                host(&|host| per_cent(host.counters.hit_rate())),
                wished(row.bank.read_ahead.issued),
                wished(row.bank.read_ahead.dropped),
                host(&|host| host.counters.loads.to_string()),
                host(&|host| host.counters.ahead.to_string()),
                milliseconds(|load| load.p50_seconds),
                milliseconds(|load| load.p99_seconds),
                milliseconds(|load| load.max_seconds),
            ]);
        }
        f.table("", table);
        writeln!(f)
    }

    /// Returns the figures as text and tables.
    pub(crate) fn document(&self) -> Document {
        let mut document = Document::new();
        // Writing to a document cannot fail.
        let _ = self.write(&mut document);
        document
    }

    fn write(&self, f: &mut Document) -> fmt::Result {
        let speed = |speed: Option<f64>| speed.map_or("-".to_owned(), |speed| format!("{speed:.1}"));
        let share = |part: Option<f64>, whole: Option<f64>| match (part, whole) {
            (Some(part), Some(whole)) => format!("{:.1}", 100.0 * part / whole),
            _ => "-".to_owned(),
        };
        let signed = |error: Option<f64>| error.map_or("-".to_owned(), |error| format!("{:+.1}", 100.0 * error));
        let mut table = table([
            "rho",
            "slots",
            "policy",
            "prefetch",
            "misses",
            "hit %",
            "host hit %",
            "decode tokens/s",
            "% of resident",
            "predicted",
            "error %",
            "prefill tokens/s",
            "predicted",
            "error %",
        ]);
        for row in &self.rows {
            let (measured, predicted) = (row.measured, row.predicted);
            table.add_row([
                row.rho.to_string(),
                row.slots.to_string(),
                row.policy.clone(),
                row.prefetcher.clone(),
                row.misses.clone(),
                per_cent(row.simulated_hit_rate),
                row.simulated_host_hit_rate.map_or("-".to_owned(), per_cent),
                speed(measured.decode),
                share(measured.decode, self.resident.decode),
                speed(predicted.decode),
                signed(error(predicted.decode, measured.decode)),
                speed(measured.prefill),
                speed(predicted.prefill),
                signed(error(predicted.prefill, measured.prefill)),
            ]);
        }
        f.table("", table);
        writeln!(f, "\nhit rates: {}", self.hit_rate_convention.description())?;
        self.below_the_slots(f)?;
        let Layers { run, of, skipped_blocks } = self.layers;
        write!(f, "{run} of {of} layers of experts were run")?;
        match skipped_blocks {
            0 => writeln!(f)?,
            _ => writeln!(f, "; {skipped_blocks} blocks of the weights only predict the token after the next")?,
        }
        if let Some(unused) = self.provenance.unused_layers_line() {
            writeln!(f, "{unused}")?;
        }
        let (memory, disk) = (1e6 * self.load_seconds, 1e6 * self.disk_seconds);
        let resident =
            format!("{} decoded and {} prefilled tokens/s", speed(self.resident.decode), speed(self.resident.prefill));
        match &self.mapped {
            None => writeln!(f, "all experts resident: {resident}")?,
            Some(mapped) => {
                writeln!(f, "were all experts resident (others in their place): {resident}")?;
                let (decode, prefill) = (speed(mapped.decode), speed(mapped.prefill));
                writeln!(f, "straight from the mapped files: {decode} decoded and {prefill} prefilled tokens/s")?;
            }
        }
        match self.disk_seconds {
            0.0 => writeln!(f, "a load takes {memory:.1} us")?,
            _ => writeln!(f, "a load takes {memory:.1} us from host memory, {disk:.1} us more from disk")?,
        }
        let kinds: [(&str, OfPhase); 2] = [("decode", |speeds| speeds.decode), ("prefill", |speeds| speeds.prefill)];
        for (name, of) in kinds {
            let errors = |predicted: &dyn Fn(&Row) -> Option<f64>| {
                let errors = self.rows.iter().filter_map(|row| error(predicted(row), of(&row.measured)));
                let errors: Vec<f64> = errors.map(|error| 100.0 * error.abs()).collect();
                (!errors.is_empty())
                    .then(|| (median(errors.iter().copied()), errors.iter().copied().fold(0.0, f64::max)))
            };
            let (ours, naive) = (errors(&|row| of(&row.predicted)), errors(&|_| of(&self.resident)));
            if let (Some((middle, worst)), Some((naive, naive_worst))) = (ours, naive) {
                writeln!(
                    f,
                    "{name}: error of the predicted seconds {middle:.1} % in the median, {worst:.1} % at most; of taking the \
                     resident speed {naive:.1} % and {naive_worst:.1} %"
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.document().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_how_many_layers_were_run() {
        let report = |run, of, skipped_blocks| {
            let none = Speeds { decode: None, prefill: None };
            let layers = Layers { run, of, skipped_blocks };
            Report {
                layers,
                load_seconds: 0.0,
                disk_seconds: 0.0,
                resident: none,
                mapped: None,
                hit_rate_convention: Convention::Engine,
                rows: Vec::new(),
                provenance: Provenance::default(),
            }
            .to_string()
        };
        assert!(report(1, 2, 0).contains("\n1 of 2 layers of experts were run\n"));
        let skipped =
            "\n46 of 46 layers of experts were run; 1 blocks of the weights only predict the token after the next\n";
        assert!(report(46, 46, 1).contains(skipped));
    }
}
