//! Ways to serve an expert that is not resident.

use std::fmt;
use std::sync::Arc;

use crate::{CacheError, ExpertKey, Request, Requests, Result};

/// What serving a missing expert costs, in any unit.
pub trait MissCost: fmt::Debug + Send + Sync {
    /// Cost of loading the expert and computing it from its slot.
    fn load(&self, request: &Request<'_>, expert: ExpertKey) -> f64;

    /// Cost of computing the expert on the host.
    fn host(&self, request: &Request<'_>, expert: ExpertKey) -> f64;
}

/// How a cache serves misses.
///
/// The last two change what the model computes: they answer "what if", and say how much router mass it would cost.
#[derive(Clone, Debug, Default)]
pub enum MissPolicy {
    /// Every missing expert is loaded, unless it does not fit or the eviction policy declines.
    #[default]
    Load,
    /// Every missing expert is computed on the host, and nothing is loaded.
    Host,
    /// Each missing expert is served in the cheaper way; loaded, if both cost the same.
    Cheaper(Arc<dyn MissCost>),
    /// A missing expert is left out if it has at most this share of the router mass of the tokens that want it.
    Skip {
        /// Share of a token's router mass, in the mean over the tokens that want the expert.
        share: f32,
    },
    /// A missing expert of at most this share is replaced by its first [substitute](Substitutes) that is resident and not wanted
    /// itself; it is loaded if there is none.
    Substitute {
        /// Share of a token's router mass, in the mean over the tokens that want the expert.
        share: f32,
        /// Who replaces whom.
        substitutes: Arc<Substitutes>,
    },
}

impl MissPolicy {
    pub(crate) fn check(&self, request: &Request<'_>) -> Result<()> {
        if self.needs_mass() && request.total_mass().is_none() { Err(CacheError::NeedsMass) } else { Ok(()) }
    }

    /// Whether requests must come with router mass.
    pub fn needs_mass(&self) -> bool {
        matches!(self, MissPolicy::Skip { .. } | MissPolicy::Substitute { .. })
    }

    /// Whether a missing expert is computed on the host.
    pub(crate) fn on_host(&self, request: &Request<'_>, expert: ExpertKey) -> bool {
        match self {
            MissPolicy::Host => true,
            MissPolicy::Cheaper(cost) => cost.host(request, expert) < cost.load(request, expert),
            _ => false,
        }
    }

    /// Whether the model does without a missing expert, and then, who may replace it.
    pub(crate) fn without(&self, request: &Request<'_>, expert: ExpertKey) -> Option<Option<&[u32]>> {
        let (share, substitutes) = match self {
            MissPolicy::Skip { share } => (*share, None),
            MissPolicy::Substitute { share, substitutes } => (*share, Some(substitutes.of(expert))),
            _ => return None,
        };
        let (mass, total) = (f64::from(request.mass(expert)?), request.total_mass()?);
        let (uses, tokens) = (f64::from(request.uses(expert)), f64::from(request.tokens()));
        // mass / uses <= share * total / tokens
        (mass * tokens <= f64::from(share) * total * uses).then_some(substitutes)
    }
}

/// For every expert the others of its layer, the best replacement first.
///
/// ```
/// use expert_cache::{Substitutes, ExpertKey, Pool, Requests};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 3, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 2, 2, 0, 1, 2], Phase::Decode)?)?;
/// let substitutes = Substitutes::by_coactivation(&Requests::from_source(&trace, &Pool::model(&geometry))?)?;
/// assert_eq!((substitutes.of(ExpertKey(0)), substitutes.of(ExpertKey(1))), (&[2, 1][..], &[2, 0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Substitutes {
    /// Experts a layer.
    experts: usize,
    /// `[universe x (experts - 1)]`
    ranked: Vec<u32>,
}

impl Substitutes {
    /// The most pairs of experts that are ranked.
    pub const MAX_PAIRS: usize = 1 << 27;

    /// Ranks the experts of a layer by how many requests want both; of those, the lower key first.
    ///
    /// # Errors
    /// [`CacheError::TooManyPairs`] above [`MAX_PAIRS`](Self::MAX_PAIRS).
    pub fn by_coactivation(requests: &Requests) -> Result<Substitutes> {
        let (universe, experts) = (requests.universe(), requests.universe() / requests.layers());
        CacheError::pairs(universe, experts, Self::MAX_PAIRS)?;
        let mut together = vec![0u32; universe * experts];
        for request in 0..requests.len() {
            let members = requests.members(request);
            for &one in members {
                for &other in members {
                    together[one as usize * experts + other as usize % experts] += 1;
                }
            }
        }
        let mut ranked = Vec::with_capacity(universe * (experts - 1));
        for (one, counts) in together.chunks(experts).enumerate() {
            let first = one / experts * experts;
            let mut others: Vec<usize> = (0..experts).filter(|&other| first + other != one).collect();
            others.sort_by_key(|&other| std::cmp::Reverse(counts[other]));
            ranked.extend(others.into_iter().map(|other| ExpertKey::from_index(first + other).0));
        }
        Ok(Substitutes { experts, ranked })
    }

    /// Keys of the other experts of an expert's layer, the best replacement first; none for an unknown expert.
    pub fn of(&self, expert: ExpertKey) -> &[u32] {
        let width = self.experts - 1;
        let start = expert.index() * width;
        self.ranked.get(start..start + width).unwrap_or_default()
    }
}
