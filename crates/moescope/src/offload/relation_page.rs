//! Figures of the routing against measured overheads, as one self-contained HTML page.

use moescope_cli::{Axis, Chart, Drawing, Page, Point, Series};

use super::relation::{FIGURES, Relation, Row};

/// Renders the page: the overhead of decoding and of prefilling over each figure, one point per model and cache size.
pub(crate) fn render(relation: &Relation) -> String {
    let mut page = Page::new("Routing and the cost of offloading", &verdict(relation));
    page.document(&relation.document());
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

/// Returns the figure that the decode overhead goes with most closely.
fn verdict(relation: &Relation) -> String {
    let of_all = relation.correlations.iter().filter(|correlation| correlation.rho.is_none());
    let found = of_all.filter_map(|correlation| Some((correlation, correlation.decode?)));
    match found.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())) {
        Some((correlation, decode)) => format!(
            "Over {} points of all cache sizes, the decode overhead goes most closely with {}: correlation {decode:+.3}.",
            correlation.points, correlation.figure
        ),
        None => "There are too few points for a correlation; it takes three.".to_owned(),
    }
}

fn points(
    relation: &Relation,
    figure: &str,
    of: fn(&Row) -> Option<f64>,
    overhead: fn(&Row) -> Option<f64>,
) -> Drawing {
    let mut chart = Chart::new(Axis::linear(figure), Axis::linear("seconds above all resident, as a share"));
    let mut sizes: Vec<f64> = relation.rows.iter().map(|row| row.rho).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for rho in sizes {
        let rows = relation.rows.iter().filter(|row| row.rho == rho);
        let found = rows.filter_map(|row| Some(Point::new(of(row)?, overhead(row)?).with_label(&row.model)));
        chart.add(Series::named_marks(&format!("rho {rho}"), found));
    }
    chart.draw()
}
