//! The report as one self-contained HTML page.

use anyhow::Result;
use moe_model::Tokenizer;
use moe_trace::{MemoryTrace, RoutingSource};
use moescope_cli::{Axis, Chart, Drawing, Page, Point, Series, TokenMap, Weight};

use crate::measure::POLICIES;
use crate::report::Report;

/// Tokens shown in a heat map: as many as fit across a wide screen.
const HEAT_MAP_TOKENS: usize = 112;

/// Renders the page; plots of the curves, heat maps of one sequence of each domain, the generated text.
pub(crate) fn render(report: &Report, trace: &MemoryTrace, tokenizer: &Tokenizer) -> Result<String> {
    let title = format!("Local routing consistency of {}", report.model);
    let mut page = Page::new(&title, &report.verdict());
    page.document(&report.document());
    page.plot("SRP over the window length", &srp_plot(report));
    page.plot("Hit rate over capacity, mean over layers", &curve_plot(report));
    for (domain, name) in trace.domains().iter().enumerate() {
        let of_domain = |index: &usize| {
            trace.sequences()[*index].domain.is_some_and(|sequence_domain| sequence_domain.index() == domain)
        };
        if let Some(index) = (0..trace.len()).find(of_domain) {
            let heading = format!("Router weights over the first tokens of one sequence: {name}");
            page.plot(&heading, &heat_map(trace, index, tokenizer)?);
        }
    }
    let samples = report.samples.iter();
    let cells = samples.map(|sample| [sample.domain.clone(), sample.prompt.clone(), sample.continuation.clone()]);
    page.table("Generated text", ["domain", "prompt", "continuation"], cells);
    Ok(page.finish())
}

/// Draws the SRP of the model and of each layer.
fn srp_plot(report: &Report) -> Drawing {
    let model = &report.metrics.model.srp;
    let mut chart = Chart::new(Axis::windows(model.keys()), Axis::linear("SRP"));
    for layer in &report.metrics.layers {
        let points = layer.srp.iter().map(|(&m, value)| Point::new(m as f64, value.srp));
        chart.add(Series::marked_line(&format!("layer {}", layer.layer), points));
    }
    chart.add(Series::whole("model", model.iter().map(|(&m, value)| Point::new(m as f64, value.srp))));
    chart.draw()
}

/// Draws the hit rate of each policy at every capacity.
fn curve_plot(report: &Report) -> Drawing {
    let mut chart = Chart::new(Axis::linear("slots per layer"), Axis::linear("hit rate (paper convention)"));
    for (policy, name) in POLICIES.iter().zip(["LRU", "LFU", "Belady", "SCH(16)"]) {
        if let Some(curve) = report.metrics.model.curves.get(policy) {
            let points = curve.iter().enumerate().map(|(slot, &rate)| Point::new((slot + 1) as f64, rate));
            chart.add(Series::line(name, points));
        }
    }
    chart.draw()
}

/// Draws the router weights of one sequence: tokens across, the experts of all layers down.
fn heat_map(trace: &MemoryTrace, index: usize, tokenizer: &Tokenizer) -> Result<Drawing> {
    let sequence = trace.sequence(index)?;
    let geometry = sequence.geometry();
    let count = sequence.len().min(HEAT_MAP_TOKENS);
    let mut weights = Vec::new();
    for token in 0..count {
        for layer in geometry.layer_ids() {
            for (expert, weight) in sequence.weighted_experts(token, layer).into_iter().flatten() {
                let (layer, expert, weight) = (layer.index(), expert.index(), f64::from(weight));
                weights.push(Weight { token, layer, expert, weight });
            }
        }
    }
    let text = |&id| Ok(tokenizer.decode(&[id])?);
    let tokens = sequence.token_ids().unwrap_or_default()[..count].iter().map(text).collect::<Result<_>>()?;
    let layers = geometry.layer_ids().map(|layer| format!("layer {}", layer.0)).collect();
    Ok(TokenMap { tokens, layers, experts: geometry.experts(), weights }.draw())
}
