//! What a curve is computed for.

use serde::{Deserialize, Serialize};

use crate::{CacheError, Result};

/// How the first touch of an expert counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColdStart {
    /// A first touch is a hit while fewer than `capacity` distinct experts were ever seen, those of the same token that
    /// are served earlier included.
    Free,
    /// A first touch is a miss.
    Miss,
}

/// Which expert a full cache evicts.
///
/// All of these obey inclusion (what `c` slots hold, `c + 1` slots hold too), which is what lets one pass see every
/// capacity: at any time all capacities rank the experts by the same priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CurvePolicy {
    /// The expert used longest ago.
    Lru,
    /// The expert used least since the sequence began, evictions notwithstanding; on a tie the one used longest ago.
    Lfu,
    /// The expert whose next use is farthest away.
    Belady,
    /// Belady's choice among what is resident and what is to be loaded: a miss is served without loading where everything
    /// resident is used sooner. No policy has more hits.
    BeladyBypass,
    /// The expert used least in the look-ahead window; on a tie the one used longest ago.
    ///
    /// While token `i` is served the window is the tokens `i..i + window`, and a use by token `i` counts until it is
    /// served. This is the segment cache best hit rate (SCH) of arXiv 2505.16056, section 2.3.
    LookAhead {
        /// Length of the window in tokens, at least 1.
        window: usize,
    },
}

impl CurvePolicy {
    /// A short name: `lru`, `lfu`, `belady`, `belady_bypass`, `sch_16`.
    ///
    /// ```
    /// use expert_cache::curve::CurvePolicy;
    /// assert_eq!(CurvePolicy::LookAhead { window: 16 }.label(), "sch_16");
    /// ```
    pub fn label(self) -> String {
        match self {
            CurvePolicy::Lru => "lru".to_owned(),
            CurvePolicy::Lfu => "lfu".to_owned(),
            CurvePolicy::Belady => "belady".to_owned(),
            CurvePolicy::BeladyBypass => "belady_bypass".to_owned(),
            CurvePolicy::LookAhead { window } => format!("sch_{window}"),
        }
    }

    /// The look-ahead window in tokens, if the policy has one.
    pub fn window(self) -> Option<usize> {
        match self {
            CurvePolicy::LookAhead { window } => Some(window),
            _ => None,
        }
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            CurvePolicy::LookAhead { window: 0 } => Err(CacheError::Window { window: 0 }),
            _ => Ok(()),
        }
    }
}
