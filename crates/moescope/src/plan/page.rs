//! The answer as one self-contained HTML page.

use expert_cache::{Candidate, Layout, PrefetcherKind, Slots};
use moescope_cli::{Axis, Chart, Drawing, HeatMap, Page, Point, Series};

use super::report::Report;

/// A figure of a candidate.
type Figure = fn(&Candidate) -> f64;

/// Renders the page: speed and hit rate over bytes, speed over bandwidth, slots of each layer.
pub(crate) fn render(report: &Report) -> String {
    let mut page =
        Page::new(&format!("An expert cache for {}", report.model), &format!("Target {}.", report.verdict()));
    page.document(&report.document());
    page.provenance("the trace", &report.provenance);
    let figures: [(&str, &str, Figure); 3] = [
        ("Decode speed over bytes of slots", "tokens/s", |one| one.speed.decode.tokens_per_second()),
        ("p95 of a decoded token over bytes of slots", "ms", |one| 1e3 * one.speed.decode.quantile_seconds(0.95)),
        ("Hit rate over bytes of slots (engine convention)", "hit rate", |one| one.hit_rate),
    ];
    for layout in layouts(report) {
        for (heading, y, value) in figures {
            page.plot(&format!("{heading}, {layout} layout"), &curves(report, layout, y, value));
        }
    }
    if !report.over_bandwidth.is_empty() {
        page.plot("Decode speed over the bandwidth of the link, same slots", &bandwidth(report));
    }
    if let Some(Slots::PerLayer(slots)) = report.chosen().map(|chosen| &chosen.setup.slots) {
        let mut chart = Chart::new(Axis::whole("MoE layer"), Axis::linear("slots"));
        let points = slots
            .iter()
            .enumerate()
            .map(|(layer, &slots)| Point::new(layer as f64, slots as f64).with_label(format!("layer {layer}")));
        chart.add(Series::bars("slots", points));
        page.plot("Slots of each layer of the chosen cache", &chart.draw());
    }
    if let Some(map) = allocations(report) {
        page.plot("Slots of each layer where they save most seconds of loads, over the budget", &map);
    }
    page.finish()
}

/// Returns the layouts of slots in the order of the candidates.
fn layouts(report: &Report) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for candidate in &report.survey.candidates {
        if !layouts.contains(&candidate.setup.layout) {
            layouts.push(candidate.setup.layout);
        }
    }
    layouts
}

/// Draws a line for each policy and prefetcher of a layout.
fn curves(report: &Report, layout: Layout, y: &str, value: Figure) -> Drawing {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for candidate in report.survey.candidates.iter().filter(|candidate| candidate.setup.layout == layout) {
        let setup = &candidate.setup;
        let prefetcher = match setup.prefetcher {
            PrefetcherKind::None => String::new(),
            prefetcher => format!(", prefetching {prefetcher}"),
        };
        let name = format!("{}{prefetcher}", setup.policy);
        let point = (gibibytes(setup.bytes), value(candidate));
        match lines.iter_mut().find(|(line, _)| *line == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    let mut chart = Chart::new(Axis::linear("GiB of slots"), Axis::linear(y));
    for (name, mut points) in lines {
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        chart.add(Series::line(&name, points.into_iter().map(|(x, y)| Point::new(x, y))));
    }
    chart.draw()
}

fn bandwidth(report: &Report) -> Drawing {
    let x = Axis::logarithmic("GB/s from host memory into slots");
    let mut chart = Chart::new(x, Axis::linear("tokens/s"));
    for line in &report.over_bandwidth {
        let points = line.points.iter().map(|&(bytes, tokens)| Point::new(bytes / 1e9, tokens));
        chart.add(Series::marked_line(&line.setup.policy.to_string(), points));
    }
    chart.draw()
}

/// Draws layers across and budgets down, for the first policy that was allocated for.
fn allocations(report: &Report) -> Option<Drawing> {
    let allocated = || report.survey.candidates.iter().filter(|one| one.setup.layout == Layout::Allocated);
    let first = &allocated().next()?.setup;
    let rows = allocated().filter(|one| one.setup.policy == first.policy && one.setup.prefetcher == first.prefetcher);
    let mut budgets = Vec::new();
    let mut values: Vec<Vec<f64>> = Vec::new();
    for one in rows {
        if let Slots::PerLayer(row) = &one.setup.slots {
            budgets.push(format!("{:.2}", gibibytes(one.setup.bytes)));
            values.push(row.iter().map(|&slots| slots as f64).collect());
        }
    }
    let map = HeatMap {
        x_title: format!("layer ({})", first.policy),
        y_title: "GiB of slots".to_owned(),
        columns: (0..values.first()?.len()).map(|layer| layer.to_string()).collect(),
        rows: budgets,
        values,
    };
    Some(map.draw())
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
