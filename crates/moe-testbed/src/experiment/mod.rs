//! An experiment as it stands in a file.

mod architecture;
mod effects;
mod points;
mod run_config;
mod run_figures;
mod run_folder;
mod study;

pub use architecture::{Architecture, DenseLayers, MatchedModel};
pub use effects::{DroppingEffect, Effects};
pub use run_config::RunConfig;
pub use run_figures::{Agreement, BesideShuffled, RunFigures, SrpFigures};
pub use run_folder::{RunEvent, RunFolder, RunSeconds, RunState, ValidationRecord};
pub use study::{CompleteRun, PointSummary, Spread, Study};

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use moe_model::{OlmoeConfig, OlmoeParams, RouterKind};
use points::{Settings, expand, merge};
use run_config::folder_of_run;
use serde::Deserialize;
use toml::Table;

use crate::{
    error::{Result, TestbedError, check, in_one_line},
    measure::{HeldOut, MeasureOptions, SpeedPlan},
    text::{DataOptions, Prepared},
    training::{TrainOptions, Trainer},
};

/// Fields of `[model]` and `[training]` that follow from the rest.
const DERIVED: [(&str, &str); 6] = [
    ("model", "vocab_size"),
    ("model", "max_position_embeddings"),
    ("model", "eos_token_ids"),
    ("model", "num_domains"),
    ("model", "router_seed"),
    ("training", "seed"),
];

/// An experiment: text, a base model and its training, and the points that change something, each run with every seed.
///
/// ```
/// use moe_testbed::Experiment;
/// let experiment = Experiment::parse("routers.toml".as_ref(), r#"
///     seeds = [1, 2]
///     [training]
///     steps = 100
///     [[points]]
///     model.router = ["softmax", "sigmoid"]
///     training.balancing.scope = ["none", "global"]
///     [[points]]
///     name = "reference"
///     model.router = "reference"
/// "#)?;
/// let names = ["softmax-none", "softmax-global", "sigmoid-none", "sigmoid-global", "reference"];
/// assert!(experiment.names().eq(names));
/// # Ok::<(), moe_testbed::TestbedError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Experiment {
    path: PathBuf,
    file: File,
    points: Vec<Settings>,
}

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Every point is run with each of these.
    seeds: Vec<u32>,
    /// The point that all others are compared with.
    baseline: Option<String>,
    /// How far the parameters of a changed architecture may be from those of the base model, as a share.
    #[serde(default = "two_per_cent")]
    parameters_within: f64,
    /// Steps between checkpoints.
    #[serde(default = "hundred")]
    checkpoint_every: u64,
    #[serde(default)]
    data: DataOptions,
    #[serde(default)]
    model: Table,
    #[serde(default)]
    training: Table,
    #[serde(default)]
    measure: MeasureOptions,
    points: Vec<Table>,
}

fn two_per_cent() -> f64 {
    0.02
}

fn hundred() -> u64 {
    100
}

/// The base model: small enough to train on one core in minutes.
fn base_model() -> OlmoeParams {
    OlmoeParams {
        hidden_size: 64,
        intermediate_size: 32,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        num_experts: 16,
        num_experts_per_tok: 2,
        norm_topk_prob: true,
        tie_word_embeddings: true,
        initializer_range: 0.05,
        ..OlmoeParams::default()
    }
}

impl Experiment {
    /// Reads an experiment.
    ///
    /// # Errors
    /// [`TestbedError::Io`] or [`TestbedError::Toml`], which says where in the file what is wrong.
    pub fn read(path: &Path) -> Result<Experiment> {
        let text = fs::read_to_string(path).map_err(TestbedError::io(path))?;
        Experiment::parse(path, &text)
    }

    /// Reads an experiment from the text of a file at `path`.
    ///
    /// # Errors
    /// [`TestbedError::Toml`].
    pub fn parse(path: &Path, text: &str) -> Result<Experiment> {
        let failed = |problem: String| TestbedError::Toml { path: path.to_owned(), problem };
        let file: File = toml::from_str(text).map_err(|error| failed(error.to_string().trim_end().to_owned()))?;
        let named = |problem: TestbedError| failed(in_one_line(&problem));
        let distinct: BTreeSet<u32> = file.seeds.iter().copied().collect();
        let seeds_fit = !file.seeds.is_empty() && distinct.len() == file.seeds.len();
        check("seeds", format!("{:?}", file.seeds), seeds_fit, "one or more different numbers").map_err(named)?;
        check("checkpoint_every", file.checkpoint_every, file.checkpoint_every > 0, "1 and more").map_err(named)?;
        let within = file.parameters_within;
        check("parameters_within", within, (0.0..1.0).contains(&within), "0 to below 1").map_err(named)?;
        let points: Vec<Settings> = file
            .points
            .iter()
            .enumerate()
            .map(|(number, table)| {
                let at = |problem| failed(format!("points number {}: {problem}", number + 1));
                expand(table).map_err(at)
            })
            .collect::<Result<Vec<_>>>()?
            .concat();
        check("points", points.len(), !points.is_empty(), "1 and more").map_err(named)?;
        let mut names = BTreeSet::new();
        if let Some(twice) = points.iter().find(|point| !names.insert(&point.name)) {
            return Err(failed(format!("two points have the name {}, give names with `name`", twice.name)));
        }
        if let Some(baseline) = file.baseline.as_ref().filter(|baseline| !names.contains(baseline)) {
            return Err(failed(format!("baseline is {baseline:?}, no point has that name")));
        }
        Ok(Experiment { path: path.to_owned(), file, points })
    }

