//! Which experts are resident, saved from one run for the next.

use moe_trace::{ExpertId, Geometry, LayerId};
use serde::{Deserialize, Serialize};

use crate::{CacheError, EvictionPolicy, ExpertCache, ExpertKey, Pool, Result};

/// The residents of the caches of a model, for a warm start.
///
/// It serializes to JSON; what was read is checked when it is applied, for it may be of another model, or longer than a
/// cache.
///
/// ```
/// use expert_cache::{ExpertCache, Lru, Oversize, Pool, ResidentProfile};
/// use moe_trace::{ExpertSet, Geometry};
///
/// let pool = Pool::model(&Geometry::decoder(1, 4, 2)?);
/// let cache = || ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves);
/// let mut yesterday = cache()?;
/// yesterday.request(&ExpertSet::from_members(4, [1, 2]))?;
/// let json = ResidentProfile::of(&[pool.clone()], &[yesterday])?.to_json()?;
///
/// let mut today = [cache()?];
/// ResidentProfile::from_json(&json)?.warm(&[pool], &mut today)?;
/// assert_eq!(today[0].resident().iter().collect::<Vec<_>>(), [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidentProfile {
    version: u32,
    geometry: Geometry,
    pools: Vec<PoolProfile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolProfile {
    layers: Vec<u16>,
    /// Bytes, or slots where the cache counts slots.
    capacity: u64,
    /// Layer and expert of each resident, in the order in which they are to come.
    residents: Vec<(u16, u16)>,
}

impl ResidentProfile {
    /// The version that is written, and the only one that is read.
    pub const VERSION: u32 = 1;

    /// Takes down the residents of caches, each of the pool of its number.
    ///
    /// # Errors
    /// [`CacheError::EmptyPool`] without pools, [`CacheError::CacheCount`] if there are fewer or more caches,
    /// [`CacheError::Universe`] if a cache is of another pool.
    pub fn of<P: EvictionPolicy>(pools: &[Pool], caches: &[ExpertCache<P>]) -> Result<ResidentProfile> {
        let geometry = check(pools, caches)?.clone();
        let profile = |(pool, cache): (&Pool, &ExpertCache<P>)| {
            let expert = |key: usize| pool.expert(ExpertKey::from_index(key)).expect("a key of the pool");
            PoolProfile {
                layers: pool.layers().iter().map(|layer| layer.0).collect(),
                capacity: cache.capacity_bytes(),
                residents: cache.resident().iter().map(|key| (expert(key).0.0, expert(key).1.0)).collect(),
            }
        };
        let pools = pools.iter().zip(caches).map(profile).collect();
        Ok(ResidentProfile { version: Self::VERSION, geometry, pools })
    }

    /// Makes the residents of each pool resident in its cache, which is empty.
    ///
    /// # Errors
    /// [`CacheError::ProfileVersion`]; [`CacheError::ProfileGeometry`] if it is of another model;
    /// [`CacheError::ProfilePools`] if pools are divided differently; [`CacheError::ProfileCapacity`] if a cache had another
    /// capacity; [`CacheError::ProfileExpert`] for an expert that its pool does not have; and as
    /// [`of`](Self::of) and [`ExpertCache::warm`]. Caches of pools before the one at fault are warm then.
    pub fn warm<P: EvictionPolicy>(&self, pools: &[Pool], caches: &mut [ExpertCache<P>]) -> Result<()> {
        let geometry = check(pools, caches)?;
        if self.version != Self::VERSION {
            return Err(CacheError::ProfileVersion { version: self.version, known: Self::VERSION });
        }
        if self.geometry != *geometry {
            return Err(CacheError::ProfileGeometry);
        }
        let same_layers = |(pool, saved): (&Pool, &PoolProfile)| {
            pool.layers().iter().map(|layer| layer.0).eq(saved.layers.iter().copied())
        };
        if self.pools.len() != pools.len() || !pools.iter().zip(&self.pools).all(same_layers) {
            return Err(CacheError::ProfilePools);
        }
        for ((number, saved), (pool, cache)) in self.pools.iter().enumerate().zip(pools.iter().zip(caches)) {
            let capacity = cache.capacity_bytes();
            if saved.capacity != capacity {
                return Err(CacheError::ProfileCapacity { pool: number, found: saved.capacity, expected: capacity });
            }
            let key = |&(layer, expert): &(u16, u16)| {
                let key = pool.key(LayerId(layer), ExpertId(expert));
                key.ok_or(CacheError::ProfileExpert { pool: number, layer, expert })
            };
            cache.warm(&saved.residents.iter().map(key).collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
    }

    /// The profile as JSON.
    ///
    /// # Errors
    /// [`CacheError::Json`].
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// [`CacheError::Json`] for what is no profile.
    pub fn from_json(json: &str) -> Result<ResidentProfile> {
        Ok(serde_json::from_str(json)?)
    }
}

/// Checks that caches and pools belong together.
fn check<'a, P: EvictionPolicy>(pools: &'a [Pool], caches: &[ExpertCache<P>]) -> Result<&'a Geometry> {
    crate::pool::layers_in_order(pools)?;
    if caches.len() != pools.len() {
        return Err(CacheError::CacheCount { caches: caches.len(), pools: pools.len() });
    }
    pools.iter().zip(caches).try_for_each(|(pool, cache)| cache.check_universe(pool.universe()))?;
    Ok(pools[0].geometry())
}

