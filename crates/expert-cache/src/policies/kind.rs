//! The policies by name.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use super::{
    ActivationAware, AdaptiveReplacement, Belady, BeladyBypass, Clock, Fifo, Hysteresis, LayerLru, LeastStale, Lfru,
    Lfu, LfuAged, LfuInCache, Lirs, LookAhead, Lru, RandomChoice, RouterMass, S3Fifo, Sieve, Slru, StaticBestSet,
    TwoQueue, WTinyLfu,
};
use crate::error::{CacheError, Result};
use crate::policy::{EvictionPolicy, PoolShape};
use crate::requests::Requests;

/// A policy and its parameter, if it has one.
///
/// ```
/// use expert_cache::PolicyKind;
/// let kind: PolicyKind = "look-ahead-16".parse()?;
/// assert_eq!(kind, PolicyKind::LookAhead { window: 16 });
/// assert!(kind.needs().future && !kind.needs().mass);
/// assert_eq!(PolicyKind::all().len(), 24);
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyKind {
    /// `lru`, [`Lru`]: least recently used.
    Lru,
    /// `lfu`, [`Lfu`]: least frequently used, with counts that survive eviction.
    Lfu,
    /// `lfu-in-cache`, [`LfuInCache`]: least frequently used since it was loaded.
    LfuInCache,
    /// `lfu-aged`, [`LfuAged`]: least frequently used, with dynamic aging.
    LfuAged,
    /// `fifo`, [`Fifo`]: loaded longest ago.
    Fifo,
    /// `clock`, [`Clock`]: first in first out, with a second chance.
    Clock,
    /// `slru`, [`Slru`]: segmented LRU.
    Slru,
    /// `2q`, [`TwoQueue`]: 2Q.
    TwoQueue,
    /// `arc`, [`AdaptiveReplacement`]: adaptive replacement.
    Arc,
    /// `lirs`, [`Lirs`]: low inter-reference recency set.
    Lirs,
    /// `s3-fifo`, [`S3Fifo`]: three queues.
    S3Fifo,
    /// `sieve`, [`Sieve`]: a hand that stays where it evicted.
    Sieve,
    /// `w-tiny-lfu`, [`WTinyLfu`]: a window and a contest.
    WTinyLfu,
    /// `random-SEED`, [`RandomChoice`]: drawn uniformly.
    Random {
        /// Seed of the generator.
        seed: u64,
    },
    /// `static-best-set`, [`StaticBestSet`]: the best residents that never change; knows the whole future, bypasses.
    StaticBestSet,
    /// `belady`, [`Belady`]: farthest next use; knows the whole future.
    Belady,
    /// `belady-bypass`, [`BeladyBypass`]: farthest next use, the newcomer's included; knows the whole future, bypasses.
    BeladyBypass,
    /// `look-ahead-N`, [`LookAhead`]: least used in the next `window` requests to each layer; knows that much of the
    /// future.
    LookAhead {
        /// Requests looked at, the one being served included: decoded tokens, or whole prefills.
        window: usize,
    },
    /// `lfru-N`, [`Lfru`]: least combined frequency and recency.
    Lfru {
        /// Tokens after which a request counts about `1 / e`.
        memory: usize,
    },
    /// `least-stale`, [`LeastStale`]: passed over by the running token.
    LeastStale,
    /// `router-mass-N`, [`RouterMass`]: least router probability lately.
    RouterMass {
        /// Tokens after which probability counts about `1 / e`.
        memory: usize,
    },
    /// `activation-aware-N`, [`ActivationAware`]: least expected from similar sequences.
    ActivationAware {
        /// Sequences remembered.
        sequences: usize,
    },
    /// `layer-lru`, [`LayerLru`]: recency that knows the cycle of layers.
    LayerLru,
    /// `hysteresis-N`, [`Hysteresis`]: replaces only what is clearly weaker; bypasses.
    Hysteresis {
        /// Tokens for which a loaded expert stays.
        dwell: usize,
    },
}

/// What a policy must be given to work as described, and what it may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyNeeds {
    /// The requests to come, when it is built.
    pub future: bool,
    /// The router mass of requests.
    pub mass: bool,
    /// To be told when a sequence ends.
    pub sequence_ends: bool,
    /// Misses that can be served without a load: it may bypass even if the request fits.
    pub bypass: bool,
}

