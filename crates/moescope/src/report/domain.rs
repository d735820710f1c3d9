//! The sequences of one domain.

use moe_trace::{DomainId, Geometry, Result, RoutingSource, Sequence, TraceError};

/// A part of a trace, so that domains can be measured one after the other: the sums behind intervals of every figure take
/// hundreds of megabytes for a large model.
pub(crate) struct DomainSequences<'a> {
    source: &'a dyn RoutingSource,
    /// Numbers of its sequences in the trace.
    numbers: Vec<usize>,
}

impl<'a> DomainSequences<'a> {
    /// The parts of all domains.
    pub(crate) fn all(source: &'a dyn RoutingSource) -> Result<Vec<DomainSequences<'a>>> {
        let mut domains: Vec<DomainSequences<'_>> =
            source.domains().iter().map(|_| DomainSequences { source, numbers: Vec::new() }).collect();
        for number in 0..source.len() {
            let domain = source.sequence(number)?.domain();
            if let Some(domain) = domain.and_then(|DomainId(domain)| domains.get_mut(usize::from(domain))) {
                domain.numbers.push(number);
            }
        }
        Ok(domains)
    }
}

impl RoutingSource for DomainSequences<'_> {
    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn len(&self) -> usize {
        self.numbers.len()
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let none = TraceError::NoSuchSequence { index, len: self.numbers.len() };
        self.source.sequence(*self.numbers.get(index).ok_or(none)?)
    }
}
