//! Compares the runs of an experiment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lrc_metrics::pearson;
use moe_testbed::{DroppingEffect, Effects, Experiment, PointSummary, Spread, Study};
use moescope_cli::{Document, Files, Table, no_formula, table, whole, write_csv, write_json, write_text};
use serde::Serialize;

use super::figures::{self, Column, TABLES};
use super::page;
use super::run::EXPERIMENT;

/// Compare the runs of an experiment: tables, plots, one HTML page.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope testbed report target/testbed/smoke")]
pub(crate) struct Arguments {
    /// Folder of the runs, as `run` left it; complete runs count, others are named
    folder: PathBuf,
    /// Window length of SRP and SCH in tables and plots [default: 16, or the longest measured]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..))]
    window: Option<usize>,
    /// Folder for the report: report.html, report.json, points.csv, runs.csv [default: that of the runs]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Put a ' in front of names of points in the CSV files that a spreadsheet would take for formulas: those that begin
    /// with = + - @, a tab or a carriage return
    #[arg(long)]
    csv_safe: bool,
}

/// Figures whose variation is split, and that dropping is asked about.
const EFFECTS: [&str; 6] = ["nmi", "purity", "utilization", "validation_loss", "lru", "tokens_per_second"];

/// Everything that is reported.
#[derive(Serialize)]
pub(crate) struct Report {
    /// The point that others are compared with.
    pub(crate) reference: Option<String>,
    /// Window length of SRP and SCH.
    pub(crate) window: usize,
    /// Machine of the predicted speed.
    pub(crate) machine: String,
    /// Size of the grown model, and the memory it has.
    pub(crate) gigabytes: [f64; 2],
    pub(crate) points: Vec<PointSummary>,
    /// By figure.
    effects: BTreeMap<&'static str, Effects>,
    dropping: Vec<DroppingEffect>,
    /// Correlation of SRP with a figure over points.
    correlations: BTreeMap<&'static str, f64>,
    /// Seconds of training, all runs together.
    training_seconds: f64,
    missing: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let out = arguments.out.as_ref().unwrap_or(&arguments.folder);
    let files = ["report.html", "report.json", "points.csv", "runs.csv"];
    Files::new().writes_in("--out", out, &files).check()?;
    let file = arguments.folder.join(EXPERIMENT);
    let experiment = Experiment::read(&file).context("give the folder that `moescope testbed run` made")?;
    let study = Study::read(&experiment, &arguments.folder)?;
    let report = Report::new(&study, arguments.window)?;
    moescope_cli::outln!("{}", report.document());
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let name = if arguments.csv_safe { no_formula } else { str::to_owned };
    write_points(&out.join("points.csv"), &report.points, name)?;
    write_runs(&out.join("runs.csv"), &study, name)?;
    write_json(&out.join("report.json"), &report)?;
    let html = out.join("report.html");
    write_text(&html, &page::render(&report, &study))?;
    moescope_cli::outln!("report: {}", html.display());
    Ok(())
}

impl Report {
    fn new(study: &Study, window: Option<usize>) -> Result<Report> {
        let measure = &study.runs[0].config.measure;
        let longest = measure.windows.iter().copied().max().unwrap_or(1);
        let window = window.unwrap_or(if measure.windows.contains(&16) { 16 } else { longest });
        ensure!(measure.windows.contains(&window), "--window is {window}, measured are {:?}", measure.windows);
        let points = study.points();
        let with_srp = |figure: &str| {
            let mean = |point: &PointSummary, name: &str| point.figures.get(name).map(|spread| spread.mean);
            let pair = |point: &PointSummary| Some((mean(point, &format!("srp_{window}"))?, mean(point, figure)?));
            let (srp, other): (Vec<f64>, Vec<f64>) = points.iter().filter_map(pair).unzip();
            // Two points lie on a line whatever they are.
            pearson(&srp, &other).filter(|_| srp.len() > 2)
        };
        let correlated = EFFECTS.into_iter().chain(["load_deviation_percent", "specialization", "belady"]);
        Ok(Report {
            window,
            machine: study.runs[0].figures.speed.machine.clone(),
            gigabytes: [measure.speed.model_gigabytes, measure.speed.memory_gigabytes],
            effects: EFFECTS.into_iter().filter_map(|figure| Some((figure, study.effects(figure)?))).collect(),
            dropping: study.dropping(&EFFECTS),
            correlations: correlated.filter_map(|figure| Some((figure, with_srp(figure)?))).collect(),
            training_seconds: study.runs.iter().map(|run| run.seconds.training).sum(),
            reference: study.reference.clone(),
            missing: study.missing.clone(),
            points,
        })
    }

