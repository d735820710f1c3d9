//! Several traces as one.

use crate::{DomainId, Geometry, ImportReport, Notice, Result, RoutingSource, Sequence, TraceError};

/// Sources of equal geometry, one after the other.
///
/// Domains are joined by name; the model is named if all sources name the same. Warnings of imports are joined by kind.
#[derive(Debug)]
pub struct Concatenation<S> {
    sources: Vec<S>,
    /// First sequence of each source, and the number of all sequences.
    starts: Vec<usize>,
    domains: Vec<String>,
    /// For each source the domain of each of its domains.
    renamed: Vec<Vec<DomainId>>,
    import_report: ImportReport,
    notices: Vec<Notice>,
}

impl<S: RoutingSource> Concatenation<S> {
    /// Concatenates sources.
    ///
    /// # Errors
    /// [`TraceError::NoSources`]; [`TraceError::SourcesDiffer`] for a geometry other than the first's;
    /// [`TraceError::DomainLimit`] if there are more than 65,536 domains.
    pub fn new(sources: Vec<S>) -> Result<Concatenation<S>> {
        let first = sources.first().ok_or(TraceError::NoSources)?;
        let mut starts = vec![0];
        let mut domains: Vec<String> = Vec::new();
        let mut renamed = Vec::with_capacity(sources.len());
        let mut import_report = ImportReport::default();
        for (index, source) in sources.iter().enumerate() {
            if source.geometry() != first.geometry() {
                let told = |geometry: &Geometry| geometry.to_string().into();
                let (found, expected) = (told(source.geometry()), told(first.geometry()));
                return Err(TraceError::SourcesDiffer { index, found, expected });
            }
            starts.push(starts[index] + source.len());
            let mut names = Vec::with_capacity(source.domains().len());
            for name in source.domains() {
                let domain = domains.iter().position(|known| known == name).unwrap_or(domains.len());
                if domain == domains.len() {
                    domains.push(name.clone());
                }
                let limit = |_| TraceError::DomainLimit { domain, max: usize::from(u16::MAX) };
                names.push(DomainId(u16::try_from(domain).map_err(limit)?));
            }
            renamed.push(names);
            import_report.merge(source.import_report());
        }
        let notices = sources.iter().flat_map(|source| source.notices().to_vec()).collect();
        Ok(Concatenation { sources, starts, domains, renamed, import_report, notices })
    }

    /// The source of a sequence, and the sequence's number in it.
    fn locate(&self, index: usize) -> Result<(usize, usize)> {
        let len = self.len();
        if index >= len {
            return Err(TraceError::NoSuchSequence { index, len });
        }
        let source = self.starts.partition_point(|&start| start <= index) - 1;
        Ok((source, index - self.starts[source]))
    }
}

impl<S: RoutingSource> RoutingSource for Concatenation<S> {
    fn geometry(&self) -> &Geometry {
        self.sources[0].geometry()
    }

    fn len(&self) -> usize {
        self.starts[self.sources.len()]
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let (source, index) = self.locate(index)?;
        let sequence = self.sources[source].sequence(index)?;
        let domain = match sequence.domain() {
            None => None,
            Some(domain) => {
                let names = &self.renamed[source];
                let unknown = TraceError::UnknownDomain { domain: domain.index(), names: names.len() };
                Some(*names.get(domain.index()).ok_or(unknown)?)
            }
        };
        Ok(sequence.with_domain(domain))
    }

    fn sequence_len(&self, index: usize) -> Result<usize> {
        let (source, index) = self.locate(index)?;
        self.sources[source].sequence_len(index)
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn model(&self) -> Option<&str> {
        let model = self.sources[0].model();
        self.sources.iter().all(|source| source.model() == model).then_some(model).flatten()
    }

    fn import_report(&self) -> &ImportReport {
        &self.import_report
    }

    fn notices(&self) -> &[Notice] {
        &self.notices
    }
}
