//! The numbers behind the figures as CSV files.

use std::path::Path;

use anyhow::{Context, Result};
use lrc_metrics::{MetricsIntervals, MetricsReport, SrpValue, relative_to, static_curve};
use serde::Serialize;

use crate::measure::Measured;
use crate::summary::experts_of;

#[derive(Serialize)]
struct SrpRow<'a> {
    level: &'a str,
    domain: &'a str,
    layer: Option<usize>,
    m: usize,
    srp: f64,
    srp_low: Option<f64>,
    srp_high: Option<f64>,
    rho: f64,
    threshold: usize,
    activation_rate: f64,
    lower_bound: f64,
}

#[derive(Serialize)]
struct StartRow {
    start: usize,
    m: usize,
    windows: u64,
    srp: f64,
}

#[derive(Serialize)]
struct CurveRow<'a> {
    layer: usize,
    policy: &'a str,
    slots: usize,
    rho: f64,
    hit_rate: f64,
    low: Option<f64>,
    high: Option<f64>,
    relative_to_belady: f64,
}

#[derive(Serialize)]
struct ExpertRow {
    layer: usize,
    expert: usize,
    activation_rate: f64,
    m: usize,
    srp: f64,
    domain_specialization: Option<f64>,
}

/// Writes srp.csv, starts.csv, curves.csv and experts.csv.
pub(crate) fn write(measured: &Measured, folder: &Path) -> Result<()> {
    write_csv(&folder.join("srp.csv"), srp_rows(measured))?;
    let starts = measured.starts.iter().map(|at| {
        let (m, windows, srp) = (measured.at, at.report.windows, at.report.model.srp);
        StartRow { start: at.start, m, windows, srp }
    });
    write_csv(&folder.join("starts.csv"), starts)?;
    write_curves(measured, &folder.join("curves.csv"))?;
    let experts = experts_of(measured).into_iter().map(|expert| ExpertRow {
        layer: expert.layer,
        expert: expert.expert,
        activation_rate: expert.activation_rate,
        m: measured.at,
        srp: expert.srp,
        domain_specialization: expert.specialization,
    });
    write_csv(&folder.join("experts.csv"), experts)
}

fn srp_rows(measured: &Measured) -> impl Iterator<Item = SrpRow<'_>> {
    let corpora = std::iter::once(("", &measured.all));
    let domains = measured.domains.iter().map(|(name, report)| (name.as_str(), report));
    corpora.chain(domains).flat_map(|(domain, report)| {
        let model = rows("model", domain, None, report, |report| &report.model.srp);
        let layer = move |(at, layer): (usize, &lrc_metrics::LayerReport)| {
            rows("layer", domain, Some(layer.layer), report, move |report| &report.layers[at].srp)
        };
        model.into_iter().chain(report.value.layers.iter().enumerate().flat_map(layer))
    })
}

fn rows<'a>(
    level: &'a str,
    domain: &'a str,
    layer: Option<usize>,
    report: &MetricsIntervals,
    srp: impl Fn(&MetricsReport) -> &std::collections::BTreeMap<usize, SrpValue>,
) -> Vec<SrpRow<'a>> {
    // One sequence has no interval.
    let bound = |bounds: &MetricsReport, m: &usize| (report.value.sequences > 1).then(|| srp(bounds)[m].srp);
    let row = |(m, value): (&usize, &SrpValue)| SrpRow {
        level,
        domain,
        layer,
        m: *m,
        srp: value.srp,
        srp_low: bound(&report.low, m),
        srp_high: bound(&report.high, m),
        rho: value.rho,
        threshold: value.threshold,
        activation_rate: value.activation_rate,
        lower_bound: value.lower_bound(),
    };
    srp(&report.value).iter().map(row).collect()
}

#[expect(clippy::cast_precision_loss, reason = "slots and experts are few")]
fn write_curves(measured: &Measured, path: &Path) -> Result<()> {
    let MetricsIntervals { value, low, high } = &measured.all;
    let top_k = measured.geometry.top_k() as f64;
    let mut all = Vec::new();
    for (at, layer) in value.layers.iter().enumerate() {
        let fixed = static_curve(&layer.load.activation_rates);
        let curves = layer.curves.iter().map(|(policy, curve)| (policy.as_str(), curve));
        for (policy, curve) in curves.chain([("static", &fixed)]) {
            let relative = relative_to(curve, &layer.curves["belady"]);
            for (slot, (&hit_rate, relative_to_belady)) in curve.iter().zip(relative).enumerate() {
                let bound = |report: &MetricsReport| Some(*report.layers[at].curves.get(policy)?.get(slot)?);
                let (slots, low, high) = (slot + 1, bound(low), bound(high));
                let (layer, rho) = (layer.layer, slots as f64 / top_k);
                all.push(CurveRow { layer, policy, slots, rho, hit_rate, low, high, relative_to_belady });
            }
        }
    }
    write_csv(path, all)
}

fn write_csv(path: &Path, rows: impl IntoIterator<Item = impl Serialize>) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut writer = csv::Writer::from_path(path).with_context(context)?;
    for row in rows {
        writer.serialize(row).with_context(context)?;
    }
    writer.flush().with_context(context)
}
