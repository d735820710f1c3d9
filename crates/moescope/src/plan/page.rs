//! The answer as one self-contained HTML page.

use expert_cache::{Candidate, Slots};
use moescope_cli::{Page, axes};
use plotly::common::{Mode, Title};
use plotly::layout::{Axis, AxisType};
use plotly::{Bar, HeatMap, Plot, Scatter};

use super::report::Report;

/// Renders the page: speed and hit rate over bytes, speed over bandwidth, slots of each layer.
pub(crate) fn render(report: &Report) -> String {
    let mut page = Page::new(&format!("An expert cache for {}", report.model), &report.to_string());
    page.provenance("the trace", &report.provenance);
    page.plot(
        "Decode speed over bytes of slots",
        &curves(report, "tokens/s", |one| one.speed.decode.tokens_per_second()),
    );
    page.plot(
        "p95 of a decoded token over bytes of slots",
        &curves(report, "ms", |one| 1e3 * one.speed.decode.quantile_seconds(0.95)),
    );
    page.plot("Hit rate over bytes of slots (engine convention)", &curves(report, "hit rate", |one| one.hit_rate));
    if !report.over_bandwidth.is_empty() {
        page.plot("Decode speed over the bandwidth of the link, same slots", &bandwidth(report));
    }
    if let Some(Slots::PerLayer(slots)) = report.chosen().map(|chosen| &chosen.setup.slots) {
        let mut plot = Plot::new();
        plot.add_trace(Bar::new((0..slots.len()).collect(), slots.clone()));
        plot.set_layout(axes("layer", "slots"));
        page.plot("Slots of each layer of the chosen cache", &plot);
    }
    if let Some(plot) = allocations(report) {
        page.plot("Slots of each layer where they save most seconds of loads, over the budget", &plot);
    }
    page.finish()
}

/// A line for each layout, policy and prefetcher.
fn curves(report: &Report, y: &str, value: impl Fn(&Candidate) -> f64) -> Plot {
    let mut plot = Plot::new();
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for candidate in &report.survey.candidates {
        let setup = &candidate.setup;
        let name = format!("{} {} {}", setup.layout, setup.policy, setup.prefetcher);
        let point = (setup.bytes as f64 / (1u64 << 30) as f64, value(candidate));
        match lines.iter_mut().find(|(line, _)| *line == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    for (name, mut points) in lines {
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (x, y) = points.into_iter().unzip();
        plot.add_trace(Scatter::new(x, y).mode(Mode::Lines).name(name));
    }
    plot.set_layout(axes("GiB of slots", y));
    plot
}

fn bandwidth(report: &Report) -> Plot {
    let mut plot = Plot::new();
    for line in &report.over_bandwidth {
        let (x, y): (Vec<f64>, Vec<f64>) = line.points.iter().map(|&(bytes, tokens)| (bytes / 1e9, tokens)).unzip();
        plot.add_trace(Scatter::new(x, y).mode(Mode::LinesMarkers).name(line.setup.policy.to_string()));
    }
    let x = Axis::new().type_(AxisType::Log).title(Title::with_text("GB/s from host memory into slots"));
    plot.set_layout(axes("", "tokens/s").x_axis(x));
    plot
}

/// Layers across, budgets up, for the first policy that was allocated for.
fn allocations(report: &Report) -> Option<Plot> {
    let allocated =
        || report.survey.candidates.iter().filter(|one| one.setup.layout == expert_cache::Layout::Allocated);
    let first = &allocated().next()?.setup;
    let rows = allocated().filter(|one| one.setup.policy == first.policy && one.setup.prefetcher == first.prefetcher);
    let mut budgets = Vec::new();
    let mut slots = Vec::new();
    for one in rows {
        if let Slots::PerLayer(row) = &one.setup.slots {
            budgets.push(one.setup.bytes as f64 / (1u64 << 30) as f64);
            slots.push(row.clone());
        }
    }
    let layers: Vec<usize> = (0..slots.first()?.len()).collect();
    let mut plot = Plot::new();
    plot.add_trace(HeatMap::new(layers, budgets, slots).name(first.policy.to_string()));
    plot.set_layout(axes(&format!("layer ({})", first.policy), "GiB of slots"));
    Some(plot)
}
