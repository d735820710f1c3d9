//! The prefetchers by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use moe_trace::Geometry;

use super::{HistoryMatch, Markov, NextLayer, Oracle, Prefetcher, PreviousToken};
use crate::{CacheError, Requests, Result};

/// The prefetchers by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PrefetcherKind {
    /// No prefetcher.
    None,
    /// What the layer wanted for the previous token.
    PreviousToken,
    /// What goes with the running layer's experts.
    NextLayer,
    /// What follows the layer's own last experts.
    Markov,
    /// What followed in the most similar pass.
    History {
        /// Passes remembered.
        passes: usize,
    },
    /// The truth, with errors.
    Oracle {
        /// Share of predictions that are right.
        accuracy: f64,
    },
}

impl PrefetcherKind {
    /// Whether the prefetcher must know the requests to come.
    pub fn needs_future(self) -> bool {
        matches!(self, PrefetcherKind::Oracle { .. })
    }

    /// Checks the parameter, as far as that can be told without a model.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] for a history of 0 passes, [`CacheError::Accuracy`] outside of 0..=1.
    pub fn check(self) -> Result<()> {
        match self {
            PrefetcherKind::History { passes } => CacheError::at_least_one("passes of a history", passes),
            PrefetcherKind::Oracle { accuracy } if !(0.0..=1.0).contains(&accuracy) => {
                Err(CacheError::Accuracy { accuracy })
            }
            _ => Ok(()),
        }
    }

    /// Creates the prefetcher of a model that predicts for the layer executed `ahead` layers later; `future` are the
    /// requests of all layers, `seed` is what an oracle's errors depend on.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if `ahead` or the passes are 0, [`CacheError::PrefetcherNeedsFuture`],
    /// [`CacheError::Universe`] if the future is not that of all layers, [`CacheError::Accuracy`],
    /// [`CacheError::TooManyPairs`].
    pub fn build(
        self,
        geometry: &Geometry,
        ahead: usize,
        future: Option<&Arc<Requests>>,
        seed: u64,
    ) -> Result<Option<Box<dyn Prefetcher>>> {
        Ok(match self {
            PrefetcherKind::None => None,
            PrefetcherKind::PreviousToken => Some(Box::new(PreviousToken::new(geometry, ahead)?)),
            PrefetcherKind::NextLayer => Some(Box::new(NextLayer::new(geometry, ahead)?)),
            PrefetcherKind::Markov => Some(Box::new(Markov::new(geometry, ahead)?)),
            PrefetcherKind::History { passes } => Some(Box::new(HistoryMatch::new(geometry, ahead, passes)?)),
            PrefetcherKind::Oracle { accuracy } => {
                let future = future.ok_or(CacheError::PrefetcherNeedsFuture { prefetcher: self })?;
                Some(Box::new(Oracle::new(geometry, ahead, Arc::clone(future), accuracy, seed)?))
            }
        })
    }
}

/// `none`, `previous-token`, `next-layer`, `markov`, `history-PASSES`, `oracle-ACCURACY`.
impl fmt::Display for PrefetcherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefetcherKind::None => f.write_str("none"),
            PrefetcherKind::PreviousToken => f.write_str("previous-token"),
            PrefetcherKind::NextLayer => f.write_str("next-layer"),
            PrefetcherKind::Markov => f.write_str("markov"),
            PrefetcherKind::History { passes } => write!(f, "history-{passes}"),
            PrefetcherKind::Oracle { accuracy } => write!(f, "oracle-{accuracy}"),
        }
    }
}

impl FromStr for PrefetcherKind {
    type Err = CacheError;

    fn from_str(name: &str) -> Result<PrefetcherKind> {
        let history = |name: &str| name.strip_prefix("history-")?.parse().ok();
        let oracle = |name: &str| name.strip_prefix("oracle-")?.parse().ok();
        let kind = match name {
            "none" => PrefetcherKind::None,
            "previous-token" => PrefetcherKind::PreviousToken,
            "next-layer" => PrefetcherKind::NextLayer,
            "markov" => PrefetcherKind::Markov,
            _ => match (history(name), oracle(name)) {
                (Some(passes), _) => PrefetcherKind::History { passes },
                (_, Some(accuracy)) => PrefetcherKind::Oracle { accuracy },
                _ => return Err(CacheError::UnknownPrefetcher { name: name.to_owned() }),
            },
        };
        kind.check()?;
        Ok(kind)
    }
}
