//! Figures of the routing against measured overheads, as one self-contained HTML page.

use moescope_cli::{Page, axes};
use plotly::common::Mode;
use plotly::{Plot, Scatter};

use super::relation::{FIGURES, Relation, Row};

/// Renders the page: the overhead of decoding and of prefilling over each figure, a point a model and cache size.
pub(crate) fn render(relation: &Relation) -> String {
    let mut page = Page::new("Routing and the cost of offloading", &relation.to_string());
    for of in &relation.traces {
        page.provenance(&of.model, &of.provenance);
    }
    for (figure, of) in FIGURES {
        page.plot(&format!("Decode overhead over {figure}"), &points(relation, figure, of, |row| row.decode_overhead));
        page.plot(
            &format!("Prefill overhead over {figure}"),
            &points(relation, figure, of, |row| row.prefill_overhead),
        );
    }
    page.finish()
}

fn points(relation: &Relation, figure: &str, of: fn(&Row) -> Option<f64>, overhead: fn(&Row) -> Option<f64>) -> Plot {
    let mut plot = Plot::new();
    let mut sizes: Vec<f64> = relation.rows.iter().map(|row| row.rho).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for rho in sizes {
        let rows = relation.rows.iter().filter(|row| row.rho == rho);
        let found = rows.filter_map(|row| Some((of(row)?, overhead(row)?, row.model.clone())));
        let (x, (y, names)): (Vec<f64>, (Vec<f64>, Vec<String>)) = found.map(|(x, y, name)| (x, (y, name))).unzip();
        let trace = Scatter::new(x, y).mode(Mode::Markers).text_array(names).name(format!("rho {rho}"));
        plot.add_trace(trace);
    }
    plot.set_layout(axes(figure, "seconds above all resident, as a share"));
    plot
}
