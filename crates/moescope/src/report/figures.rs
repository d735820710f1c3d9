//! The figures of the page.

use std::collections::BTreeMap;

use lrc_metrics::{MetricsIntervals, MetricsReport, SrpValue, srp_lower_bound};
use moescope_cli::{Axis, Chart, Drawing, HeatMap, Page, Point, Series};

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
    page.plot(&format!("Load against SRP, m = {at}, one point per expert"), &load_against_srp(measured));
}

/// Returns the points of SRP over m, with intervals.
fn srp_points(
    report: &MetricsIntervals,
    srp: impl Fn(&MetricsReport) -> &BTreeMap<usize, SrpValue>,
) -> impl Iterator<Item = Point> {
    let bounds = srp(&report.low).values().zip(srp(&report.high).values());
    srp(&report.value)
        .iter()
        .zip(bounds)
        .map(|((&m, value), (low, high))| Point::new(m as f64, value.srp).with_y_interval(low.srp, high.srp))
}

fn srp_over_m(measured: &Measured) -> Drawing {
    let report = &measured.all.value;
    let mut chart = Chart::new(Axis::windows(report.model.srp.keys()), Axis::linear("SRP"));
    for layer in report.layers.iter().filter(|layer| layer.is_used()) {
        let points = layer.srp.iter().map(|(&m, value)| Point::new(m as f64, value.srp));
        chart.add(Series::faint(&format!("layer {}", layer.layer), points));
    }
    chart.add(Series::whole("model", srp_points(&measured.all, |report| &report.model.srp)));
    let bound = report.model.srp.iter();
    let bound = bound.map(|(&m, value)| Point::new(m as f64, srp_lower_bound(value.activation_rate)));
    chart.add(Series::line("lower bound", bound).dashed());
    chart.draw()
}

fn srp_by_layer(measured: &Measured) -> Drawing {
    let MetricsIntervals { value, low, high } = &measured.all;
    let of = |report: &MetricsReport, at: usize| report.layers[at].srp[&measured.at].srp;
    // Bounds of a layer that is used may be 0.
    let used = (0..value.layers.len()).filter(|&at| value.layers[at].is_used());
    let points = used
        .map(|at| Point::new(value.layers[at].layer as f64, of(value, at)).with_y_interval(of(low, at), of(high, at)));
    let mut chart = Chart::new(Axis::whole("MoE layer"), Axis::linear("SRP"));
    chart.add(Series::marked_line("SRP", points));
    chart.draw()
}

fn srp_by_domain(measured: &Measured) -> Drawing {
    let mut chart = Chart::new(Axis::windows(measured.all.value.model.srp.keys()), Axis::linear("SRP"));
    for (name, report) in &measured.domains {
        chart.add(Series::marked_line(name, srp_points(report, |report| &report.model.srp)));
    }
    chart.add(Series::whole("all", srp_points(&measured.all, |report| &report.model.srp)));
    chart.draw()
}

fn domain_correlation(measured: &Measured) -> Drawing {
    let matrix = measured.load.correlation();
    let values = matrix.rows().into_iter().map(|row| row.to_vec()).collect();
    let (columns, rows) = (measured.names.clone(), measured.names.clone());
    HeatMap { x_title: String::new(), y_title: String::new(), columns, rows, values }.draw()
}

fn srp_by_start(measured: &Measured) -> Drawing {
    let mut chart = Chart::new(Axis::linear("first token of the window"), Axis::linear("SRP"));
    chart.add(Series::line("model", measured.starts.iter().map(|at| Point::new(at.start as f64, at.srp))));
    chart.draw()
}

#[expect(clippy::cast_precision_loss, reason = "slots and experts are few")]
fn hit_rates(measured: &Measured) -> Drawing {
    let report = &measured.all.value;
    let top_k = measured.geometry.top_k() as f64;
    let points = |curve: &[f64]| -> Vec<Point> {
        curve.iter().enumerate().map(|(slot, &rate)| Point::new((slot + 1) as f64 / top_k, rate)).collect()
    };
    let rho = "rho: slots per layer over the experts of a token";
    let mut chart = Chart::new(Axis::linear(rho), Axis::linear("hit rate"));
    for (policy, curve) in &report.model.curves {
        chart.add(Series::line(&policy.to_string(), points(curve)));
    }
    chart.add(Series::line("static best set", points(&mean_static_curve(report))).dashed());
    chart.draw()
}

fn load_against_srp(measured: &Measured) -> Drawing {
    let experts: Vec<Expert> = experts_of(measured).into_iter().filter(|expert| expert.is_of_used_layer).collect();
    let mut chart = Chart::new(Axis::linear("activation rate"), Axis::linear("SRP"));
    let point = |expert: &Expert| {
        let name = format!("layer {} expert {}", expert.layer, expert.expert);
        Point::new(expert.activation_rate, expert.srp).with_label(name)
    };
    chart.add(Series::marks("experts", experts.iter().map(point)));
    let mut rates: Vec<f64> = experts.iter().map(|expert| expert.activation_rate).collect();
    rates.sort_unstable_by(f64::total_cmp);
    chart.add(Series::line("lower bound", rates.iter().map(|&rate| Point::new(rate, srp_lower_bound(rate)))));
    chart.draw()
}
