//! How a budget is spread over the layers of a model.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::CacheError;

/// How slots are spread over layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One pool a layer, the same number of slots each.
    Uniform,
    /// One pool a layer, slots where they save most seconds of loads, by [`best_allocation`](crate::best_allocation).
    Allocated,
    /// One pool of all layers.
    Global,
}

impl Layout {
    /// All of them.
    pub const ALL: [Layout; 3] = [Layout::Uniform, Layout::Allocated, Layout::Global];
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Uniform => "uniform",
            Layout::Allocated => "allocated",
            Layout::Global => "global",
        })
    }
}

impl FromStr for Layout {
    type Err = CacheError;

    fn from_str(name: &str) -> crate::Result<Layout> {
        let found = Layout::ALL.into_iter().find(|layout| layout.to_string() == name);
        found.ok_or_else(|| CacheError::UnknownLayout { name: name.to_owned() })
    }
}

/// Slots of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slots {
    /// Slots of each layer.
    PerLayer(Vec<usize>),
    /// Bytes that all layers share.
    SharedBytes(u64),
}