    /// Returns the main results in words.
    pub(crate) fn verdict(&self) -> String {
        let purity = |point: &PointSummary| point.figures.get("purity").map(|spread| spread.mean);
        let reference = self.reference.as_deref();
        let others = self.points.iter().filter(|point| Some(point.point.as_str()) != reference);
        let others = others.filter_map(|point| Some((&point.point, purity(point)?)));
        let mut verdict = format!("{} points were compared.", self.points.len());
        if let Some((name, found)) = others.max_by(|a, b| a.1.total_cmp(&b.1)) {
            let _ = write!(verdict, " {name} has the highest purity of experts by domain, {found:.3}");
            let found = reference.and_then(|name| Some((name, self.points.iter().find(|point| point.point == name)?)));
            if let Some((name, found)) = found.and_then(|(name, point)| Some((name, purity(point)?))) {
                let _ = write!(verdict, "; the point of reference, {name}, has {found:.3}");
            }
            verdict.push('.');
        }
        let closest = self.correlations.iter().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        if let Some((figure, correlation)) = closest {
            let _ = write!(verdict, " SRP goes most closely with {figure}: correlation {correlation:+.3}.");
        }
        verdict
    }

    /// Returns the tables, one below the other.
    pub(crate) fn document(&self) -> Document {
        let mut text = Document::new();
        let mut add = |title: &str, table: Table| {
            // Writing to a document cannot fail.
            text.table(title, table);
            let _ = writeln!(text, "\n");
        };
        for (title, columns) in TABLES {
            let of_window = match &self.reference {
                Some(reference) if title.starts_with("Distance") => format!("{title}: {reference}"),
                _ if columns.iter().any(Column::has_window) => format!("{title}, windows of {} tokens", self.window),
                _ => title.to_owned(),
            };
            if let Some(table) = figures::table(&self.points, columns, self.window) {
                add(&of_window, table);
            }
        }
        if !self.effects.is_empty() {
            let mut shares = table(["figure", "scope", "router", "both", "seed"]);
            for (figure, effect) in &self.effects {
                let share = |share: f64| format!("{share:.3}");
                let Effects { scope, router, interaction, seed } = *effect;
                shares.add_row([(*figure).to_owned(), share(scope), share(router), share(interaction), share(seed)]);
            }
            add("Share of the variation over routers crossed with scopes, none apart, that goes with each", shares);
        }
        if !self.dropping.is_empty() {
            let mut dropping = table(["point", "beside", "NMI", "purity", "utilization", "loss", "LRU", "tokens/s"]);
            for effect in &self.dropping {
                let change = |name: &str| effect.differences.get(name).map_or("–".to_owned(), |d| format!("{d:+.4}"));
                let [nmi, purity, utilization, loss, lru, speed] = EFFECTS.map(change);
                let names = [effect.point.clone(), effect.without.clone()];
                dropping.add_row(names.into_iter().chain([nmi, purity, utilization, loss, lru, speed]));
            }
            add("What dropping changes", dropping);
        }
        if !self.correlations.is_empty() {
            let header = format!("correlation with SRP over {} points", self.points.len());
            let mut correlations = table(["figure", &header]);
            for (figure, correlation) in &self.correlations {
                correlations.add_row([(*figure).to_owned(), format!("{correlation:+.3}")]);
            }
            add("What goes with local routing consistency", correlations);
        }
        let [model, memory] = self.gigabytes;
        let _ = writeln!(
            text,
            "Speed is predicted for models of {model} GB with {memory} GB of memory on {}. Training took {:.0} s.",
            self.machine, self.training_seconds
        );
        if !self.missing.is_empty() {
            let _ = writeln!(text, "Not complete, left out: {}", self.missing.join(", "));
        }
        text
    }
}

/// A line for every point and figure.
fn write_points(path: &Path, points: &[PointSummary], name: fn(&str) -> String) -> Result<()> {
    let header = ["point", "router", "scope", "capacity_factor", "figure", "mean", "deviation", "min", "max", "seeds"];
    let row = |point: &PointSummary, figure: &str, spread: &Spread| {
        [
            name(&point.point),
            point.router.clone(),
            point.scope.to_string(),
            point.capacity_factor.map_or(String::new(), |factor| factor.to_string()),
            figure.to_owned(),
            spread.mean.to_string(),
            spread.deviation.to_string(),
            spread.min.to_string(),
            spread.max.to_string(),
            spread.seeds.to_string(),
        ]
    };
    let pairs =
        points.iter().flat_map(|point| point.figures.iter().map(move |(figure, spread)| (point, figure, spread)));
    write_csv(path, &header, pairs.map(|(point, figure, spread)| row(point, figure, spread)))
}

