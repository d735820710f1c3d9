//! Anything that yields sequences.

use std::path::Path;

use crate::{Geometry, ImportReport, Notice, Result, Sequence, ShardedTrace, TraceFile};

/// A file, a directory of shards, memory, a generator: sequences of one geometry.
pub trait RoutingSource: Send + Sync {
    /// The geometry of every sequence.
    fn geometry(&self) -> &Geometry;

    /// Number of sequences.
    fn len(&self) -> usize;

    /// Whether there is no sequence.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequence of a number in `0..len`, every id of it checked.
    ///
    /// # Errors
    /// [`TraceError::NoSuchSequence`](crate::TraceError::NoSuchSequence), or what is wrong with the sequence.
    fn sequence(&self, index: usize) -> Result<Sequence<'_>>;

    /// Number of tokens of a sequence; a file knows it without reading the sequence.
    ///
    /// # Errors
    /// As [`sequence`](Self::sequence).
    fn sequence_len(&self, index: usize) -> Result<usize> {
        Ok(self.sequence(index)?.len())
    }

    /// Names of the domains that [`Sequence::domain`] refers to.
    fn domains(&self) -> &[String] {
        &[]
    }

    /// The model whose routing this is, if known.
    fn model(&self) -> Option<&str> {
        None
    }

    /// What the import of the sequences inferred or found odd; empty if they were not imported.
    fn import_report(&self) -> &ImportReport {
        ImportReport::none()
    }

    /// What a reader must know of the capture: that it is not complete, or that not all of its shards are read.
    fn notices(&self) -> &[Notice] {
        &[]
    }
}

macro_rules! forward_to_inner {
    ($type:ty) => {
        impl<S: RoutingSource + ?Sized> RoutingSource for $type {
            fn geometry(&self) -> &Geometry {
                (**self).geometry()
            }

            fn len(&self) -> usize {
                (**self).len()
            }

            fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
                (**self).sequence(index)
            }

            fn sequence_len(&self, index: usize) -> Result<usize> {
                (**self).sequence_len(index)
            }

            fn domains(&self) -> &[String] {
                (**self).domains()
            }

            fn model(&self) -> Option<&str> {
                (**self).model()
            }

            fn import_report(&self) -> &ImportReport {
                (**self).import_report()
            }

            fn notices(&self) -> &[Notice] {
                (**self).notices()
            }
        }
    };
}

forward_to_inner!(&S);
forward_to_inner!(Box<S>);

/// Opens a trace file or a directory of shards.
///
/// # Errors
/// As [`TraceFile::open`] and [`ShardedTrace::open`].
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn RoutingSource>> {
    let path = path.as_ref();
    if path.is_dir() { Ok(Box::new(ShardedTrace::open(path)?)) } else { Ok(Box::new(TraceFile::open(path)?)) }
}
