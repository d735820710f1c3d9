//! The report as one self-contained HTML page.

use std::collections::BTreeMap;

use moe_testbed::{PointSummary, Spread, Study, ValidationRecord};
use moescope_cli::{Axis, Chart, Drawing, Page, Point, Series};

use super::report::Report;

/// Figures that are plotted over scopes and beside SRP and SCH.
const FIGURES: [(&str, &str); 4] = [
    ("purity", "purity"),
    ("nmi", "NMI of expert and domain"),
    ("utilization", "utilization"),
    ("validation_loss", "validation loss, nats per token"),
];

/// Renders the page.
pub(crate) fn render(report: &Report, study: &Study) -> String {
    let mut page = Page::new("Routing testbed", &report.verdict());
    page.document(&report.document());
    let points = &report.points;
    for (figure, label) in FIGURES {
        if study.scopes().len() > 1 {
            let heading = format!("{label} over the balancing scope");
            page.plot(&heading, &over_scopes(report, study, figure, label));
        }
        page.plot(&format!("{label}, every point"), &by_point(points, &[(figure, label)], label));
    }
    page.plot("NMI on the way, a few sequences", &over_steps(report, study, |record| record.nmi, "NMI"));
    let loss = over_steps(report, study, |record| record.loss, "validation loss, nats per token");
    page.plot("Validation loss on the way, a few sequences", &loss);
    let (srp, sch) = (format!("srp_{}", report.window), format!("look-ahead-{}", report.window));
    for (consistency, name) in [(&srp, "SRP"), (&sch, "SCH")] {
        for (figure, label) in FIGURES {
            let plot = beside(points, figure, label, consistency, name);
            page.plot(&format!("{name} beside {label}"), &plot);
        }
    }
    let plot = beside(points, "load_deviation_percent", "standard deviation of the load, % points", &srp, "SRP");
    page.plot("SRP beside load balance", &plot);
    let speeds = [
        ("tokens_per_second", "LRU cache"),
        ("tokens_per_second_shuffled_tokens", "the same, tokens in random order"),
        ("tokens_per_second_resident", "every expert resident"),
    ];
    let heading = format!("Predicted speed on {}", report.machine);
    page.plot(&heading, &by_point(points, &speeds, "tokens per second"));
    page.finish()
}

/// Draws a line per router over the scopes, without dropping; the reference across.
fn over_scopes(report: &Report, study: &Study, figure: &str, label: &str) -> Drawing {
    let scopes = study.scopes();
    let names = scopes.iter().map(ToString::to_string);
    let mut chart = Chart::new(Axis::categories("balancing scope", names), Axis::linear(label));
    let shown = || report.points.iter().filter(|point| point.capacity_factor.is_none());
    let mut routers: Vec<&str> = shown().map(|point| point.router.as_str()).collect();
    routers.sort_unstable();
    routers.dedup();
    for router in routers {
        let of_scope = |(at, &scope)| {
            let point = shown().find(|point| point.router == router && point.scope == scope)?;
            let spread = point.figures.get(figure)?;
            Some(with_deviation(Point::new(at as f64, spread.mean), spread))
        };
        chart.add(Series::marked_line(router, scopes.iter().enumerate().filter_map(of_scope)));
    }
    let reference = report.reference.as_ref().and_then(|name| report.points.iter().find(|point| point.point == *name));
    if let Some(spread) = reference.and_then(|point| point.figures.get(figure)) {
        let name = report.reference.as_deref().unwrap_or_default();
        let points = (0..scopes.len()).map(|at| Point::new(at as f64, spread.mean));
        chart.add(Series::line(&format!("{name}, as a line"), points).dashed());
    }
    chart.draw()
}

fn with_deviation(point: Point, spread: &Spread) -> Point {
    point.with_y_interval(spread.mean - spread.deviation, spread.mean + spread.deviation)
}

/// Draws a line per point over the steps of training, mean over seeds.
fn over_steps(report: &Report, study: &Study, figure: fn(&ValidationRecord) -> f64, label: &str) -> Drawing {
    let mut chart = Chart::new(Axis::linear("steps"), Axis::linear(label));
    for point in &report.points {
        let mut at_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for run in study.runs.iter().filter(|run| run.config.point == point.point) {
            run.validations.iter().for_each(|record| at_step.entry(record.step).or_default().push(figure(record)));
        }
        let means =
            at_step.iter().filter_map(|(&step, values)| Some(Point::new(step as f64, Spread::of(values)?.mean)));
        chart.add(Series::marked_line(&point.point, means));
    }
    chart.draw()
}

/// Draws a row per point with a mark for each figure.
fn by_point(points: &[PointSummary], figures: &[(&str, &str)], label: &str) -> Drawing {
    let names = points.iter().map(|point| point.point.clone());
    let mut chart = Chart::new(Axis::linear(label), Axis::categories("", names));
    for (figure, name) in figures {
        let found = points.iter().enumerate().filter_map(|(row, point)| {
            let Spread { mean, deviation, .. } = *point.figures.get(*figure)?;
            let mark = Point::new(mean, row as f64).with_x_interval(mean - deviation, mean + deviation);
            Some(mark.with_label(format!("{}, {name}", point.point)))
        });
        chart.add(Series::marks(name, found));
    }
    chart.draw()
}

/// Draws a consistency over another figure, one named mark per point.
fn beside(points: &[PointSummary], figure: &str, label: &str, consistency: &str, name: &str) -> Drawing {
    let mut chart = Chart::new(Axis::linear(label), Axis::linear(name));
    for point in points {
        let (Some(x), Some(y)) = (point.figures.get(figure), point.figures.get(consistency)) else { continue };
        let mark = Point::new(x.mean, y.mean).with_x_interval(x.mean - x.deviation, x.mean + x.deviation);
        chart.add(Series::marks(&point.point, [with_deviation(mark, y)]));
    }
    chart.draw()
}
