//! What a curve is computed for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{CacheError, PolicyKind, Result};

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
    /// The look-ahead window in tokens, if the policy has one.
    pub fn window(self) -> Option<usize> {
        match self {
            CurvePolicy::LookAhead { window } => Some(window),
            _ => None,
        }
    }

    /// The same policy for a cache of one size.
    pub fn kind(self) -> PolicyKind {
        match self {
            CurvePolicy::Lru => PolicyKind::Lru,
            CurvePolicy::Lfu => PolicyKind::Lfu,
            CurvePolicy::Belady => PolicyKind::Belady,
            CurvePolicy::BeladyBypass => PolicyKind::BeladyBypass,
            CurvePolicy::LookAhead { window } => PolicyKind::LookAhead { window },
        }
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            CurvePolicy::LookAhead { window: 0 } => Err(CacheError::Window { window: 0 }),
            _ => Ok(()),
        }
    }
}

/// The name of the [`kind`](CurvePolicy::kind): `lru`, `lfu`, `belady`, `belady-bypass`, `look-ahead-N`.
impl fmt::Display for CurvePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

/// Reads a name, also those of older reports: `sch_N` and `belady_bypass`.
///
/// ```
/// use expert_cache::curve::CurvePolicy;
/// let policy: CurvePolicy = "sch_16".parse()?;
/// assert_eq!(policy, CurvePolicy::LookAhead { window: 16 });
/// assert_eq!(policy.to_string(), "look-ahead-16");
/// assert_eq!("look-ahead-16".parse::<CurvePolicy>()?, policy);
/// assert!("arc".parse::<CurvePolicy>().is_err());
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
impl FromStr for CurvePolicy {
    type Err = CacheError;

    fn from_str(name: &str) -> Result<CurvePolicy> {
        let now = match name.strip_prefix("sch_") {
            Some(window) => format!("look-ahead-{window}"),
            None => name.replace('_', "-"),
        };
        match now.parse()? {
            PolicyKind::Lru => Ok(CurvePolicy::Lru),
            PolicyKind::Lfu => Ok(CurvePolicy::Lfu),
            PolicyKind::Belady => Ok(CurvePolicy::Belady),
            PolicyKind::BeladyBypass => Ok(CurvePolicy::BeladyBypass),
            PolicyKind::LookAhead { window } => Ok(CurvePolicy::LookAhead { window }),
            policy => Err(CacheError::NoCurve { policy }),
        }
    }
}
