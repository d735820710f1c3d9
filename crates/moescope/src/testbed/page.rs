//! The report as one self-contained HTML page.

use std::collections::BTreeMap;

use moe_testbed::{PointSummary, Spread, Study, ValidationRecord};
use moescope_cli::{Page, axes};
use plotly::common::{DashType, ErrorData, ErrorType, Line, Mode};
use plotly::{Bar, Plot, Scatter};

use super::report::Report;

/// Figures that are plotted over scopes and beside SRP and SCH.
const FIGURES: [(&str, &str); 4] = [
    ("purity", "purity"),
    ("nmi", "NMI of expert and domain"),
    ("utilization", "utilization"),
    ("validation_loss", "validation loss, nats a token"),
];

/// Renders the page.
pub(crate) fn render(report: &Report, study: &Study, text: &str) -> String {
    let mut page = Page::new("Routing testbed", text);
    let points = &report.points;
    for (figure, label) in FIGURES {
        if study.scopes().len() > 1 {
            let heading = format!("{label} over the balancing scope");
            page.plot(&heading, &over_scopes(report, study, figure, label));
        }
        page.plot(&format!("{label}, every point"), &bars(points, &[(figure, label)], label));
    }
    page.plot("NMI on the way, a few sequences", &over_steps(report, study, |record| record.nmi, "NMI"));
    let loss = over_steps(report, study, |record| record.loss, "validation loss, nats a token");
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
    page.plot(&heading, &bars(points, &speeds, "tokens a second"));
    page.finish()
}

/// A line a router over the scopes, without dropping; the reference across.
fn over_scopes(report: &Report, study: &Study, figure: &str, label: &str) -> Plot {
    let scopes = study.scopes();
    let mut plot = Plot::new();
    let shown = || report.points.iter().filter(|point| point.capacity_factor.is_none());
    let mut routers: Vec<&str> = shown().map(|point| point.router.as_str()).collect();
    routers.sort_unstable();
    routers.dedup();
    for router in routers {
        let of_scope = |scope| {
            let point = shown().find(|point| point.router == router && point.scope == scope)?;
            Some((scope.to_string(), *point.figures.get(figure)?))
        };
        let found: Vec<_> = scopes.iter().filter_map(|&scope| of_scope(scope)).collect();
        let x = found.iter().map(|(scope, _)| scope.clone()).collect();
        let y = found.iter().map(|(_, spread)| spread.mean).collect();
        let error = ErrorData::new(ErrorType::Data).array(found.iter().map(|(_, spread)| spread.deviation).collect());
        plot.add_trace(Scatter::new(x, y).mode(Mode::LinesMarkers).error_y(error).name(router));
    }
    let reference = report.reference.as_ref().and_then(|name| report.points.iter().find(|point| point.point == *name));
    if let Some(spread) = reference.and_then(|point| point.figures.get(figure)) {
        let x: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        let line = Line::new().dash(DashType::Dash);
        let y = vec![spread.mean; x.len()];
        let name = report.reference.as_deref().unwrap_or_default();
        plot.add_trace(Scatter::new(x, y).mode(Mode::Lines).line(line).name(format!("{name}, as a line")));
    }
    plot.set_layout(axes("balancing scope", label));
    plot
}

/// A line a point over the steps of training, mean over seeds.
fn over_steps(report: &Report, study: &Study, figure: fn(&ValidationRecord) -> f64, label: &str) -> Plot {
    let mut plot = Plot::new();
    for point in &report.points {
        let mut at_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for run in study.runs.iter().filter(|run| run.config.point == point.point) {
            run.validations.iter().for_each(|record| at_step.entry(record.step).or_default().push(figure(record)));
        }
        let means = at_step.values().filter_map(|values| Some(Spread::of(values)?.mean)).collect();
        let steps = at_step.keys().copied().collect();
        plot.add_trace(Scatter::new(steps, means).mode(Mode::LinesMarkers).name(&point.point));
    }
    plot.set_layout(axes("steps", label));
    plot
}

/// Bars of some figures for every point.
fn bars(points: &[PointSummary], figures: &[(&str, &str)], label: &str) -> Plot {
    let mut plot = Plot::new();
    for (figure, name) in figures {
        let found: Vec<_> = points.iter().filter_map(|point| Some((point, point.figures.get(*figure)?))).collect();
        let x = found.iter().map(|(point, _)| point.point.clone()).collect();
        let y = found.iter().map(|(_, spread)| spread.mean).collect();
        let error = ErrorData::new(ErrorType::Data).array(found.iter().map(|(_, spread)| spread.deviation).collect());
        plot.add_trace(Bar::new(x, y).error_y(error).name(*name));
    }
    plot.set_layout(axes("", label));
    plot
}

/// A consistency over another figure, a named mark a point.
fn beside(points: &[PointSummary], figure: &str, label: &str, consistency: &str, name: &str) -> Plot {
    let mut plot = Plot::new();
    for point in points {
        let (Some(x), Some(y)) = (point.figures.get(figure), point.figures.get(consistency)) else { continue };
        let error = |deviation| ErrorData::new(ErrorType::Data).array(vec![deviation]);
        let mark = Scatter::new(vec![x.mean], vec![y.mean]).mode(Mode::Markers).name(&point.point);
        plot.add_trace(mark.error_x(error(x.deviation)).error_y(error(y.deviation)));
    }
    plot.set_layout(axes(label, name));
    plot
}
