//! The numbers behind the figures as CSV files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use lrc_metrics::{
    Convention, CurvePolicy, HitRates, MetricsIntervals, MetricsReport, SrpValue, relative_to, static_curve,
};
use moescope_cli::write_csv;
use serde::Serialize;

use super::measure::Measured;
use super::starts::WindowStart;
use super::summary::{experts_of, mean_static_curve};

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
struct CurveRow {
    /// None for the model.
    layer: Option<usize>,
    /// How hits are counted.
    convention: Convention,
    policy: String,
    slots: usize,
    rho: f64,
    hit_rate: f64,
    low: Option<f64>,
    high: Option<f64>,
    /// None for the best fixed set, which is averaged over tokens instead of sequences.
    relative_to_belady: Option<f64>,
}

#[derive(Serialize)]
struct CorrelationRow<'a> {
    domain: &'a str,
    other: &'a str,
    /// None if one of them uses all experts alike.
    correlation: Option<f64>,
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

const SRP: [&str; 11] = [
    "level",
    "domain",
    "layer",
    "m",
    "srp",
    "srp_low",
    "srp_high",
    "rho",
    "threshold",
    "activation_rate",
    "lower_bound",
];
const STARTS: [&str; 4] = ["start", "m", "windows", "srp"];
const CURVES: [&str; 9] =
    ["layer", "convention", "policy", "slots", "rho", "hit_rate", "low", "high", "relative_to_belady"];
const EXPERTS: [&str; 6] = ["layer", "expert", "activation_rate", "m", "srp", "domain_specialization"];
const DOMAINS: [&str; 3] = ["domain", "other", "correlation"];

/// Writes about.csv, srp.csv, starts.csv, curves.csv, experts.csv and domains.csv; `name` writes what a file or a trace names.
pub(crate) fn write(measured: &Measured, folder: &Path, name: fn(&str) -> String) -> Result<()> {
    let about = measured.provenance.rows().into_iter().map(|[kind, what]| [kind, name(&what)]);
    write_csv(&folder.join("about.csv"), &["kind", "what"], about)?;
    write_csv(&folder.join("srp.csv"), &SRP, srp_rows(measured))?;
    let starts = measured.starts.iter().map(|&WindowStart { start, windows, srp }| StartRow {
        start,
        m: measured.at,
        windows,
        srp,
    });
    write_csv(&folder.join("starts.csv"), &STARTS, starts)?;
    write_csv(&folder.join("curves.csv"), &CURVES, curve_rows(measured))?;
    let experts = experts_of(measured).into_iter().map(|expert| ExpertRow {
        layer: expert.layer,
        expert: expert.expert,
        activation_rate: expert.activation_rate,
        m: measured.at,
        srp: expert.srp,
        domain_specialization: expert.specialization,
    });
    write_csv(&folder.join("experts.csv"), &EXPERTS, experts)?;
    let matrix = measured.load.correlation();
    let pairs = matrix.indexed_iter().map(|((domain, other), &correlation)| CorrelationRow {
        domain: &measured.names[domain],
        other: &measured.names[other],
        correlation: some_number(correlation),
    });
    write_csv(&folder.join("domains.csv"), &DOMAINS, pairs)
}

/// A bound or a correlation, if it exists.
fn some_number(figure: f64) -> Option<f64> {
    Some(figure).filter(|figure| !figure.is_nan())
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
    srp: impl Fn(&MetricsReport) -> &BTreeMap<usize, SrpValue>,
) -> Vec<SrpRow<'a>> {
    // One sequence has no interval.
    let bound =
        |bounds: &MetricsReport, m: &usize| some_number(srp(bounds)[m].srp).filter(|_| report.value.sequences > 1);
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

/// Curves of the model (the mean over layers), each layer, and the best fixed set of each layer.
fn curve_rows(measured: &Measured) -> Vec<CurveRow> {
    let top_k = measured.geometry.top_k();
    let of_model = rows_of_curves(&measured.all, None, top_k, |report| &report.model.curves);
    let fixed = curve_of(None, "static", top_k, &mean_static_curve(&measured.all.value), None, |_| None);
    let layers = measured.all.value.layers.iter().enumerate();
    let of_layers = layers.flat_map(|(at, layer)| {
        let fixed = static_curve(&layer.load.activation_rates);
        let fixed = curve_of(Some(layer.layer), "static", top_k, &fixed, None, |_| None);
        let rows = rows_of_curves(&measured.all, Some(layer.layer), top_k, move |report| &report.layers[at].curves);
        rows.into_iter().chain(fixed)
    });
    of_model.into_iter().chain(fixed).chain(of_layers).collect()
}

fn rows_of_curves<'a>(
    report: &'a MetricsIntervals,
    layer: Option<usize>,
    top_k: usize,
    curves: impl Fn(&MetricsReport) -> &HitRates,
) -> Vec<CurveRow> {
    // One sequence has no interval.
    let has_interval = report.value.sequences > 1;
    let of_policy = |(policy, curve): (&'a CurvePolicy, &'a Vec<f64>)| {
        let bounds = |slot: usize| Some((curves(&report.low)[policy][slot], curves(&report.high)[policy][slot]));
        let belady = curves(&report.value).get(&CurvePolicy::Belady).map(Vec::as_slice);
        curve_of(layer, &policy.to_string(), top_k, curve, belady, |slot| bounds(slot).filter(|_| has_interval))
    };
    curves(&report.value).iter().flat_map(of_policy).collect()
}

#[expect(clippy::cast_precision_loss, reason = "slots and experts are few")]
fn curve_of(
    layer: Option<usize>,
    policy: &str,
    top_k: usize,
    curve: &[f64],
    belady: Option<&[f64]>,
    bounds: impl Fn(usize) -> Option<(f64, f64)>,
) -> Vec<CurveRow> {
    let relative = belady.map(|belady| relative_to(curve, belady));
    let row = |(slot, &hit_rate): (usize, &f64)| CurveRow {
        layer,
        convention: Convention::Paper,
        policy: policy.to_owned(),
        slots: slot + 1,
        rho: (slot + 1) as f64 / top_k as f64,
        hit_rate,
        low: bounds(slot).and_then(|(low, _)| some_number(low)),
        high: bounds(slot).and_then(|(_, high)| some_number(high)),
        relative_to_belady: relative.as_ref().map(|relative| relative[slot]),
    };
    curve.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header is written by itself, so that a table without rows has it; it must be that of the rows.
    #[test]
    fn headers_are_the_names_of_the_fields() {
        fn header(row: impl Serialize) -> String {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.serialize(row).unwrap();
            let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
            text.lines().next().unwrap().to_owned()
        }
        let srp = SrpRow {
            level: "",
            domain: "",
            layer: None,
            m: 1,
            srp: 0.0,
            srp_low: None,
            srp_high: None,
            rho: 0.0,
            threshold: 1,
            activation_rate: 0.0,
            lower_bound: 0.0,
        };
        assert_eq!(header(srp), SRP.join(","));
        assert_eq!(header(StartRow { start: 0, m: 1, windows: 1, srp: 0.0 }), STARTS.join(","));
        let curve = curve_of(None, "", 1, &[0.5], None, |_| None).remove(0);
        assert_eq!(header(curve), CURVES.join(","));
        let expert =
            ExpertRow { layer: 0, expert: 0, activation_rate: 0.0, m: 1, srp: 0.0, domain_specialization: None };
        assert_eq!(header(expert), EXPERTS.join(","));
        assert_eq!(header(CorrelationRow { domain: "", other: "", correlation: None }), DOMAINS.join(","));
    }
}
