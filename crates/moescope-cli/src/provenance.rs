//! What a reader of figures must know of the trace behind them.

use moe_trace::{ImportReport, Notice, RoutingSource};
use serde::Serialize;

use crate::unused::{LEFT_OUT, unused_layers};

/// The facts about a trace that change what its figures mean. In JSON they are fields of a report; those without content are
/// left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Provenance {
    /// What a reader must know of the capture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<Notice>,
    /// What the import inferred or found odd.
    #[serde(skip_serializing_if = "ImportReport::is_empty")]
    import_warnings: ImportReport,
    /// Numbers of the MoE layers that no token uses, unless the report has them itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unused_layers: Vec<usize>,
    /// What follows from the unused layers.
    #[serde(skip)]
    consequence: &'static str,
}

/// A report and the provenance of its trace, as fields of one JSON object.
#[derive(Serialize)]
pub struct Reported<'a, T> {
    /// The report.
    #[serde(flatten)]
    pub report: &'a T,
    /// The facts about its trace.
    #[serde(flatten)]
    pub provenance: &'a Provenance,
}

impl Provenance {
    /// Returns what a trace knows of its capture and its import.
    pub fn of(trace: &dyn RoutingSource) -> Provenance {
        Provenance {
            notices: trace.notices().to_vec(),
            import_warnings: trace.import_report().clone(),
            unused_layers: Vec::new(),
            consequence: LEFT_OUT,
        }
    }

    /// Adds the numbers of MoE layers that no token uses, and what follows for the figures.
    #[must_use]
    pub fn with_unused_layers(self, unused_layers: Vec<usize>, consequence: &'static str) -> Provenance {
        Provenance { unused_layers, consequence, ..self }
    }

    /// Returns true if there is nothing to know.
    pub fn is_empty(&self) -> bool {
        self.notices.is_empty() && self.import_warnings.is_empty() && self.unused_layers.is_empty()
    }

    /// Returns the line about layers that no token uses, if there are any.
    pub fn unused_layers_line(&self) -> Option<String> {
        unused_layers(&self.unused_layers, self.consequence)
    }

    /// Returns all facts as pairs of kind and text, for pages and CSV files.
    pub fn rows(&self) -> Vec<[String; 2]> {
        let notices = self.notices.iter().map(|notice| ["capture".to_owned(), notice.to_string()]);
        let warnings = self.import_warnings.warnings().iter();
        let warnings = warnings.map(|warning| [warning.kind.to_string(), warning.to_string()]);
        let unused = self.unused_layers_line().map(|line| ["unused-layers".to_owned(), line]);
        notices.chain(warnings).chain(unused).collect()
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{EMPTY_SLOT, Geometry, MemoryTrace, Phase, SequenceBuf, WarningKind};

    use super::*;
    use crate::unused::layers_without_access;

    #[test]
    fn json_and_rows_have_every_fact_and_nothing_of_a_plain_trace() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        trace.push(SequenceBuf::from_experts(&geometry, vec![3, EMPTY_SLOT], Phase::Decode).unwrap()).unwrap();
        #[derive(Serialize)]
        struct Report {
            figure: u8,
        }
        let json = |provenance: &Provenance| {
            serde_json::to_value(Reported { report: &Report { figure: 1 }, provenance }).unwrap()
        };
        let plain = Provenance::of(&trace);
        assert_eq!((json(&plain), plain.is_empty()), (serde_json::json!({ "figure": 1 }), true));

        let mut report = ImportReport::default();
        report.warn(WarningKind::EXPERTS_INFERRED, "--experts", || (None, "4 experts".to_owned()));
        let mut told = Provenance::of(&trace.clone().with_import_report(report));
        told.notices = vec![Notice::Interrupted { sequences: 1 }];
        let told = told.with_unused_layers(layers_without_access(&trace).unwrap(), LEFT_OUT);
        let found = json(&told);
        assert_eq!(found["import_warnings"][0]["kind"], "experts-inferred");
        assert_eq!(
            (&found["unused_layers"][0], &found["notices"][0]["interrupted"]["sequences"]),
            (&1.into(), &1.into())
        );
        let kinds: Vec<String> = told.rows().into_iter().map(|[kind, _]| kind).collect();
        assert_eq!(kinds, ["capture", "experts-inferred", "unused-layers"]);
        assert_eq!(told.rows()[1][1], "4 experts; --experts");
    }
}
