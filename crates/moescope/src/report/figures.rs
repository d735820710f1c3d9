//! The figures of the page.

use std::collections::BTreeMap;

use lrc_metrics::{MetricsIntervals, MetricsReport, SrpValue, srp_lower_bound};
use moescope_cli::{Page, axes, window_axis};
use plotly::common::{ColorScale, ColorScalePalette, ErrorData, ErrorType, Line, Marker, Mode};
use plotly::layout::Axis;
use plotly::{HeatMap, Plot, Scatter};

use super::measure::Measured;
use super::summary::{Expert, experts_of, mean_static_curve};

/// Adds all figures.
pub(crate) fn add(measured: &Measured, page: &mut Page) {
    let at = measured.at;
    page.plot("SRP over the window length", &srp_over_m(measured));
    page.plot(&format!("SRP by layer, m = {at}"), &srp_by_layer(measured));
    if !measured.domains.is_empty() {
        page.plot("SRP over the window length by domain", &srp_by_domain(measured));
        page.plot("Correlation of activation rates between domains", &domain_correlation(measured));
    }
    page.plot(&format!("SRP by window start, m = {at}"), &srp_by_start(measured));
    page.plot(
        "Hit rate over cache size (paper convention), mean over layers; first touches hit while slots are free",
        &hit_rates(measured),
    );
    page.plot(&format!("Load against SRP, m = {at}, one point an expert"), &load_against_srp(measured));
}

fn line(x: Vec<usize>, y: Vec<f64>, name: &str) -> Box<Scatter<usize, f64>> {
    Scatter::new(x, y).mode(Mode::LinesMarkers).name(name)
}

/// The line of everything together, among those of its parts.
fn whole() -> Line {
    Line::new().color("black").width(3.0)
}

/// SRP over m with its intervals as error bars.
fn srp_line(
    report: &MetricsIntervals,
    name: &str,
    srp: impl Fn(&MetricsReport) -> &BTreeMap<usize, SrpValue>,
) -> Box<Scatter<usize, f64>> {
    let of = |report| -> Vec<f64> { srp(report).values().map(|value: &SrpValue| value.srp).collect() };
    let values = of(&report.value);
    let bars = error_bars(&values, &of(&report.low), &of(&report.high));
    line(srp(&report.value).keys().copied().collect(), values, name).error_y(bars)
}

fn error_bars(values: &[f64], low: &[f64], high: &[f64]) -> ErrorData {
    // A basic interval need not hold its figure, and there may be none: then the bar has no length.
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).max(0.0)).collect();
    ErrorData::new(ErrorType::Data).array(difference(high, values)).array_minus(difference(values, low))
}

fn srp_over_m(measured: &Measured) -> Plot {
    let report = &measured.all.value;
    let mut plot = Plot::new();
    for layer in report.layers.iter().filter(|layer| layer.is_used()) {
        let values = layer.srp.values().map(|value| value.srp).collect();
        let name = format!("layer {}", layer.layer);
        plot.add_trace(line(layer.srp.keys().copied().collect(), values, &name).opacity(0.3));
    }
    let model = srp_line(&measured.all, "model", |report| &report.model.srp);
    plot.add_trace(model.line(whole()));
    let bound = report.model.srp.values().map(|value| srp_lower_bound(value.activation_rate)).collect();
    plot.add_trace(line(report.model.srp.keys().copied().collect(), bound, "lower bound").mode(Mode::Lines));
    plot.set_layout(axes("", "SRP").x_axis(window_axis(report.model.srp.keys())));
    plot
}

fn srp_by_layer(measured: &Measured) -> Plot {
    let MetricsIntervals { value, low, high } = &measured.all;
    // Bounds of a layer that is used may be 0.
    let used: Vec<usize> = (0..value.layers.len()).filter(|&at| value.layers[at].is_used()).collect();
    let of = |report: &MetricsReport| -> Vec<f64> {
        used.iter().map(|&at| report.layers[at].srp[&measured.at].srp).collect()
    };
    let bars = error_bars(&of(value), &of(low), &of(high));
    let mut plot = Plot::new();
    plot.add_trace(line(used.iter().map(|&at| value.layers[at].layer).collect(), of(value), "SRP").error_y(bars));
    plot.set_layout(axes("MoE layer", "SRP"));
    plot
}

fn srp_by_domain(measured: &Measured) -> Plot {
    let mut plot = Plot::new();
    for (name, report) in &measured.domains {
        plot.add_trace(srp_line(report, name, |report| &report.model.srp));
    }
    let all = srp_line(&measured.all, "all", |report| &report.model.srp);
    plot.add_trace(all.line(whole()));
    plot.set_layout(axes("", "SRP").x_axis(window_axis(measured.all.value.model.srp.keys())));
    plot
}

fn domain_correlation(measured: &Measured) -> Plot {
    let matrix = measured.load.correlation();
    let names = measured.names.clone();
    let rows = matrix.rows().into_iter().map(|row| row.to_vec()).collect();
    let mut plot = Plot::new();
    let colors = ColorScale::Palette(ColorScalePalette::Viridis);
    plot.add_trace(HeatMap::new(names.clone(), names, rows).color_scale(colors));
    plot.set_layout(axes("", "").x_axis(Axis::new().auto_margin(true)).y_axis(Axis::new().auto_margin(true)));
    plot
}

fn srp_by_start(measured: &Measured) -> Plot {
    let mut plot = Plot::new();
    let starts = measured.starts.iter().map(|at| at.start).collect();
    let srp = measured.starts.iter().map(|at| at.srp).collect();
    plot.add_trace(line(starts, srp, "model").mode(Mode::Lines));
    plot.set_layout(axes("first token of the window", "SRP"));
    plot
}

#[expect(clippy::cast_precision_loss, reason = "slots and experts are few")]
fn hit_rates(measured: &Measured) -> Plot {
    let report = &measured.all.value;
    let experts = measured.geometry.experts();
    let rho: Vec<f64> = (1..=experts).map(|slots| slots as f64 / measured.geometry.top_k() as f64).collect();
    let mut plot = Plot::new();
    for (policy, curve) in &report.model.curves {
        plot.add_trace(Scatter::new(rho.clone(), curve.clone()).mode(Mode::Lines).name(policy.to_string()));
    }
    plot.add_trace(Scatter::new(rho, mean_static_curve(report)).mode(Mode::Lines).name("static best set"));
    plot.set_layout(axes("rho: slots a layer, as a multiple of the experts of a token", "hit rate"));
    plot
}

fn load_against_srp(measured: &Measured) -> Plot {
    let experts: Vec<Expert> = experts_of(measured).into_iter().filter(|expert| expert.is_of_used_layer).collect();
    let mut rates: Vec<f64> = experts.iter().map(|expert| expert.activation_rate).collect();
    let srp = experts.iter().map(|expert| expert.srp).collect();
    let names = experts.iter().map(|expert| format!("layer {} expert {}", expert.layer, expert.expert)).collect();
    let mut plot = Plot::new();
    let points = Scatter::new(rates.clone(), srp).mode(Mode::Markers).name("experts").text_array(names);
    plot.add_trace(points.marker(Marker::new().size(5).opacity(0.5)));
    rates.sort_unstable_by(f64::total_cmp);
    let bound = rates.iter().map(|&rate| srp_lower_bound(rate)).collect();
    plot.add_trace(Scatter::new(rates, bound).mode(Mode::Lines).name("lower bound"));
    plot.set_layout(axes("activation rate", "SRP"));
    plot
}
