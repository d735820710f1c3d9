//! One self-contained HTML page of plots.

use plotly::Plot;
use plotly::common::Title;
use plotly::layout::{Axis, Layout};

const STYLE: &str = "body{font-family:system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
    pre{background:#f6f6f6;padding:1rem;overflow-x:auto}.plot{height:28rem}";

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

    /// Adds a plot under a heading.
    pub fn plot(&mut self, heading: &str, plot: &Plot) {
        self.plots += 1;
        let (heading, inline) = (escape(heading), plot.to_inline_html(Some(&format!("plot-{}", self.plots))));
        self.html.push_str(&format!("<h2>{heading}</h2><div class=\"plot\">{inline}</div>\n"));
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