#[cfg(test)]
mod tests {
    use moe_trace::{ExpertSet, MemoryTrace, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::{Lru, Oversize, Partition, Simulation};

    fn caches(capacity: usize) -> Vec<ExpertCache<Lru>> {
        (0..2).map(|_| ExpertCache::new(Lru::new(4), 4, capacity, Oversize::Waves).unwrap()).collect()
    }

    proptest! {
        /// A cache that starts from a profile holds what the other held, and hits it.
        #[test]
        fn a_warm_start_goes_on_where_the_profile_was_saved(
            experts in proptest::collection::vec(0u16..4, 2..40),
            capacity in 1usize..5,
        ) {
            let geometry = Geometry::decoder(2, 4, 1).unwrap();
            let experts = experts[..experts.len() / 2 * 2].to_vec();
            let last: Vec<usize> = experts[experts.len() - 2..].iter().map(|&expert| usize::from(expert)).collect();
            let mut trace = MemoryTrace::new(geometry.clone());
            trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Decode).unwrap()).unwrap();
            let pools = Partition::per_layer(&geometry).into_pools();
            let mut simulation = Simulation::of_pools(pools.clone(), caches(capacity)).unwrap();
            simulation.run(&trace).unwrap();
            let json = ResidentProfile::of(&pools, simulation.caches()).unwrap().to_json().unwrap();
            let mut warm = caches(capacity);
            ResidentProfile::from_json(&json).unwrap().warm(&pools, &mut warm).unwrap();
            for ((before, after), expert) in simulation.caches().iter().zip(&mut warm).zip(last) {
                after.validate();
                prop_assert_eq!(before.resident(), after.resident());
                let plan = after.request(&ExpertSet::from_members(4, [expert])).unwrap();
                prop_assert_eq!((plan.hits().len(), plan.loads().len()), (1, 0));
            }
        }
    }

    #[test]
    fn profiles_of_something_else_are_refused() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let pools = Partition::per_layer(&geometry).into_pools();
        let mut full = caches(2);
        full.iter_mut().for_each(|cache| _ = cache.warm(&[ExpertKey(3), ExpertKey(1)]).unwrap());
        let json = ResidentProfile::of(&pools, &full).unwrap().to_json().unwrap();
        let layers = r#"[{"model_layer":0,"stack":"decoder"},{"model_layer":1,"stack":"decoder"}]"#;
        let expected = format!(
            "{}{layers}{}",
            r#"{"version":1,"geometry":{"layers":"#,
            r#","experts":4,"top_k":1},"pools":[{"layers":[0],"capacity":2,"residents":[[0,1],[0,3]]},{"layers":[1],"capacity":2,"residents":[[1,1],[1,3]]}]}"#,
        );
        assert_eq!(json, expected);
        let refusal = |from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json);
            let profile = ResidentProfile::from_json(&changed);
            profile.and_then(|profile| profile.warm(&pools, &mut caches(2))).unwrap_err().to_string()
        };
        assert_eq!(refusal("\"version\":1", "\"version\":2"), "the profile has version 2, known is 1");
        assert_eq!(refusal("\"top_k\":1", "\"top_k\":2"), "the profile is of another model");
        assert_eq!(refusal("\"layers\":[0]", "\"layers\":[1]"), "the profile is of other pools");
        assert_eq!(refusal("\"capacity\":2", "\"capacity\":3"), "pool 0 of the profile has capacity 3, the cache 2");
        assert_eq!(refusal("[1,3]", "[1,4]"), "pool 1 of the profile has no layer 1, expert 4");
        assert_eq!(refusal("[1,3]", "[0,3]"), "pool 1 of the profile has no layer 0, expert 3");
        assert_eq!(refusal("[1,3]", "[1,1]"), "expert 1 of the pool is resident twice");
        assert_eq!(refusal("[1,3]", "[1,3],[1,0]"), "the residents take 3 of 2 bytes or slots");
        assert_eq!(refusal("\"experts\":4", "\"experts\":0"), "not a profile of residents");
        assert_eq!(refusal("{", "["), "not a profile of residents");
        let message = ResidentProfile::of(&pools, &full[..1]).unwrap_err().to_string();
        assert_eq!(message, "there are 1 caches for 2 pools");
    }
}
