//! Figures of a run, as a table and as JSON.

use std::fmt;

use expert_cache::{CostModel, Counts, Speed};
use moe_examples::{per_cent, table};
use serde::Serialize;

use crate::calibrate::median;
use crate::case::Case;
use crate::steps::Steps;

/// Everything that `offload speed` found.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Seconds of a load.
    pub(crate) load_seconds: f64,
    /// Tokens a second with all experts resident.
    pub(crate) resident: Speeds,
    pub(crate) rows: Vec<Row>,
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
    /// Hits an access of decoded tokens.
    pub(crate) hit_rate: f64,
    pub(crate) predicted: Speeds,
    pub(crate) measured: Speeds,
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
    pub(crate) fn new(case: &Case, slots: usize, counts: &Counts, predicted: &Speed, steps: &Steps) -> Row {
        Row {
            rho: case.rho,
            slots,
            policy: case.policy.to_string(),
            prefetcher: case.prefetcher.to_string(),
            hit_rate: counts.hit_rate(),
            predicted: Speeds::predicted(predicted),
            measured: Speeds::measured(steps),
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
    pub(crate) fn new(costs: &CostModel, resident: &Steps, rows: Vec<Row>) -> Report {
        Report { load_seconds: costs.load_seconds[0], resident: Speeds::measured(resident), rows }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |speed: Option<f64>| speed.map_or("-".to_owned(), |speed| format!("{speed:.1}"));
        let signed = |error: Option<f64>| error.map_or("-".to_owned(), |error| format!("{:+.1}", 100.0 * error));
        let mut table = table([
            "rho",
            "slots",
            "policy",
            "prefetch",
            "hit %",
            "decode tokens/s",
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
                per_cent(row.hit_rate),
                speed(measured.decode),
                speed(predicted.decode),
                signed(error(predicted.decode, measured.decode)),
                speed(measured.prefill),
                speed(predicted.prefill),
                signed(error(predicted.prefill, measured.prefill)),
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "all experts resident: {} decoded and {} prefilled tokens/s; a load takes {:.1} us",
            speed(self.resident.decode),
            speed(self.resident.prefill),
            1e6 * self.load_seconds
        )?;
        let kinds: [(&str, OfPhase); 2] = [("decode", |speeds| speeds.decode), ("prefill", |speeds| speeds.prefill)];
        for (name, of) in kinds {
            let errors = self.rows.iter().filter_map(|row| error(of(&row.predicted), of(&row.measured)));
            let errors: Vec<f64> = errors.map(f64::abs).collect();
            if !errors.is_empty() {
                let (middle, worst) = (median(errors.iter().copied()), errors.iter().copied().fold(0.0, f64::max));
                let (middle, worst) = (100.0 * middle, 100.0 * worst);
                writeln!(
                    f,
                    "{name}: error of the predicted seconds {middle:.1} % in the median, {worst:.1} % at most"
                )?;
            }
        }
        Ok(())
    }
}
