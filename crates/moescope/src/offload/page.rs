//! The figures as one self-contained HTML page.

use moescope_cli::{Axis, Chart, Drawing, Page, Point, Series};

use super::report::{Report, Row, Speeds};

/// Renders the page: measured and predicted speed over the cache size.
pub(crate) fn render(report: &Report) -> String {
    let mut page = Page::new("Speed with offloaded experts", &verdict(report));
    page.document(&report.document());
    page.provenance("the trace", &report.provenance);
    page.plot("Decoded tokens per second over rho, dashed: predicted", &lines(report, |speeds| speeds.decode));
    page.plot("Prefilled tokens per second over rho, dashed: predicted", &lines(report, |speeds| speeds.prefill));
    page.finish()
}

/// Returns the fastest case, and how well its speed was predicted.
fn verdict(report: &Report) -> String {
    let decoded = report.rows.iter().filter_map(|row| Some((row, row.measured.decode?)));
    let Some((row, speed)) = decoded.max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return "No case decoded a token.".to_owned();
    };
    let of_resident = report.resident.decode.map_or(String::new(), |resident| {
        format!(", {:.0} % of the speed with all experts resident", 100.0 * speed / resident)
    });
    let predicted = row.predicted.decode.map_or(String::new(), |predicted| format!(" {predicted:.1} were predicted."));
    format!(
        "The fastest case decodes {speed:.1} tokens per second with {} slots per layer and {}{of_resident}.{predicted}",
        row.slots,
        name(row)
    )
}

/// Draws two lines for each policy, prefetcher and handling of misses.
fn lines(report: &Report, of: fn(&Speeds) -> Option<f64>) -> Drawing {
    let mut chart =
        Chart::new(Axis::linear("rho: slots per layer over the experts of a token"), Axis::linear("tokens/s"));
    let mut names: Vec<String> = report.rows.iter().map(name).collect();
    names.dedup();
    for (style, line) in names.iter().enumerate() {
        let points = |speeds: fn(&Row) -> Speeds| {
            let rows = report.rows.iter().filter(|row| name(row) == *line);
            rows.filter_map(move |row| Some(Point::new(row.rho, of(&speeds(row))?))).collect::<Vec<_>>()
        };
        chart.add(Series::marked_line(line, points(|row| row.measured)).with_style(style));
        let predicted = format!("{line}, predicted");
        chart.add(Series::marked_line(&predicted, points(|row| row.predicted)).with_style(style).dashed());
    }
    chart.draw()
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
