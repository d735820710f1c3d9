//! What a reader of a capture must know.

use std::fmt;

use serde::Serialize;

/// A fact about a directory of shards that is no error: what is read is right, and may not be all that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Notice {
    /// The index does not say that the capture has ended.
    Interrupted {
        /// Sequences that are complete.
        sequences: usize,
    },
    /// No entry of the index names these shards, and they are not read.
    UnknownShards {
        /// Names of the files.
        files: Vec<String>,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Files that are named.
        const SHOWN: usize = 8;
        match self {
            Notice::Interrupted { sequences } => {
                write!(f, "not complete: interrupted after {sequences} sequences, or still being written")
            }
            Notice::UnknownShards { files } => {
                let more = if files.len() > SHOWN { ", ..." } else { "" };
                let named = files[..files.len().min(SHOWN)].join(", ");
                write!(f, "{} shards belong to no entry of the index and are not read: {named}{more}", files.len())
            }
        }
    }
}
