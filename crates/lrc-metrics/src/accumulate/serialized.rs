//! Accumulators as bytes, so that a corpus can be folded in several processes.
//!
//! What comes back is checked: a damaged or forged state is an error, not a panic later.

use crate::error::{MetricError, Result};

/// No count of a valid state is above this: sums over all domains still fit, and all convert to `f64` without loss.
pub(crate) const MOST: u64 = 1 << 47;

/// Checks a state that was read, and rebuilds what is not written.
pub(crate) trait Restore {
    fn restore(&mut self) -> Result<()>;
}

/// Implements serde for a [`Restore`] type that derives it with `#[serde(remote = "Self")]`.
macro_rules! checked_serde {
    ($type:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                $type::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let mut state = $type::deserialize(deserializer)?;
                $crate::accumulate::Restore::restore(&mut state).map_err(serde::de::Error::custom)?;
                Ok(state)
            }
        }
    };
}
pub(crate) use checked_serde;

/// Checks that a value of a state is what the rest of it implies.
pub(crate) fn intact<T: PartialEq + ToString>(what: &'static str, expected: &T, found: &T) -> Result<()> {
    if found == expected { Ok(()) } else { Err(state(what, found.to_string(), expected.to_string())) }
}

/// Checks that a value of a state is in a range.
pub(crate) fn within(what: &'static str, least: u128, most: u128, found: u128) -> Result<()> {
    if (least..=most).contains(&found) {
        Ok(())
    } else {
        Err(state(what, found.to_string(), format!("{least}..={most}")))
    }
}

/// The sum of counts, at most [`MOST`].
pub(crate) fn total<'a>(what: &'static str, counts: impl IntoIterator<Item = &'a u64>) -> Result<u64> {
    let sum: u128 = counts.into_iter().map(|&count| u128::from(count)).sum();
    within(what, 0, MOST.into(), sum)?;
    Ok(u64::try_from(sum).expect("checked above"))
}

fn state(what: &'static str, found: String, expected: String) -> MetricError {
    MetricError::State { what, found, expected }
}
