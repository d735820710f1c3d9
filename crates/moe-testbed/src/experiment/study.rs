//! The runs of an experiment side by side: means and spreads over seeds, distances to a reference.

use std::collections::BTreeMap;
use std::path::Path;

use moe_model::RouterKind;
use serde::Serialize;

use super::{
    Experiment,
    run_config::RunConfig,
    run_figures::RunFigures,
    run_folder::{RunFolder, RunSeconds, RunState, ValidationRecord},
};
use crate::{
    error::{Result, TestbedError},
    training::BalanceScope,
};

/// The complete runs of an experiment.
#[derive(Clone, Debug)]
pub struct Study {
    /// The point that all others are compared with, if there is one.
    pub reference: Option<String>,
    /// The complete runs, in the order of the experiment.
    pub runs: Vec<CompleteRun>,
    /// Folders of the runs that are not complete.
    pub missing: Vec<String>,
}

/// A complete run.
#[derive(Clone, Debug)]
pub struct CompleteRun {
    /// The run.
    pub config: RunConfig,
    /// What was measured.
    pub figures: RunFigures,
    /// How good the model was on the way.
    pub validations: Vec<ValidationRecord>,
    /// What it took.
    pub seconds: RunSeconds,
}

/// A figure over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation with the divisor `n - 1`; 0 for one seed.
    pub deviation: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// Number of seeds.
    pub seeds: usize,
}

/// The runs of a point together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointSummary {
    /// Name of the point.
    pub point: String,
    /// Its router, as [`RunConfig::router`] names it.
    pub router: String,
    /// Over which tokens the load-balance loss asked for an even load.
    pub scope: BalanceScope,
    /// Its capacity factor, if tokens were dropped.
    pub capacity_factor: Option<f64>,
    /// Seconds that a run took to train, mean.
    pub training_seconds: f64,
    /// Every figure by name, those of [`RunFigures::by_name`] and, where there is a reference, `distance_*` to it:
    /// the figure of the reference minus that of the run with the same seed, the other way round for the loss, so that 0
    /// is as good as the reference. `share_*` is how far the run is on the way from its own null to the reference.
    pub figures: BTreeMap<String, Spread>,
}

/// Figures whose distance to the reference is told, their nulls, and whether less is better.
const DISTANCES: [(&str, Option<&str>, bool); 5] = [
    ("purity", Some("purity_shuffled_labels"), false),
    ("nmi", Some("nmi_shuffled_labels"), false),
    ("precision", Some("precision_shuffled_labels"), false),
    ("utilization", None, false),
    ("validation_loss", None, true),
];

impl Spread {
    /// Mean and spread of some values; `None` if there is none.
    ///
    /// ```
    /// use moe_testbed::Spread;
    /// let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
    /// // Deviations -2, -1, 3: sqrt(14 / 2).
    /// assert_eq!((spread.mean, spread.deviation, spread.min, spread.max), (3.0, 7f64.sqrt(), 1.0, 6.0));
    /// assert_eq!(Spread::of(&[5.0]).unwrap().deviation, 0.0);
    /// ```
    pub fn of(values: &[f64]) -> Option<Spread> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Spread {
            mean,
            deviation: if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 },
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            seeds: values.len(),
        })
    }
}

impl Study {
    /// Reads the runs of an experiment below a folder.
    ///
    /// The point that others are compared with is the one that the experiment names, otherwise the first one with the
    /// reference router.
    ///
    /// # Errors
    /// [`TestbedError::NoRuns`] if none is complete; as [`RunFolder::open`] and [`RunFolder::figures`].
    pub fn read(experiment: &Experiment, folder: &Path) -> Result<Study> {
        let (mut runs, mut missing) = (Vec::new(), Vec::new());
        for path in experiment.folders() {
            let run = folder.join(&path);
            let complete = run.exists().then(|| RunFolder::open(&run)).transpose()?;
            match complete.filter(|run| run.state() == RunState::Complete) {
                Some(run) => {
                    let (config, figures) = (run.config().clone(), run.figures()?);
                    let (validations, seconds) = (run.validations()?, run.seconds()?);
                    runs.push(CompleteRun { config, figures, validations, seconds });
                }
                None => missing.push(path.display().to_string()),
            }
        }
        if runs.is_empty() {
            return Err(TestbedError::NoRuns { path: folder.to_owned() });
        }
        let first = runs.iter().find(|run| run.config.model.router == RouterKind::Reference);
        let first = first.map(|run| run.config.point.clone());
        let reference = experiment.baseline().map(str::to_owned).or(first);
        Ok(Study { reference, runs, missing })
    }

    /// The points in the order of the experiment.
    pub fn points(&self) -> Vec<PointSummary> {
        let mut names: Vec<&str> = self.runs.iter().map(|run| run.config.point.as_str()).collect();
        names.dedup();
        names.into_iter().filter_map(|name| self.point(name)).collect()
    }

    fn point(&self, name: &str) -> Option<PointSummary> {
        let runs: Vec<&CompleteRun> = self.runs.iter().filter(|run| run.config.point == name).collect();
        let first = runs.first()?;
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for run in &runs {
            let named = run.figures.by_name();
            let distances = self.reference_of(run).map(|reference| distances(&named, &reference.by_name()));
            for (name, value) in named.into_iter().chain(distances.into_iter().flatten()) {
                values.entry(name).or_default().push(value);
            }
        }
        let seconds = runs.iter().map(|run| run.seconds.training).sum::<f64>() / runs.len() as f64;
        Some(PointSummary {
            point: name.to_owned(),
            router: first.config.router(),
            scope: first.config.training.balancing.scope,
            capacity_factor: first.config.training.balancing.capacity_factor,
            training_seconds: seconds,
            figures: values.into_iter().filter_map(|(name, values)| Some((name, Spread::of(&values)?))).collect(),
        })
    }

    /// The figures of the reference with the seed of a run.
    fn reference_of(&self, run: &CompleteRun) -> Option<&RunFigures> {
        let reference = self.reference.as_deref()?;
        let same = |other: &&CompleteRun| other.config.point == reference && other.config.seed() == run.config.seed();
        self.runs.iter().find(same).map(|run| &run.figures)
    }
}

/// Distances to a reference, and shares of the way to it.
fn distances(run: &BTreeMap<String, f64>, reference: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (name, null, less) in DISTANCES {
        let (Some(&ours), Some(&best)) = (run.get(name), reference.get(name)) else { continue };
        found.push((format!("distance_{name}"), if less { ours - best } else { best - ours }));
        let null = null.and_then(|null| Some((*run.get(null)?, *reference.get(null)?)));
        if let Some((of_run, of_reference)) = null.filter(|(_, null)| best > *null) {
            found.push((format!("share_{name}"), (ours - of_run) / (best - of_reference)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_zero_for_the_reference_and_shares_one() {
        let figures = |purity, loss| {
            BTreeMap::from([
                ("purity".to_owned(), purity),
                ("purity_shuffled_labels".to_owned(), 0.25),
                ("validation_loss".to_owned(), loss),
            ])
        };
        let reference = figures(0.75, 2.0);
        let expected = [("distance_purity", 0.0), ("share_purity", 1.0), ("distance_validation_loss", 0.0)];
        assert_eq!(distances(&reference, &reference), expected.map(|(name, value)| (name.to_owned(), value)));
        let expected = [("distance_purity", 0.375), ("share_purity", 0.25), ("distance_validation_loss", 0.5)];
        let found = distances(&figures(0.375, 2.5), &reference);
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
