//! One self-contained HTML page of plots.

use plotly::Plot;
use plotly::common::Title;
use plotly::layout::{Axis, AxisType, Layout};

use crate::provenance::Provenance;

const STYLE: &str = "body{font-family:system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
    pre{background:#f6f6f6;padding:1rem;overflow-x:auto}.plot{height:28rem}\
    td,th{padding:.3rem .6rem;vertical-align:top;text-align:left}";

/// A page under construction: text and plots one below the other, the plotting library included.
pub struct Page {
    html: String,
    plots: usize,
}

impl Page {
    /// Creates a page with a title and a preformatted text below it.
    pub fn new(title: &str, text: &str) -> Page {
        let (title, text) = (escape(title), escape(text));
        // The first script is the plotting library; nothing of a page is typeset mathematics, which the others are for.
        let scripts = Plot::offline_js_sources();
        let script = scripts.split_inclusive("</script>").next().unwrap_or_default();
        let html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <style>{STYLE}</style>{script}</head>\n<body><h1>{title}</h1>\n<pre>{text}</pre>\n"
        );
        Page { html, plots: 0 }
    }

    /// Adds the facts about the trace that change what the figures mean; nothing if there are none.
    pub fn provenance(&mut self, trace: &str, provenance: &Provenance) {
        if !provenance.is_empty() {
            self.table(&format!("About {trace}"), ["kind", "what"], provenance.rows().into_iter());
        }
    }

    /// Adds a plot under a heading.
    pub fn plot(&mut self, heading: &str, plot: &Plot) {
        self.plots += 1;
        let (heading, inline) = (escape(heading), plot.to_inline_html(Some(&format!("plot-{}", self.plots))));
        self.html.push_str(&format!("<h2>{heading}</h2><div class=\"plot\">{inline}</div>\n"));
    }

    /// Adds a table under a heading.
    pub fn table<const N: usize>(&mut self, heading: &str, header: [&str; N], rows: impl Iterator<Item = [String; N]>) {
        let row = |tag: &str, cells: [&str; N]| -> String {
            let cells = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>\n", cells.concat())
        };
        self.html.push_str(&format!("<h2>{}</h2><table>{}", escape(heading), row("th", header)));
        rows.for_each(|cells| self.html.push_str(&row("td", cells.each_ref().map(String::as_str))));
        self.html.push_str("</table>\n");
    }

    /// The page as HTML.
    pub fn finish(mut self) -> String {
        self.html.push_str("</body></html>\n");
        self.html
    }
}

/// A layout with titles at both axes.
pub fn axes(x: &str, y: &str) -> Layout {
    let axis = |title: &str| Axis::new().title(Title::with_text(title));
    Layout::new().x_axis(axis(x)).y_axis(axis(y))
}

/// A logarithmic axis of window lengths, with a tick at each.
pub fn window_axis<'a>(windows: impl Iterator<Item = &'a usize> + Clone) -> Axis {
    Axis::new()
        .type_(AxisType::Log)
        .tick_values(windows.clone().map(|&window| window as f64).collect())
        .tick_text(windows.map(usize::to_string).collect())
        .title(Title::with_text("window length m, tokens"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
