//! The report as one self-contained HTML page.

use std::fmt::Write as _;

use anyhow::Result;
use moe_model::Tokenizer;
use moe_trace::{LayerId, MemoryTrace, RoutingSource};
use plotly::common::{ColorScale, ColorScalePalette, Mode, Title};
use plotly::layout::{Axis, AxisType, Layout};
use plotly::{HeatMap, Plot, Scatter};

use crate::measure::{POLICIES, mean_curve};
use crate::report::Report;

/// Tokens shown in a heat map.
const HEAT_MAP_TOKENS: usize = 160;

const STYLE: &str = "body{font-family:system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
    pre{background:#f6f6f6;padding:1rem;overflow-x:auto}.plot{height:26rem}.heat{height:34rem}\
    td,th{padding:.3rem .6rem;vertical-align:top;text-align:left}";

/// Renders the page; plots of the curves, heat maps of one sequence of each domain, the generated text.
pub(crate) fn render(report: &Report, trace: &MemoryTrace, tokenizer: &Tokenizer) -> Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>{}\
         </head>\n<body><h1>{title}</h1>\n<pre>{}</pre>\n",
        plotly_script(),
        escape(&report.to_string()),
        title = escape(&format!("Local routing consistency of {}", report.model)),
    );
    let mut add = |class: &str, id: &str, heading: &str, plot: &Plot| {
        write!(page, "<h2>{}</h2><div class=\"{class}\">{}</div>\n", escape(heading), plot.to_inline_html(Some(id)))
    };
    add("plot", "srp", "SRP over the window length", &srp_plot(report))?;
    add("plot", "curves", "Hit rate over capacity, mean over layers", &curve_plot(report))?;
    for (domain, name) in trace.domains().iter().enumerate() {
        let of_domain = |index: &usize| {
            trace.sequences()[*index].domain.is_some_and(|sequence_domain| sequence_domain.index() == domain)
        };
        if let Some(index) = (0..trace.len()).find(of_domain) {
            let heading = format!("Router weights over the first tokens of one sequence: {name}");
            add("heat", &format!("heat-{domain}"), &heading, &heat_map(trace, index, tokenizer)?)?;
        }
    }
    page.push_str("<h2>Generated text</h2><table><tr><th>domain</th><th>prompt</th><th>continuation</th></tr>\n");
    for sample in &report.samples {
        let (domain, prompt) = (escape(&sample.domain), escape(&sample.prompt));
        let continuation = escape(&sample.continuation);
        writeln!(page, "<tr><td>{domain}</td><td>{prompt}</td><td>{continuation}</td></tr>")?;
    }
    page.push_str("</table></body></html>\n");
    Ok(page)
}

/// The plotting library alone; nothing of the page is typeset mathematics.
fn plotly_script() -> String {
    let scripts = Plot::offline_js_sources();
    scripts.split_inclusive("</script>").next().unwrap_or_default().to_owned()
}

fn layout(x: &str, y: &str) -> Layout {
    let axis = |title: &str| Axis::new().title(Title::with_text(title));
    Layout::new().x_axis(axis(x)).y_axis(axis(y))
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
    let ticks = report.metrics.model.srp.keys();
    let windows = Axis::new()
        .type_(AxisType::Log)
        .tick_values(ticks.clone().map(|&window| window as f64).collect())
        .tick_text(ticks.map(usize::to_string).collect())
        .title(Title::with_text("window length m, tokens"));
    plot.set_layout(layout("", "SRP").x_axis(windows));
    plot
}

/// Hit rate of each policy at every capacity.
fn curve_plot(report: &Report) -> Plot {
    let mut plot = Plot::new();
    for (label, name) in POLICIES.into_iter().zip(["LRU", "LFU", "Belady", "SCH(16)"]) {
        let curve = mean_curve(&report.metrics, label);
        if !curve.is_empty() {
            plot.add_trace(Scatter::new((1..=curve.len()).collect(), curve).mode(Mode::LinesMarkers).name(name));
        }
    }
    plot.set_layout(layout("slots a layer", "hit rate"));
    plot
}

/// Router weights of one sequence: tokens across, the experts of all layers up.
fn heat_map(trace: &MemoryTrace, index: usize, tokenizer: &Tokenizer) -> Result<Plot> {
    let sequence = trace.sequence(index)?;
    let geometry = sequence.geometry();
    let tokens = sequence.len().min(HEAT_MAP_TOKENS);
    let rows = geometry.layers() * geometry.experts();
    let mut weights = vec![vec![0.0f32; tokens]; rows];
    for token in 0..tokens {
        for layer in geometry.layer_ids() {
            for (expert, weight) in sequence.weighted_experts(token, layer).into_iter().flatten() {
                weights[layer.index() * geometry.experts() + expert.index()][token] = weight;
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
    let mut plot = Plot::new();
    plot.add_trace(HeatMap::new(x, y, weights).color_scale(ColorScale::Palette(ColorScalePalette::Viridis)));
    plot.set_layout(
        layout("token", "")
            .y_axis(Axis::new().show_tick_labels(false).title(Title::with_text("layers and their experts"))),
    );
    Ok(plot)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
