//! Figures of the routing beside measured overheads, as a table and as JSON.

use std::fmt::{self, Write as _};

use expert_cache::Convention;
use lrc_metrics::correlate;
use moescope_cli::{Document, Provenance, per_cent, table};
use serde::Serialize;

/// What `moescope correlate` found.
#[derive(Serialize)]
pub(crate) struct Relation {
    /// Window of SRP and SCH, in tokens.
    pub(crate) window: usize,
    /// How the hits of SCH and LRU are counted.
    pub(crate) figures_convention: Convention,
    /// How the measured hits are counted.
    pub(crate) hit_rate_convention: Convention,
    pub(crate) rows: Vec<Row>,
    pub(crate) correlations: Vec<Correlation>,
    /// The traces that a reader must know something of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) traces: Vec<OfTrace>,
}

/// The facts about the trace of a model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OfTrace {
    pub(crate) model: String,
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
}

/// One model at one cache size.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) rho: f64,
    pub(crate) slots: usize,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// Measured hits an access of decoded tokens.
    pub(crate) hit_rate: f64,
    /// Seconds of a decoded token above those with all experts resident, as a share of them.
    pub(crate) decode_overhead: Option<f64>,
    /// The same of a prefilled token.
    pub(crate) prefill_overhead: Option<f64>,
}

/// What the routing says, all of it shares; SRP does not know the cache size.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) srp: Option<f64>,
    pub(crate) sch: Option<f64>,
    pub(crate) lru: Option<f64>,
}

/// Pearson correlations of the overheads with a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Correlation {
    /// The cache size over models, or all sizes.
    pub(crate) rho: Option<f64>,
    pub(crate) figure: &'static str,
    pub(crate) points: usize,
    pub(crate) decode: Option<f64>,
    pub(crate) prefill: Option<f64>,
}

type OfRow = fn(&Row) -> Option<f64>;

/// The figures by name.
pub(crate) const FIGURES: [(&str, OfRow); 3] =
    [("SRP", |row| row.figures.srp), ("SCH", |row| row.figures.sch), ("LRU hits", |row| row.figures.lru)];

impl Relation {
    pub(crate) fn new(window: usize, rows: Vec<Row>, mut traces: Vec<OfTrace>) -> Relation {
        traces.retain(|of| !of.provenance.is_empty());
        let mut sizes: Vec<Option<f64>> = Vec::new();
        for row in &rows {
            if !sizes.contains(&Some(row.rho)) {
                sizes.push(Some(row.rho));
            }
        }
        sizes.push(None);
        let of_size = |rho: Option<f64>| {
            let rows: Vec<&Row> = rows.iter().filter(|row| rho.is_none_or(|rho| row.rho == rho)).collect();
            FIGURES.map(|(figure, of)| {
                let with = |overhead: OfRow| {
                    // Two points lie on a line whatever they are.
                    correlate(&rows, |row| of(row), |row| overhead(row)).filter(|_| rows.len() > 2)
                };
                let (decode, prefill) = (with(|row| row.decode_overhead), with(|row| row.prefill_overhead));
                Correlation { rho, figure, points: rows.len(), decode, prefill }
            })
        };
        let correlations = sizes.into_iter().flat_map(of_size).collect();
        Relation {
            window,
            figures_convention: Convention::Paper,
            hit_rate_convention: Convention::Engine,
            rows,
            correlations,
            traces,
        }
    }
}

impl Relation {
    /// Returns the figures and correlations as text and tables.
    pub(crate) fn document(&self) -> Document {
        let mut document = Document::new();
        // Writing to a document cannot fail.
        let _ = self.write(&mut document);
        document
    }

    fn write(&self, f: &mut Document) -> fmt::Result {
        let (srp, sch) = (format!("SRP_{} %", self.window), format!("SCH_{} %", self.window));
        let share = |share: Option<f64>| share.map_or("-".to_owned(), per_cent);
        let mut rows =
            table(["model", "rho", "slots", &srp, &sch, "LRU hits %", "measured hits %", "decode + %", "prefill + %"]);
        for row in &self.rows {
            rows.add_row([
                row.model.clone(),
                row.rho.to_string(),
                row.slots.to_string(),
                share(row.figures.srp),
                share(row.figures.sch),
                share(row.figures.lru),
                per_cent(row.hit_rate),
                share(row.decode_overhead),
                share(row.prefill_overhead),
            ]);
        }
        let (paper, engine) = (self.figures_convention.description(), self.hit_rate_convention.description());
        f.table("", rows);
        writeln!(f, "\nSCH and LRU hits: {paper}; measured hits: {engine}\n")?;
        let signed = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:+.3}"));
        let mut table = table(["rho", "figure", "points", "with decode overhead", "with prefill overhead"]);
        for correlation in &self.correlations {
            table.add_row([
                correlation.rho.map_or("all".to_owned(), |rho| rho.to_string()),
                correlation.figure.to_owned(),
                correlation.points.to_string(),
                signed(correlation.decode),
                signed(correlation.prefill),
            ]);
        }
        f.table("", table);
        let unused = self.traces.iter().filter_map(|of| Some((&of.model, of.provenance.unused_layers_line()?)));
        for (model, line) in unused {
            write!(f, "\n{model}: {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.document().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overhead falls with SRP at one size and knows nothing of it at the other.
    #[test]
    fn correlations_are_of_each_size_and_of_all() {
        let row = |rho, srp, decode| Row {
            model: String::new(),
            rho,
            slots: 1,
            figures: Figures { srp: Some(srp), sch: None, lru: Some(0.5) },
            hit_rate: 0.5,
            decode_overhead: Some(decode),
            prefill_overhead: None,
        };
        let rows =
            vec![row(1.0, 0.1, 3.0), row(1.0, 0.2, 2.0), row(1.0, 0.3, 1.0), row(2.0, 0.1, 0.5), row(2.0, 0.2, 0.9)];
        let relation = Relation::new(16, rows, Vec::new());
        let srp: Vec<_> = relation.correlations.iter().filter(|correlation| correlation.figure == "SRP").collect();
        let found: Vec<_> = srp.iter().map(|c| (c.rho, c.points, c.decode.map(|c| (c * 10.0).round()))).collect();
        assert_eq!(found[..2], [(Some(1.0), 3, Some(-10.0)), (Some(2.0), 2, None)]);
        assert_eq!((found[2].0, found[2].1, found.len()), (None, 5, 3));
        assert!(relation.correlations.iter().all(|c| c.prefill.is_none()));
        assert!(relation.correlations.iter().filter(|c| c.figure != "SRP").all(|c| c.decode.is_none()));
        assert!(relation.to_string().contains("| 1   | SRP      | 3      |"), "{relation}");
    }
}
