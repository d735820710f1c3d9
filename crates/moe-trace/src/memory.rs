//! Traces held in memory.

use crate::{DomainId, Geometry, ImportReport, Result, RoutingSource, Sequence, SequenceBuf, TraceError};

/// Sequences held in memory, each checked when it was added.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryTrace {
    geometry: Geometry,
    model: Option<String>,
    domains: Vec<String>,
    import_report: ImportReport,
    sequences: Vec<SequenceBuf>,
}

impl MemoryTrace {
    /// Creates a trace without sequences.
    pub fn new(geometry: Geometry) -> MemoryTrace {
        MemoryTrace {
            geometry,
            model: None,
            domains: Vec::new(),
            import_report: ImportReport::default(),
            sequences: Vec::new(),
        }
    }

    /// Names the model.
    pub fn with_model(mut self, model: impl Into<String>) -> MemoryTrace {
        self.model = Some(model.into());
        self
    }

    /// Names the domains; do it before adding sequences that refer to them.
    pub fn with_domains(mut self, domains: impl IntoIterator<Item = impl Into<String>>) -> MemoryTrace {
        self.domains = domains.into_iter().map(Into::into).collect();
        self
    }

    /// Says what the import of the sequences inferred or found odd.
    pub fn with_import_report(mut self, report: ImportReport) -> MemoryTrace {
        self.import_report = report;
        self
    }

    /// Appends a sequence.
    ///
    /// # Errors
    /// What [`SequenceBuf::view`] finds; [`TraceError::UnknownDomain`].
    pub fn push(&mut self, sequence: SequenceBuf) -> Result<()> {
        let view = sequence.view(&self.geometry, self.sequences.len())?;
        check_domain(view.domain(), &self.domains)?;
        self.sequences.push(sequence);
        Ok(())
    }

    /// Copies a source into memory.
    ///
    /// # Errors
    /// What reading the source finds.
    pub fn from_source(source: &dyn RoutingSource) -> Result<MemoryTrace> {
        let mut trace = MemoryTrace::new(source.geometry().clone()).with_domains(source.domains());
        trace.model = source.model().map(str::to_owned);
        trace.import_report = source.import_report().clone();
        for index in 0..source.len() {
            let sequence = source.sequence(index)?;
            check_domain(sequence.domain(), &trace.domains)?;
            trace.sequences.push(sequence.to_buf());
        }
        Ok(trace)
    }

    /// The owned sequences.
    pub fn sequences(&self) -> &[SequenceBuf] {
        &self.sequences
    }
}

pub(crate) fn check_domain(domain: Option<DomainId>, names: &[String]) -> Result<()> {
    match domain {
        Some(domain) if domain.index() >= names.len() => {
            Err(TraceError::UnknownDomain { domain: domain.index(), names: names.len() })
        }
        _ => Ok(()),
    }
}

impl RoutingSource for MemoryTrace {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn len(&self) -> usize {
        self.sequences.len()
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let len = self.sequences.len();
        let sequence = self.sequences.get(index).ok_or(TraceError::NoSuchSequence { index, len })?;
        Ok(Sequence::trusted(&self.geometry, index, sequence.columns()))
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn import_report(&self) -> &ImportReport {
        &self.import_report
    }
}
