//! What is asked of a cache.

use serde::{Deserialize, Serialize};

use crate::{CacheError, PhaseSpeed, Result};

/// A figure of the decode speed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Tokens a second.
    TokensPerSecond,
    /// Seconds that this share of the decode passes does not exceed.
    Quantile(f64),
}

/// What a cache must achieve while tokens are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// At least so many tokens a second.
    TokensPerSecond(f64),
    /// 95 of 100 decode passes take no more than so many seconds.
    P95Seconds(f64),
    /// As fast as it gets in so many bytes.
    Bytes(u64),
}

impl Target {
    /// The figure that the target is about.
    pub fn figure(self) -> Figure {
        match self {
            Target::P95Seconds(_) => Figure::Quantile(0.95),
            Target::TokensPerSecond(_) | Target::Bytes(_) => Figure::TokensPerSecond,
        }
    }

    /// Whether a speed is good enough; any is where bytes are the target.
    pub fn is_met(self, decode: &PhaseSpeed) -> bool {
        match self {
            Target::TokensPerSecond(least) => decode.tokens_per_second() >= least,
            Target::P95Seconds(most) => decode.tokens > 0 && decode.quantile_seconds(0.95) <= most,
            Target::Bytes(_) => true,
        }
    }

    /// Checks the figure.
    ///
    /// # Errors
    /// [`CacheError::Figure`] for a speed or a time that is not above 0.
    pub fn check(self) -> Result<()> {
        let (field, value) = match self {
            Target::TokensPerSecond(value) => ("tokens per second", value),
            Target::P95Seconds(value) => ("p95 seconds", value),
            Target::Bytes(_) => return Ok(()),
        };
        if value > 0.0 && value.is_finite() {
            Ok(())
        } else {
            Err(CacheError::Figure { field, value, limit: "above 0" })
        }
    }
}

impl Figure {
    /// The figure of a speed.
    pub fn of(self, decode: &PhaseSpeed) -> f64 {
        match self {
            Figure::TokensPerSecond => decode.tokens_per_second(),
            Figure::Quantile(share) => decode.quantile_seconds(share),
        }
    }
}
