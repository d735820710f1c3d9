//! The report as one self-contained HTML page.

use anyhow::Result;
use moe_model::Tokenizer;
use moe_trace::{LayerId, MemoryTrace, RoutingSource};
use moescope_cli::{Page, axes, window_axis};
use ndarray::Array2;
use plotly::common::{ColorScale, ColorScalePalette, Mode, Title};
use plotly::layout::Axis;
use plotly::{HeatMap, Plot, Scatter};

use crate::measure::POLICIES;
use crate::report::Report;

/// Tokens shown in a heat map.
const HEAT_MAP_TOKENS: usize = 160;

/// Renders the page; plots of the curves, heat maps of one sequence of each domain, the generated text.
pub(crate) fn render(report: &Report, trace: &MemoryTrace, tokenizer: &Tokenizer) -> Result<String> {
    let title = format!("Local routing consistency of {}", report.model);
    let mut page = Page::new(&title, &report.to_string());
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

/// SRP of the model and of each layer.
fn srp_plot(report: &Report) -> Plot {
    let mut plot = Plot::new();
    let windows: Vec<usize> = report.metrics.model.srp.keys().copied().collect();
    for layer in &report.metrics.layers {
        let values = layer.srp.values().map(|value| value.srp).collect();
        plot.add_trace(
            Scatter::new(windows.clone(), values)
                .mode(Mode::LinesMarkers)
                .opacity(0.4)
                .name(format!("layer {}", layer.layer)),
        );
    }
    let model = report.metrics.model.srp.values().map(|value| value.srp).collect();
    plot.add_trace(Scatter::new(windows, model).mode(Mode::LinesMarkers).name("model"));
    plot.set_layout(axes("", "SRP").x_axis(window_axis(report.metrics.model.srp.keys())));
    plot
}

/// Hit rate of each policy at every capacity.
fn curve_plot(report: &Report) -> Plot {
    let mut plot = Plot::new();
    for (policy, name) in POLICIES.iter().zip(["LRU", "LFU", "Belady", "SCH(16)"]) {
        if let Some(curve) = report.metrics.model.curves.get(policy) {
            let slots = (1..=curve.len()).collect();
            plot.add_trace(Scatter::new(slots, curve.clone()).mode(Mode::LinesMarkers).name(name));
        }
    }
    plot.set_layout(axes("slots a layer", "hit rate (paper convention)"));
    plot
}

/// Router weights of one sequence: tokens across, the experts of all layers up.
fn heat_map(trace: &MemoryTrace, index: usize, tokenizer: &Tokenizer) -> Result<Plot> {
    let sequence = trace.sequence(index)?;
    let geometry = sequence.geometry();
    let tokens = sequence.len().min(HEAT_MAP_TOKENS);
    let rows = geometry.layers() * geometry.experts();
    let mut weights = Array2::<f32>::zeros((rows, tokens));
    for token in 0..tokens {
        for layer in geometry.layer_ids() {
            for (expert, weight) in sequence.weighted_experts(token, layer).into_iter().flatten() {
                weights[[layer.index() * geometry.experts() + expert.index(), token]] = weight;
            }
        }
    }
    let text = |&id| Ok(tokenizer.decode(&[id])?);
    let words: Vec<String> =
        sequence.token_ids().unwrap_or_default()[..tokens].iter().map(text).collect::<Result<_>>()?;
    let x = words.iter().enumerate().map(|(at, word)| format!("{at} {word}")).collect();
    let name =
        |layer: LayerId| geometry.expert_ids().map(move |expert| format!("layer {} expert {}", layer.0, expert.0));
    let y = geometry.layer_ids().flat_map(name).collect();
    let weights = weights.rows().into_iter().map(|row| row.to_vec()).collect();
    let mut plot = Plot::new();
    plot.add_trace(HeatMap::new(x, y, weights).color_scale(ColorScale::Palette(ColorScalePalette::Viridis)));
    plot.set_layout(
        axes("token", "")
            .y_axis(Axis::new().show_tick_labels(false).title(Title::with_text("layers and their experts"))),
    );
    Ok(plot)
}
