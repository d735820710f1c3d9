//! The figures as one self-contained HTML page.

use moescope_cli::{Page, axes};
use plotly::common::{DashType, Line, Mode};
use plotly::{Plot, Scatter};

use super::report::{Report, Row, Speeds};

/// Renders the page: measured and predicted speed over the cache size.
pub(crate) fn render(report: &Report) -> String {
    let mut page = Page::new("Speed with offloaded experts", &report.to_string());
    page.provenance("the trace", &report.provenance);
    page.plot("Decoded tokens a second over rho, dashed: predicted", &lines(report, |speeds| speeds.decode));
    page.plot("Prefilled tokens a second over rho, dashed: predicted", &lines(report, |speeds| speeds.prefill));
    page.finish()
}

/// Two lines for each policy and prefetcher.
fn lines(report: &Report, of: fn(&Speeds) -> Option<f64>) -> Plot {
    let mut plot = Plot::new();
    let mut names: Vec<String> = report.rows.iter().map(name).collect();
    names.dedup();
    for line in names {
        let rows = || report.rows.iter().filter(|row| name(row) == line);
        for (speeds, dash) in [(measured as fn(&Row) -> Speeds, DashType::Solid), (predicted, DashType::Dash)] {
            let points = rows().filter_map(|row| Some((row.rho, of(&speeds(row))?)));
            let (x, y): (Vec<f64>, Vec<f64>) = points.unzip();
            let label = if matches!(dash, DashType::Dash) { format!("{line}, predicted") } else { line.clone() };
            plot.add_trace(Scatter::new(x, y).mode(Mode::LinesMarkers).line(Line::new().dash(dash)).name(label));
        }
    }
    plot.set_layout(axes("rho: slots a layer over the experts of a token", "tokens/s"));
    plot
}

fn name(row: &Row) -> String {
    let mut name = row.policy.clone();
    for (what, how, default) in [("prefetch", &row.prefetcher, "none"), ("misses", &row.misses, "load")] {
        if how != default {
            name = format!("{name}, {what} {how}");
        }
    }
    name
}

fn measured(row: &Row) -> Speeds {
    row.measured
}

fn predicted(row: &Row) -> Speeds {
    row.predicted
}
