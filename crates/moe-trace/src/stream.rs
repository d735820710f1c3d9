//! Sequences that come one after the other.

use crate::{Geometry, ImportReport, MemoryTrace, Result, SequenceBuf, SequenceSink};

/// Sequences that are made one at a time and need not fit into memory together: an import, a generator.
pub trait SequenceStream {
    /// The geometry of every sequence.
    fn geometry(&self) -> &Geometry;

    /// Names of the domains that the sequences refer to.
    fn domains(&self) -> &[String] {
        &[]
    }

    /// The model whose routing this is, if known.
    fn model(&self) -> Option<&str> {
        None
    }

    /// What making the sequences inferred or found odd so far; complete after the last sequence.
    fn report(&self) -> &ImportReport {
        ImportReport::none()
    }

    /// The next sequence, or `None` after the last one.
    ///
    /// # Errors
    /// What is wrong with what the sequence is made from.
    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>>;

    /// Hands all sequences to a sink, and returns how many there were.
    ///
    /// # Errors
    /// What making a sequence or accepting it finds.
    fn pour(&mut self, sink: &mut dyn SequenceSink) -> Result<usize> {
        let mut sequences = 0;
        while let Some(sequence) = self.next_sequence()? {
            sink.accept(sequence)?;
            sequences += 1;
        }
        Ok(sequences)
    }

    /// Collects all sequences in memory.
    ///
    /// # Errors
    /// What making a sequence finds.
    fn collect(&mut self) -> Result<MemoryTrace> {
        let mut trace = MemoryTrace::new(self.geometry().clone()).with_domains(self.domains());
        if let Some(model) = self.model() {
            trace = trace.with_model(model);
        }
        self.pour(&mut trace)?;
        Ok(trace.with_import_report(self.report().clone()))
    }
}
