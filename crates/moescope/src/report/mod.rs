//! Prints and plots the local routing consistency of a trace: one HTML page and CSV files.

mod domain;
mod figures;
mod measure;
mod starts;
mod summary;
mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lrc_metrics::{Bootstrap, MetricError};
use moescope_cli::{Files, Foreign, Page, SHARE, each_once, fitting_windows, no_formula, number, whole, write_text};

/// Window lengths unless told otherwise.
const WINDOWS: [usize; 8] = [2, 4, 8, 16, 32, 64, 128, 256];

/// The page, and all files of the folder.
const PAGE: &str = "consistency.html";
const FILES: [&str; 7] = [PAGE, "about.csv", "srp.csv", "starts.csv", "curves.csv", "experts.csv", "domains.csv"];

/// Print and plot the local routing consistency of a trace.
///
/// Writes consistency.html (SRP over m, by layer, by domain and by window start; hit rates of LRU, LFU, Belady and SCH
/// over cache size; load against SRP), and the numbers behind it as CSV files; about.csv says what an import of the trace inferred,
/// and what else a reader of the numbers must know. Intervals are bootstrapped over sequences.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope report trace.safetensors --out consistency")]
pub(crate) struct Arguments {
    /// A trace file, a directory of trace shards, or a file of another recorder.
    trace: PathBuf,

    /// Window lengths in tokens [default: those of 2,4,8,16,32,64,128,256 that fit into a sequence].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>(1..))]
    m: Option<Vec<usize>>,

    /// Window length of the plots that show one, one of --m [default: 16, or the longest below].
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..))]
    at: Option<usize>,

    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole::<usize>(1..=Bootstrap::MOST_RESAMPLES as u64))]
    resamples: usize,

    /// Confidence of the intervals.
    #[arg(long, value_name = "N", default_value_t = 0.95, value_parser = number(SHARE))]
    confidence: f64,

    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>(0..))]
    seed: u64,

    /// Put a ' in front of names of domains in the CSV files that a spreadsheet would take for formulas: those that begin
    /// with = + - @, a tab or a carriage return.
    #[arg(long)]
    csv_safe: bool,

    /// Folder for the page and the CSV files.
    #[arg(long, value_name = "FOLDER", default_value = "consistency")]
    out: PathBuf,

    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    each_once("--m", arguments.m.as_deref().unwrap_or_default())?;
    Files::new()
        .reads_trace(&arguments.trace)
        .reads_all("the file of --config", &arguments.foreign.config)
        .writes_in("--out", &arguments.out, &FILES)
        .check()?;
    let trace = arguments.foreign.open(&arguments.trace)?;
    ensure!(!trace.is_empty(), "{} has no sequence; was its recording finished?", arguments.trace.display());
    let windows = match &arguments.m {
        Some(windows) => windows.clone(),
        None => fitting_windows(trace.as_ref(), &WINDOWS)?,
    };
    let at = match arguments.at {
        Some(at) => at,
        None => windows.iter().copied().filter(|&window| window <= 16).max().unwrap_or(windows[0]),
    };
    ensure!(windows.contains(&at), "--at {at} is not among the window lengths {windows:?}");
    let bootstrap = Bootstrap::new(arguments.resamples, arguments.confidence, arguments.seed)?;
    let mut measured =
        measure::measure(trace.as_ref(), &windows, at, &bootstrap).map_err(|error| match error.downcast_ref() {
            Some(MetricError::WindowTooLong { .. }) => {
                error.context("give --m only window lengths that fit into a sequence")
            }
            _ => error,
        })?;

    let summary = summary::summary(&measured);
    moescope_cli::outln!("{summary}");
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot create the folder {}", arguments.out.display()))?;
    let title = format!("Local routing consistency of {}", measured.model);
    let mut page = Page::new(&title, &summary::verdict(&measured));
    page.document(&summary);
    page.provenance("the trace", &measured.provenance);
    figures::add(&measured, &mut page);
    let path = arguments.out.join(PAGE);
    write_text(&path, &page.finish())?;
    let name = if arguments.csv_safe { no_formula } else { str::to_owned };
    let names = measured.names.iter_mut().chain(measured.domains.iter_mut().map(|(name, _)| name));
    names.for_each(|domain| *domain = name(domain));
    tables::write(&measured, &arguments.out, name)?;
    moescope_cli::outln!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// A recording with a name that a spreadsheet takes for a formula, without a number of experts and phases.
    #[test]
    fn page_and_csv_files_say_what_was_inferred_of_the_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let rows: String = (0..9).map(|token| format!("{token},0,{}\n", token % 4)).collect();
        std::fs::write(path("=x.csv"), format!("token,layer,expert\n{rows}")).unwrap();
        let (trace, out) = (path("=x.csv"), path("out"));
        let about = |more: &[&str]| {
            let line = ["report", &trace, "--m", "2", "--resamples", "10", "--out", &out];
            run(&Line::try_parse_from(line.into_iter().chain(more.iter().copied())).unwrap().arguments).unwrap();
            std::fs::read_to_string(folder.path().join("out/about.csv")).unwrap()
        };
        let plain = about(&[]);
        assert!(plain.starts_with("kind,what\nphase-assumed,\"=x.csv, line 2: "), "{plain}");
        assert!(plain.contains("\nexperts-inferred,\"=x.csv, line 5: "), "{plain}");
        assert_eq!(about(&["--csv-safe"]), plain.replace("\"=x.csv", "\"'=x.csv"));
        let page = std::fs::read_to_string(folder.path().join("out/consistency.html")).unwrap();
        assert!(page.contains("<h2>About the trace</h2>") && page.contains("<td>experts-inferred</td>"));
        // Nothing is to be said of a trace that says everything.
        assert_eq!(about(&["--experts", "4", "--token-phase", "decode"]), "kind,what\n");
    }
}