/// A line for every run and figure.
fn write_runs(path: &Path, study: &Study, name: fn(&str) -> String) -> Result<()> {
    let rows = study.runs.iter().flat_map(|run| {
        let seconds = [
            ("training_seconds".to_owned(), run.seconds.training),
            ("measuring_seconds".to_owned(), run.seconds.measuring),
        ];
        let (point, seed) = (name(&run.config.point), run.config.seed());
        let figures = run.figures.by_name().into_iter().chain(seconds);
        figures.map(move |(figure, value)| [point.clone(), seed.to_string(), figure, value.to_string()])
    });
    write_csv(path, &["point", "seed", "figure", "value"], rows)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(path: &Path) -> Vec<csv::StringRecord> {
        csv::Reader::from_path(path).unwrap().records().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn names_that_begin_as_formulas_are_neutralised_on_demand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("points.csv");
        let point = PointSummary {
            point: "=1+1".to_owned(),
            router: "softmax".to_owned(),
            scope: moe_testbed::BalanceScope::None,
            capacity_factor: None,
            training_seconds: 1.0,
            figures: BTreeMap::from([("nmi".to_owned(), Spread::of(&[0.5, 0.5]).unwrap())]),
        };
        for (name, expected) in [(str::to_owned as fn(&str) -> String, "=1+1"), (no_formula, "'=1+1")] {
            write_points(&path, std::slice::from_ref(&point), name).unwrap();
            assert_eq!(&read(&path)[0][0], expected);
        }
    }

    #[test]
    fn the_smoke_experiment_has_every_row() {
        let out = tempfile::tempdir().unwrap();
        let smoke = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/studies/smoke.toml"));
        let run = |jobs| super::super::run::run(&super::super::run::Arguments::of(smoke, out.path(), jobs));
        run(2).unwrap();
        let figures = std::fs::read(out.path().join("softmax-global/seed-2/figures.json")).unwrap();
        std::fs::remove_file(out.path().join("softmax-global/seed-2/figures.json")).unwrap();
        super::run(&Arguments { folder: out.path().to_owned(), window: None, out: None, csv_safe: false }).unwrap();
        let report = std::fs::read_to_string(out.path().join("report.json")).unwrap();
        assert!(report.contains("softmax-global/seed-2"), "an incomplete run is named");

        // The run that lost its figures is done again, alone, to the same bytes.
        run(1).unwrap();
        assert_eq!(std::fs::read(out.path().join("softmax-global/seed-2/figures.json")).unwrap(), figures);
        super::run(&Arguments { folder: out.path().to_owned(), window: Some(4), out: None, csv_safe: false }).unwrap();

        let expected: Vec<String> = Experiment::read(smoke).unwrap().names().map(str::to_owned).collect();
        let runs = read(&out.path().join("runs.csv"));
        let named = |name: &str| runs.iter().filter(|row| &row[2] == name).count();
        for figure in
            ["purity", "nmi_hash", "validation_loss", "srp_16", "look-ahead-4", "tokens_per_second", "utilization"]
        {
            assert_eq!(named(figure), 2 * expected.len(), "{figure}");
        }
        let points = read(&out.path().join("points.csv"));
        let names: BTreeSet<&str> = points.iter().map(|row| &row[0]).collect();
        assert_eq!(names, expected.iter().map(String::as_str).collect());
        let value = |point: &str, figure: &str| -> f64 {
            let row = points.iter().find(|row| &row[0] == point && &row[4] == figure).unwrap();
            assert_eq!(&row[9], "2");
            row[5].parse().unwrap()
        };
        // Two of eight experts for each of four domains, all of which a token uses; whoever knows nothing is far below.
        assert_eq!((value("reference", "purity"), value("reference", "distance_nmi")), (1.0, 0.0));
        for point in ["hash", "position"] {
            assert!(value(point, "purity") < 0.7 && value(point, "distance_purity") > 0.3, "{point}");
        }
        assert!(value("reference", "srp_4") > value("position", "srp_4"));

        let text = std::fs::read_to_string(out.path().join("report.html")).unwrap();
        for part in
            ["Distance to the reference", "What dropping changes", "SCH beside purity", "Predicted speed on laptop"]
        {
            assert!(text.contains(part), "the page lacks {part}");
        }
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.path().join("report.json")).unwrap()).unwrap();
        // Softmax and sigmoid ran with both scopes.
        let effects = report["effects"]["nmi"].as_object().unwrap();
        let sum: f64 = effects.values().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{effects:?}");
        assert_eq!(report["dropping"][0]["without"], "softmax-global");
    }
}