/// Calls a macro with every policy, in the order of [`PolicyKind::all`].
///
/// A row has the reference of the policy's tests (a `twin`, an exhaustive `optimum`, or statistics of `draws`), the name of
/// the tests, the name of the policy, and its kind. A parameter has its usual value, and the tests also take the values
/// behind it, each under a name of its own.
macro_rules! for_each_policy {
    ($apply:ident $($argument:ident)?) => {
        $apply! {
            [$($argument)?]
            twin lru: "lru" = Lru;
            twin lfu: "lfu" = Lfu;
            twin lfu_in_cache: "lfu-in-cache" = LfuInCache;
            twin lfu_aged: "lfu-aged" = LfuAged;
            twin fifo: "fifo" = Fifo;
            twin clock: "clock" = Clock;
            twin slru: "slru" = Slru;
            twin two_queue: "2q" = TwoQueue;
            twin arc: "arc" = Arc;
            twin lirs: "lirs" = Lirs;
            twin s3_fifo: "s3-fifo" = S3Fifo;
            twin sieve: "sieve" = Sieve;
            twin w_tiny_lfu: "w-tiny-lfu" = WTinyLfu;
            draws random: "random" = Random { seed: 0 };
            twin lfru: "lfru" = Lfru { memory: 32 }, lfru_1: 1, lfru_3: 3;
            twin least_stale: "least-stale" = LeastStale;
            twin router_mass: "router-mass" = RouterMass { memory: 32 }, router_mass_1: 1, router_mass_3: 3;
            twin activation_aware: "activation-aware" = ActivationAware { sequences: 16 },
                activation_aware_1: 1, activation_aware_2: 2;
            twin layer_lru: "layer-lru" = LayerLru;
            twin hysteresis: "hysteresis" = Hysteresis { dwell: 4 }, hysteresis_0: 0;
            optimum static_best_set: "static-best-set" = StaticBestSet;
            twin look_ahead: "look-ahead" = LookAhead { window: 16 }, look_ahead_1: 1, look_ahead_3: 3;
            twin belady: "belady" = Belady;
            optimum belady_bypass: "belady-bypass" = BeladyBypass;
        }
    };
}
#[cfg(test)]
pub(super) use for_each_policy;

macro_rules! names {
    ([] $($reference:ident $test:ident: $name:literal = $kind:ident
        $({ $parameter:ident: $usual:literal } $(, $other:ident: $value:literal)*)?;)*) => {
        const ALL: &[PolicyKind] = &[$(PolicyKind::$kind $({ $parameter: $usual })?),*];

        impl PolicyKind {
            /// The name without a parameter.
            fn base(self) -> &'static str {
                match self {
                    $(PolicyKind::$kind { .. } => $name,)*
                }
            }
        }
    };
}

for_each_policy!(names);