    /// Names of the points, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.points.iter().map(|point| point.name.as_str())
    }

    /// The point that all others are compared with, if the file names one.
    pub fn baseline(&self) -> Option<&str> {
        self.file.baseline.as_deref()
    }

    /// Folders of the runs below that of the experiment, point by point and seed by seed.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let seeds = |name| self.file.seeds.iter().map(move |&seed| folder_of_run(name, seed.into()));
        self.names().flat_map(seeds)
    }

    /// The seeds.
    pub fn seeds(&self) -> &[u32] {
        &self.file.seeds
    }

    /// Prepares the text.
    ///
    /// # Errors
    /// As [`DataOptions::prepare`].
    pub fn prepare(&self) -> Result<Prepared> {
        self.file.data.prepare(self.path.parent().unwrap_or(Path::new("")))
    }

    /// The runs, point by point and seed by seed, each tried as far as creating the model.
    ///
    /// # Errors
    /// [`TestbedError::ImpossiblePoints`] lists all points that cannot be run, with the reasons.
    pub fn runs(&self, prepared: &Prepared) -> Result<Vec<RunConfig>> {
        let mut impossible = Vec::new();
        let mut runs = Vec::new();
        for point in &self.points {
            match self.runs_of(point, prepared) {
                Ok(of_point) => runs.extend(of_point),
                Err(error) => impossible.push((point.name.clone(), in_one_line(&error))),
            }
        }
        if impossible.is_empty() {
            return Ok(runs);
        }
        Err(TestbedError::ImpossiblePoints { path: self.path.clone(), points: self.points.len(), impossible })
    }

    fn runs_of(&self, point: &Settings, prepared: &Prepared) -> Result<Vec<RunConfig>> {
        let training: TrainOptions = self.section("training", &Table::new(), &self.file.training, &point.training)?;
        self.file.measure.check(training.length)?;
        let base = Table::try_from(base_model()).expect("parameters are a table");
        let derived = |router: RouterKind, seed: u64, params: OlmoeParams| OlmoeParams {
            router,
            vocab_size: self.file.data.vocabulary,
            max_position_embeddings: training.length,
            eos_token_ids: vec![0],
            num_domains: if router == RouterKind::Reference { prepared.tokens.domains.len() } else { 0 },
            router_seed: if router.has_logits() { 0 } else { seed },
            ..params
        };
        let model: OlmoeParams = self.section("model", &base, &self.file.model, &point.model)?;
        let run = |&seed: &u32| {
            let seed = u64::from(seed);
            let params = derived(model.router, seed, model.clone());
            let config = OlmoeConfig::new(params)?;
            let model = match &point.architecture {
                Some(changes) => {
                    let unchanged = Architecture {
                        experts: model.num_experts,
                        top_k: model.num_experts_per_tok,
                        ..Architecture::default()
                    };
                    let unchanged = Table::try_from(unchanged).expect("an architecture is a table");
                    let changed: Architecture = self.section("architecture", &unchanged, &Table::new(), changes)?;
                    changed.matched(&config, self.file.parameters_within)?.config.params().clone()
                }
                None => config.params().clone(),
            };
            let training = TrainOptions { seed, ..training.clone() };
            Ok(RunConfig {
                point: point.name.clone(),
                data: self.file.data.clone(),
                model,
                training,
                checkpoint_every: self.file.checkpoint_every,
                measure: self.file.measure.clone(),
            })
        };
        let runs: Vec<RunConfig> = self.file.seeds.iter().map(run).collect::<Result<_>>()?;
        if let Some(first) = runs.first() {
            let config = first.config()?;
            Trainer::new(&config, &prepared.tokens, first.training.clone(), &Device::Cpu)?;
            HeldOut::new(&prepared.tokens, first.measure.sequences, first.training.length)?;
            SpeedPlan::new(&config, &first.measure.speed)?;
        }
        Ok(runs)
    }

    /// A section of the file under the changes of a point.
    fn section<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        base: &Table,
        section: &Table,
        changes: &Table,
    ) -> Result<T> {
        let failed = |problem| TestbedError::Toml { path: self.path.clone(), problem };
        for table in [section, changes] {
            if let Some((_, field)) = DERIVED.iter().find(|(of, field)| *of == name && table.contains_key(*field)) {
                return Err(failed(format!("{name}.{field} follows from the rest, leave it out")));
            }
        }
        let merged = merge(merge(base.clone(), section), changes);
        merged
            .try_into()
            .map_err(|error| failed(format!("{name}: {}", error.to_string().trim_end().replace('\n', " "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "
        seeds = [1, 2]
        data.vocabulary = 300
        data.synthetic = { domains = 3, bytes = 20000 }
        model = { hidden_size = 16, num_hidden_layers = 2, intermediate_size = 8, num_experts = 6 }
        training = { steps = 4, batch = 2, micro_batch = 2, length = 16 }
        measure = { sequences = 2, windows = [4], speed.memory_gigabytes = 20.0 }
        ";

    fn parse(text: &str) -> Result<Experiment> {
        Experiment::parse(Path::new("x.toml"), text)
    }

    fn message(points: &str) -> String {
        let experiment = match parse(&format!("{SMALL}{points}")) {
            Ok(experiment) => experiment,
            Err(error) => return error.to_string(),
        };
        let prepared = experiment.prepare().unwrap();
        experiment.runs(&prepared).unwrap_err().to_string()
    }

    #[test]
    fn points_change_the_base_and_seeds_follow() {
        let points = "
            [[points]]
            model.router = [\"reference\", \"hash\"]
            training.balancing.scope = \"none\"
            [[points]]
            name = \"few\"
            architecture = { experts = 3 }
            ";
        let experiment = parse(&format!("{SMALL}{points}")).unwrap();
        let prepared = experiment.prepare().unwrap();
        let runs = experiment.runs(&prepared).unwrap();
        let folders: Vec<_> = runs.iter().map(|run| run.folder().display().to_string()).collect();
        let expected = ["reference", "hash", "few"].map(|point| [1, 2].map(|seed| format!("{point}/seed-{seed}")));
        assert_eq!(folders, expected.concat());
        assert_eq!((runs[0].model.num_domains, runs[0].model.router_seed), (3, 0));
        assert_eq!((runs[3].model.num_domains, runs[3].model.router_seed, runs[3].seed()), (0, 2, 2));
        let few = &runs[4].model;
        assert_eq!((few.num_experts, few.intermediate_size, few.num_experts_per_tok), (3, 16, 2));
        assert_eq!((few.vocab_size, few.max_position_embeddings), (300, 16));
        // A configuration survives its file.
        let text = toml::to_string(&runs[0]).unwrap();
        assert_eq!(toml::from_str::<RunConfig>(&text).unwrap(), runs[0]);
    }

    #[test]
    fn impossible_points_are_listed_together() {
        let points = "
            [[points]]
            name = \"fine\"
            [[points]]
            model.num_experts_per_tok = [2, 7]
            [[points]]
            name = \"biased\"
            training.balancing.bias_rate = 0.1
            [[points]]
            name = \"misspelled\"
            training.balancing.scop = \"none\"
            [[points]]
            name = \"seeded\"
            training.seed = 3
            [[points]]
            name = \"reference\"
            model = { router = \"reference\", num_experts_per_tok = 3 }
            ";
        let message = message(points);
        let expected = [
            "x.toml: 5 of 7 points are impossible:",
            "num_experts_per_tok=7: model failed: num_experts_per_tok is 7, must be at most num_experts 6",
            "biased: bias rate is 0.1, allowed are 0, the router softmax has no biases",
            "misspelled: x.toml: training: unknown field `scop`",
            "seeded: x.toml: training.seed follows from the rest, leave it out",
            "reference: model failed: num_domains is 3",
        ];
        for part in expected {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    }

    #[test]
    fn broken_files_name_the_place() {
        let place = |text: &str, parts: &[&str]| {
            let message = parse(text).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message}\nlacks {part}");
            }
        };
        place("seeds = [1]\npoint = 1", &["x.toml", "line 2", "unknown field `point`"]);
        place("seeds = [\"a\"]\npoints = []", &["line 1", "invalid type: string \"a\", expected u32"]);
        place("seeds = [1, 1]\npoints = [{}]", &["seeds is [1, 1], allowed are one or more different numbers"]);
        place("seeds = [1]\npoints = []", &["points is 0, allowed are 1 and more"]);
        place("seeds = [1]\ndata.synthetic.overlp = 1", &["line 2", "unknown field `overlp`"]);
        let named = "seeds = [1]\n[[points]]\nname = \"a\"\n[[points]]\nname = \"a\"";
        place(named, &["two points have the name a"]);
        place("seeds = [1]\nbaseline = \"b\"\npoints = [{ name = \"a\" }]", &["baseline is \"b\""]);
    }
}
