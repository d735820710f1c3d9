//! How hit rates are counted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A way to count hits. Hit rates of two conventions are not to be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// That of arXiv 2505.16056, which [`curve`](crate::curve) follows: every sequence starts with an empty cache, tokens are
    /// served one by one whatever their phase, and a hit rate is the mean over sequences and layers.
    #[default]
    Paper,
    /// That of a running engine, which [`Simulation`](crate::Simulation) and `moe-offload` follow: the cache stays warm
    /// from one sequence to the next, a prefill is one request, and a hit rate is hits over accesses.
    Engine,
}

impl Convention {
    /// What a reader of a table must know, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Convention::Paper => {
                "paper convention: every sequence starts cold, token by token, mean over sequences and layers"
            }
            Convention::Engine => "engine convention: caches stay warm, a prefill is one request, hits over accesses",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Convention::Paper => "paper",
            Convention::Engine => "engine",
        })
    }
}