impl PolicyKind {
    /// Every policy once, with a usual parameter; those that know the future last.
    pub fn all() -> &'static [PolicyKind] {
        ALL
    }

    /// What the policy must be given.
    pub fn needs(self) -> PolicyNeeds {
        let none = PolicyNeeds::default();
        match self {
            PolicyKind::Belady | PolicyKind::LookAhead { .. } => PolicyNeeds { future: true, ..none },
            PolicyKind::BeladyBypass | PolicyKind::StaticBestSet => PolicyNeeds { future: true, bypass: true, ..none },
            PolicyKind::RouterMass { .. } => PolicyNeeds { mass: true, ..none },
            PolicyKind::ActivationAware { .. } => PolicyNeeds { sequence_ends: true, ..none },
            PolicyKind::Hysteresis { .. } => PolicyNeeds { bypass: true, ..none },
            _ => none,
        }
    }

    /// Whether the policy must know the requests to come.
    pub fn needs_future(self) -> bool {
        self.needs().future
    }

    /// Checks the parameter, as far as that can be told without a pool.
    ///
    /// # Errors
    /// [`CacheError::Window`] for an empty window, [`CacheError::PolicyParameter`] for a memory of 0 tokens or sequences.
    pub fn check(self) -> Result<()> {
        match self {
            PolicyKind::LookAhead { window: 0 } => Err(CacheError::Window { window: 0 }),
            PolicyKind::Lfru { memory: 0 }
            | PolicyKind::RouterMass { memory: 0 }
            | PolicyKind::ActivationAware { sequences: 0 } => {
                Err(CacheError::PolicyParameter { policy: self, least: 1 })
            }
            _ => Ok(()),
        }
    }

    /// Creates the policy for a cache of `capacity` slots over a pool; `future` are the requests it will see.
    ///
    /// # Errors
    /// [`CacheError::Capacity`] if the capacity is 0 or above the pool, [`CacheError::NeedsFuture`] if the policy needs a
    /// future and there is none, [`CacheError::Universe`] if the future is another pool's, [`CacheError::Window`] for an
    /// empty window, [`CacheError::PolicyParameter`] for a memory of 0 tokens or sequences, [`CacheError::TooManyPairs`] for
    /// the memory of very many sequences.
    pub fn build(
        self,
        shape: PoolShape,
        capacity: usize,
        future: Option<&Arc<Requests>>,
    ) -> Result<Box<dyn EvictionPolicy>> {
        let universe = shape.universe();
        if capacity == 0 || capacity > universe {
            return Err(CacheError::Capacity { capacity, experts: universe });
        }
        let future = || {
            let future = future.ok_or(CacheError::NeedsFuture { policy: self })?;
            if future.universe() == universe {
                Ok(future)
            } else {
                Err(CacheError::Universe { found: future.universe(), expected: universe })
            }
        };
        let positive = |value| NonZeroUsize::new(value).ok_or(CacheError::PolicyParameter { policy: self, least: 1 });
        Ok(match self {
            PolicyKind::Lru => Box::new(Lru::new(universe)),
            PolicyKind::Lfu => Box::new(Lfu::new(universe, capacity)),
            PolicyKind::LfuInCache => Box::new(LfuInCache::new(universe, capacity)),
            PolicyKind::LfuAged => Box::new(LfuAged::new(universe, capacity)),
            PolicyKind::Fifo => Box::new(Fifo::new(universe)),
            PolicyKind::Clock => Box::new(Clock::new(universe)),
            PolicyKind::Slru => Box::new(Slru::new(universe, capacity)),
            PolicyKind::TwoQueue => Box::new(TwoQueue::new(universe, capacity)),
            PolicyKind::Arc => Box::new(AdaptiveReplacement::new(universe, capacity)),
            PolicyKind::Lirs => Box::new(Lirs::new(universe, capacity)),
            PolicyKind::S3Fifo => Box::new(S3Fifo::new(universe, capacity)),
            PolicyKind::Sieve => Box::new(Sieve::new(universe)),
            PolicyKind::WTinyLfu => Box::new(WTinyLfu::new(universe, capacity)),
            PolicyKind::Random { seed } => Box::new(RandomChoice::new(universe, capacity, seed)),
            PolicyKind::StaticBestSet => Box::new(StaticBestSet::new(future()?, capacity)),
            PolicyKind::Belady => Box::new(Belady::new(future()?, capacity)),
            PolicyKind::BeladyBypass => Box::new(BeladyBypass::new(future()?, capacity)),
            PolicyKind::LookAhead { window } => {
                let future = future()?;
                Box::new(LookAhead::new(Arc::clone(future), capacity, window.saturating_mul(future.layers()))?)
            }
            PolicyKind::Lfru { memory } => Box::new(Lfru::new(shape, capacity, positive(memory)?)),
            PolicyKind::LeastStale => Box::new(LeastStale::new(shape)),
            PolicyKind::RouterMass { memory } => Box::new(RouterMass::new(shape, capacity, positive(memory)?)),
            PolicyKind::ActivationAware { sequences } => {
                CacheError::pairs(sequences, universe, 1 << 28)?;
                Box::new(ActivationAware::new(shape, capacity, positive(sequences)?))
            }
            PolicyKind::LayerLru => Box::new(LayerLru::new(shape)),
            PolicyKind::Hysteresis { dwell } => Box::new(Hysteresis::new(shape, capacity, dwell)),
        })
    }

    /// Names of all policies, `N` for a parameter.
    pub(crate) fn known_names() -> String {
        let name = |kind: &PolicyKind| match kind.parameter() {
            Some(_) => format!("{}-N", kind.base()),
            None => kind.base().to_owned(),
        };
        ALL.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    fn parameter(self) -> Option<u64> {
        match self {
            PolicyKind::Random { seed } => Some(seed),
            PolicyKind::LookAhead { window } => Some(window as u64),
            PolicyKind::Lfru { memory } | PolicyKind::RouterMass { memory } => Some(memory as u64),
            PolicyKind::ActivationAware { sequences } => Some(sequences as u64),
            PolicyKind::Hysteresis { dwell } => Some(dwell as u64),
            _ => None,
        }
    }

    /// The same policy with another parameter; none if it has none, or if the value is too large.
    fn with_parameter(self, value: u64) -> Option<PolicyKind> {
        let size = usize::try_from(value).ok()?;
        match self {
            PolicyKind::Random { .. } => Some(PolicyKind::Random { seed: value }),
            PolicyKind::LookAhead { .. } => Some(PolicyKind::LookAhead { window: size }),
            PolicyKind::Lfru { .. } => Some(PolicyKind::Lfru { memory: size }),
            PolicyKind::RouterMass { .. } => Some(PolicyKind::RouterMass { memory: size }),
            PolicyKind::ActivationAware { .. } => Some(PolicyKind::ActivationAware { sequences: size }),
            PolicyKind::Hysteresis { .. } => Some(PolicyKind::Hysteresis { dwell: size }),
            _ => None,
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parameter() {
            Some(value) => write!(f, "{}-{value}", self.base()),
            None => f.write_str(self.base()),
        }
    }
}

impl FromStr for PolicyKind {
    type Err = CacheError;

    fn from_str(name: &str) -> Result<PolicyKind> {
        let read = |kind: &PolicyKind| {
            let rest = name.strip_prefix(kind.base())?;
            if kind.parameter().is_none() {
                return rest.is_empty().then_some(*kind);
            }
            let digits = rest.strip_prefix('-').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
            kind.with_parameter(digits.parse().ok()?)
        };
        let kind = ALL.iter().find_map(read).ok_or_else(|| CacheError::UnknownPolicy { name: name.to_owned() })?;
        kind.check()?;
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_round_trip(at in 0..ALL.len(), value in 1..=u32::MAX) {
            let kind = ALL[at].with_parameter(u64::from(value)).unwrap_or(ALL[at]);
            prop_assert_eq!(kind.to_string().parse::<PolicyKind>().unwrap(), kind);
        }
    }

    #[test]
    fn names_that_nobody_has_are_refused() {
        for name in ["", "LRU", "lru-1", "lfru", "lfru-", "lfru-+1", "lfru--1", "look-ahead-99999999999999999999", "lf"]
        {
            let message = name.parse::<PolicyKind>().unwrap_err().to_string();
            assert!(message.starts_with(&format!("there is no policy {name:?}, known are lru, lfu, ")), "{message}");
        }
    }

    #[test]
    fn parameters_that_cannot_be_are_refused_by_the_name_and_by_the_kind() {
        let shape = PoolShape { layers: 1, experts: 4 };
        for kind in [
            PolicyKind::Lfru { memory: 0 },
            PolicyKind::RouterMass { memory: 0 },
            PolicyKind::ActivationAware { sequences: 0 },
        ] {
            let expected = format!("the parameter of policy {kind} must be at least 1");
            assert_eq!(kind.to_string().parse::<PolicyKind>().unwrap_err().to_string(), expected);
            assert_eq!(kind.build(shape, 2, None).unwrap_err().to_string(), expected);
        }
        let error = "look-ahead-0".parse::<PolicyKind>().unwrap_err().to_string();
        assert_eq!(error, "look-ahead window is 0 tokens, it must be at least 1");
        let error = PolicyKind::ActivationAware { sequences: usize::MAX }.build(shape, 2, None).unwrap_err();
        assert!(matches!(error, CacheError::TooManyPairs { .. }), "{error}");
    }

    #[test]
    fn only_policies_that_need_mass_read_it() {
        let shape = PoolShape { layers: 1, experts: 4 };
        for kind in ALL.iter().filter(|kind| !kind.needs_future()) {
            assert_eq!(kind.build(shape, 2, None).unwrap().needs_router_weights(), kind.needs().mass, "{kind}");
        }
    }
}
