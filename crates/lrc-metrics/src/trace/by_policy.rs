//! Maps by policy, written with the policies' names as keys.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lrc_metrics::CurvePolicy;
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Loads {
//!     #[serde(with = "lrc_metrics::by_policy")]
//!     loads: BTreeMap<CurvePolicy, u64>,
//! }
//! // Older reports wrote `sch_N`.
//! let loads: Loads = serde_json::from_str(r#"{"loads":{"lru":3,"sch_16":1}}"#)?;
//! assert_eq!(serde_json::to_string(&loads)?, r#"{"loads":{"lru":3,"look-ahead-16":1}}"#);
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::collections::BTreeMap;

use expert_cache::curve::CurvePolicy;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A policy that is written as its name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(CurvePolicy);

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        String::deserialize(deserializer)?.parse().map(Name).map_err(D::Error::custom)
    }
}

/// Writes a map with the names of policies as keys.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<V: Serialize, S: Serializer>(
    map: &BTreeMap<CurvePolicy, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(&policy, value)| (Name(policy), value)))
}

/// Reads a map whose keys are names of policies, those of older reports too.
///
/// # Errors
/// A name that no policy with a curve has; those of the deserializer.
pub fn deserialize<'de, V: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<CurvePolicy, V>, D::Error> {
    let named = BTreeMap::<Name, V>::deserialize(deserializer)?;
    Ok(named.into_iter().map(|(Name(policy), value)| (policy, value)).collect())
}
