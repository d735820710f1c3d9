//! The main numbers as text.

use std::fmt::Write;

use lrc_metrics::{CurvePolicy, MetricsIntervals, MetricsReport, correlate, srp_lower_bound, static_curve};
use moescope_cli::{Document, LEFT_OUT, per_cent, shown, table, unused_layers};

use super::measure::Measured;

/// Cache sizes as multiples of the experts of a token.
const RHO: [usize; 4] = [1, 2, 3, 4];

/// Tables of SRP, domains and hit rates, and the correlations over experts.
pub(crate) fn summary(measured: &Measured) -> Document {
    let Measured { model, geometry, all, at, .. } = measured;
    let (layers, experts, top_k) = (geometry.layers(), geometry.experts(), geometry.top_k());
    let (sequences, tokens) = (all.value.sequences, all.value.tokens);
    let head = format!(
        "{}: {layers} MoE layers x {experts} experts, top-{top_k}; {sequences} sequences, {tokens} tokens",
        shown(model)
    );

    let mut srp = table(["m", "SRP %", "interval", "rho^", "lower bound %"]);
    for (window, value) in &all.value.model.srp {
        srp.add_row([
            window.to_string(),
            per_cent(value.srp),
            interval(all, |report| Some(report.model.srp[window].srp)),
            format!("{:.2}", value.rho),
            per_cent(srp_lower_bound(value.activation_rate)),
        ]);
    }

    let domain_srp = format!("SRP(m={at}) %");
    let mut domains = table(["domain", "sequences", &domain_srp, "interval", "relative"]);
    let of = |report: &MetricsIntervals| report.value.model.srp[at].srp;
    for (name, report) in &measured.domains {
        domains.add_row([
            name.clone(),
            report.value.sequences.to_string(),
            per_cent(of(report)),
            interval(report, |report| Some(report.model.srp[at].srp)),
            format!("{:.3}", of(report) / of(all)),
        ]);
    }
    let other = measured.domains.iter().filter(|(_, report)| report.value.unused_layers != all.value.unused_layers);
    let other: String = other
        .filter_map(|(name, report)| {
            Some(format!("\n{}: {}", shown(name), unused_layers(&report.value.unused_layers, LEFT_OUT)?))
        })
        .collect();

    let sch = CurvePolicy::LookAhead { window: *at };
    let mut rates = table(["rho", "slots a layer", "LRU %", "LFU %", "Belady %", "SCH %", "interval of SCH"]);
    for rho in RHO.into_iter().filter(|rho| rho * top_k <= experts) {
        let slots = rho * top_k;
        let rate = |policy| all.value.hit_rate(policy, slots).map_or("-".to_owned(), per_cent);
        rates.add_row([
            rho.to_string(),
            slots.to_string(),
            rate(CurvePolicy::Lru),
            rate(CurvePolicy::Lfu),
            rate(CurvePolicy::Belady),
            rate(sch),
            interval(all, |report| report.hit_rate(sch, slots)),
        ]);
    }
    let correlation = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.3}"));
    let experts: Vec<Expert> = experts_of(measured).into_iter().filter(|expert| expert.is_of_used_layer).collect();
    let with_load = correlate(&experts, |expert| Some(expert.srp), |expert| Some(expert.activation_rate));
    let with_domains = correlate(&experts, |expert| Some(expert.srp), |expert| expert.specialization);
    let unused = measured.provenance.unused_layers_line().map_or(String::new(), |line| format!("\n{line}"));
    let mut text = Document::new();
    // Writing to a document cannot fail.
    let _ = writeln!(text, "{head}\n");
    text.table("Segment routing best performance (how well one set of experts serves m tokens)", srp);
    let _ = writeln!(text, "\n");
    text.table("By domain", domains);
    let _ = writeln!(text, "{other}\n");
    let caption = format!(
        "Hit rate of a cache of rho times the experts of a token ({}; a first touch hits while slots are free)",
        all.value.convention.description()
    );
    text.table(caption, rates);
    let (load, specialization) = (correlation(with_load), correlation(with_domains));
    let _ = writeln!(
        text,
        "{unused}\n\nOver experts, SRP(m={at}) correlates with the activation rate at {load}, with domain specialization at \
         {specialization}"
    );
    text
}

/// Returns the main results in words.
pub(crate) fn verdict(measured: &Measured) -> String {
    let Measured { geometry, all, at, .. } = measured;
    let srp = &all.value.model.srp[at];
    let interval = match interval(all, |report| Some(report.model.srp[at].srp)).as_str() {
        "-" => String::new(),
        interval => format!(" (interval {interval})"),
    };
    let mut verdict = format!(
        "In windows of {at} tokens, one fixed set of experts serves {} % of the accesses (SRP){interval}.",
        per_cent(srp.srp)
    );
    let slots = 2 * geometry.top_k();
    let rate = |policy| all.value.hit_rate(policy, slots);
    if let (Some(lru), Some(belady)) = (rate(CurvePolicy::Lru), rate(CurvePolicy::Belady)) {
        let _ = write!(
            verdict,
            " With 2x the experts of a token ({slots} of {} slots per layer), LRU serves {} % of the accesses; Belady, \
             which knows the future, {} %.",
            geometry.experts(),
            per_cent(lru),
            per_cent(belady)
        );
    }
    verdict
}

/// Hit rates of the best fixed set of each layer at every number of slots, mean over the layers that a token uses; an average over tokens,
/// where policies are averaged over sequences.
#[expect(clippy::cast_precision_loss, reason = "layers are few")]
pub(crate) fn mean_static_curve(report: &MetricsReport) -> Vec<f64> {
    let used = report.layers.iter().filter(|layer| layer.is_used());
    let curves: Vec<Vec<f64>> = used.map(|layer| static_curve(&layer.load.activation_rates)).collect();
    let slots = 0..curves.first().map_or(0, Vec::len);
    slots.map(|slot| curves.iter().map(|curve| curve[slot]).sum::<f64>() / curves.len() as f64).collect()
}

/// One expert of one layer.
pub(crate) struct Expert {
    pub(crate) layer: usize,
    pub(crate) expert: usize,
    /// Whether any token uses an expert of the layer.
    pub(crate) is_of_used_layer: bool,
    pub(crate) activation_rate: f64,
    pub(crate) srp: f64,
    pub(crate) specialization: Option<f64>,
}

/// All experts of all layers.
pub(crate) fn experts_of(measured: &Measured) -> Vec<Expert> {
    let layers = measured.all.value.layers.iter().zip(measured.load.specialization());
    let of_layer = |(layer, specialization): (&lrc_metrics::LayerReport, Vec<Option<f64>>)| {
        let experts = layer.experts.iter().zip(&layer.load.activation_rates).zip(specialization);
        let expert = |(expert, ((report, &activation_rate), specialization)): (usize, _)| {
            let report: &lrc_metrics::ExpertReport = report;
            let srp = report.srp[&measured.at].srp;
            let is_of_used_layer = layer.is_used();
            Expert { layer: layer.layer, expert, is_of_used_layer, activation_rate, srp, specialization }
        };
        experts.enumerate().map(expert).collect::<Vec<_>>()
    };
    layers.flat_map(of_layer).collect()
}

/// The interval of a figure; none of one sequence, nor of what one sequence alone carries.
fn interval(report: &MetricsIntervals, figure: impl Fn(&MetricsReport) -> Option<f64>) -> String {
    match figure(&report.low).zip(figure(&report.high)) {
        Some((low, high)) if report.value.sequences > 1 && !low.is_nan() => {
            format!("{}-{}", per_cent(low), per_cent(high))
        }
        _ => "-".to_owned(),
    }
}
