//! The decisions of prefetching, made once for the simulator and for engines.

use moe_trace::ExpertId;

use super::{Prediction, PrefetchCounts, Prefetcher, Routing};
use crate::{Eviction, EvictionPolicy, ExpertCache, ExpertKey, Hit, Load, Pool, Request, Result};

/// A planner of prefetches for the caches of a model.
///
/// It ranks the predictions of a [`Prefetcher`] after every request, issues the best of them as loads, and counts what
/// becomes of these. [`Simulation`](crate::Simulation) and `moe-offload` use the same planner, so that a run issues the
/// prefetches of its simulation. The caller owns the caches, one per pool. Per request the order of calls is:
///
/// 1. [`ExpertCache::request`] decides what the request loads.
/// 2. [`plan`](Self::plan) decides what is prefetched while the request is executed. Every load arrives through a closure,
///    in order. The ranked predictions that follow are returned; they may be read from disk into host memory.
/// 3. [`count_served`](Self::count_served) counts what the plan of the request shows of earlier prefetches. A request that
///    is rolled back is not counted. Steps 2 and 3 may change places.
/// 4. [`ExpertCache::release`] ends the request. Prefetches may then evict its experts.
///
/// A prefetch that fails is taken back with [`ExpertCache::forget`], and its eviction counted with
/// [`count_evictions`](Self::count_evictions).
///
/// ```
/// use expert_cache::{
///     ExpertCache, Lru, Oversize, Pool, Prediction, PrefetchPlanner, Prefetcher, Request, Routing,
/// };
/// use moe_trace::{ExpertId, ExpertSet, Geometry, LayerId, Phase};
///
/// /// Predicts experts 2 and 3 of layer 1 at layer 0.
/// #[derive(Debug)]
/// struct Fixed;
///
/// impl Prefetcher for Fixed {
///     fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
///         let prediction = |(expert, score)| Prediction { layer: LayerId(1), expert: ExpertId(expert), score };
///         if served.layer == LayerId(0) {
///             out.extend([(3, 0.2), (2, 0.7)].map(prediction));
///         }
///     }
/// }
///
/// let geometry = Geometry::decoder(2, 4, 1)?;
/// let pools = [Pool::layer(&geometry, LayerId(0))?, Pool::layer(&geometry, LayerId(1))?];
/// let mut caches = Vec::new();
/// for _ in &pools {
///     caches.push(ExpertCache::new(Lru::new(4), 4, 1, Oversize::Waves)?);
/// }
/// // One load per request, and one more prediction.
/// let mut planner = PrefetchPlanner::new(Box::new(Fixed), 1, &pools).with_leftovers(1);
///
/// let mut issued = Vec::new();
/// for (pool, expert) in [(0, 1), (1, 2)] {
///     let wanted = ExpertSet::from_members(4, [expert]);
///     let request = Request::new(&wanted, LayerId(pool as u16), Phase::Decode);
///     caches[pool].request(request)?;
///     let leftovers = planner.plan(pool, &request, &mut caches, |prefetch| {
///         issued.push((prefetch.pool, prefetch.load.key.index()));
///     })?;
///     let leftovers: Vec<ExpertId> = leftovers.iter().map(|prediction| prediction.expert).collect();
///     assert_eq!(leftovers, if pool == 0 { vec![ExpertId(3)] } else { vec![] });
///     planner.count_served(pool, &caches[pool], |_| false);
///     caches[pool].release();
/// }
/// assert_eq!(issued, [(1, 2)]);
/// assert_eq!((planner.counts()[1].issued, planner.counts()[1].useful), (1, 1));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Debug)]
pub struct PrefetchPlanner {
    prefetcher: Box<dyn Prefetcher>,
    pools: Vec<Pool>,
    /// The number of the pool of each layer of the model, if it is in one.
    pool_of: Vec<Option<usize>>,
    per_request: usize,
    leftovers: usize,
    /// One entry per layer of the model.
    counts: Vec<PrefetchCounts>,
    /// Experts of the running request.
    experts: Vec<ExpertId>,
    predictions: Vec<Prediction>,
}

/// A prefetch that was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IssuedPrefetch<'a> {
    /// The number of the pool.
    pub pool: usize,
    /// The load, of the plan of [prefetches](ExpertCache::prefetches) of the pool's cache.
    pub load: Load,
    /// Experts that were evicted for the load, in order.
    pub evictions: &'a [Eviction],
}

impl PrefetchPlanner {
    /// Creates a planner that considers the `per_request` best predictions after every request, and loads those that are
    /// absent.
    ///
    /// # Panics
    /// Without pools.
    pub fn new(prefetcher: Box<dyn Prefetcher>, per_request: usize, pools: &[Pool]) -> PrefetchPlanner {
        let geometry = pools[0].geometry();
        let mut pool_of = vec![None; geometry.layers()];
        for (number, pool) in pools.iter().enumerate() {
            pool.layers().iter().for_each(|layer| pool_of[layer.index()] = Some(number));
        }
        PrefetchPlanner {
            prefetcher,
            pools: pools.to_vec(),
            pool_of,
            per_request,
            leftovers: 0,
            counts: vec![PrefetchCounts::default(); geometry.layers()],
            experts: Vec::with_capacity(geometry.experts()),
            predictions: Vec::with_capacity(geometry.experts()),
        }
    }

    /// Ranks `predictions` more per request, which [`plan`](Self::plan) returns; 0 at first.
    pub fn with_leftovers(mut self, predictions: usize) -> PrefetchPlanner {
        self.leftovers = predictions;
        self
    }

    /// Returns the counts of each layer of the model; those of layers without a pool are 0.
    pub fn counts(&self) -> &[PrefetchCounts] {
        &self.counts
    }

    /// Notifies the prefetcher that a sequence has ended.
    pub fn sequence_end(&mut self) {
        self.prefetcher.sequence_end();
    }

    /// Decides what to prefetch while a request to pool number `pool` is executed, and shows every load to `issued`, in
    /// order. Returns the predictions that come next by rank and are absent from the caches.
    ///
    /// Predictions are ranked by score; equal scores by layer, then by expert. Residents among the best are held before
    /// anything is loaded, so that no prefetch evicts an expert which is predicted, too.
    ///
    /// # Errors
    /// As [`ExpertCache::prefetch`]. What was issued before stays issued.
    ///
    /// # Panics
    /// If the request, or a cache, is of another pool.
    pub fn plan<P: EvictionPolicy>(
        &mut self,
        pool: usize,
        request: &Request<'_>,
        caches: &mut [ExpertCache<P>],
        mut issued: impl FnMut(IssuedPrefetch<'_>),
    ) -> Result<&[Prediction]> {
        self.rank(pool, request);
        let considered = self.per_request.min(self.predictions.len());
        for resident in [true, false] {
            for at in 0..considered {
                let prediction = self.predictions[at];
                let Some((pool, key)) = self.locate(&prediction) else { continue };
                let cache = &mut caches[pool];
                if cache.resident().contains(key.index()) != resident {
                    continue;
                }
                let within = requests_until(&self.pools[pool], request, prediction);
                let Some(load) = cache.prefetch(key, request.phase(), within)? else { continue };
                let counts = self.counts_of(pool, key);
                counts.issued += 1;
                counts.issued_bytes += cache.sizes().of(key);
                let evictions = cache.prefetches().evicted(&load)?;
                self.count_evictions(pool, cache, evictions);
                issued(IssuedPrefetch { pool, load, evictions });
            }
        }
        let mut predictions = std::mem::take(&mut self.predictions);
        predictions.drain(..considered);
        let is_absent = |(pool, key): (usize, ExpertKey)| !caches[pool].resident().contains(key.index());
        predictions.retain(|prediction| self.locate(prediction).is_some_and(is_absent));
        self.predictions = predictions;
        Ok(&self.predictions)
    }

    /// Asks the prefetcher, and keeps the best of its predictions in order.
    fn rank(&mut self, pool: usize, request: &Request<'_>) {
        let first = self.pools[pool].keys(request.layer()).unwrap_or_default().start;
        let ids = request.wanted().iter().map(|key| u16::try_from(key - first).expect("an expert of the layer"));
        self.experts.clear();
        self.experts.extend(ids.map(ExpertId));
        self.predictions.clear();
        let routing = Routing { layer: request.layer(), phase: request.phase(), experts: &self.experts };
        self.prefetcher.predict(&routing, &mut self.predictions);
        let best = |a: &Prediction, b: &Prediction| {
            b.score.total_cmp(&a.score).then(a.layer.cmp(&b.layer)).then(a.expert.cmp(&b.expert))
        };
        let kept = self.per_request.saturating_add(self.leftovers);
        if self.predictions.len() > kept {
            self.predictions.select_nth_unstable_by(kept, best);
            self.predictions.truncate(kept);
        }
        self.predictions.sort_unstable_by(best);
    }

    /// Returns the pool of a predicted expert and its key there, if a pool has it.
    fn locate(&self, prediction: &Prediction) -> Option<(usize, ExpertKey)> {
        let pool = (*self.pool_of.get(prediction.layer.index())?)?;
        Some((pool, self.pools[pool].key(prediction.layer, prediction.expert)?))
    }

    /// Counts what the plan of a served request shows of earlier prefetches. A prefetched hit is late if `late` returns true
    /// for it, that is if the request waited for its load.
    pub fn count_served<P: EvictionPolicy>(
        &mut self,
        pool: usize,
        cache: &ExpertCache<P>,
        mut late: impl FnMut(&Hit) -> bool,
    ) {
        let plan = cache.plan();
        for hit in plan.hits().iter().filter(|hit| hit.prefetched) {
            let counts = self.counts_of(pool, hit.key);
            *if late(hit) { &mut counts.late } else { &mut counts.useful } += 1;
        }
        for &key in plan.displaced() {
            self.counts_of(pool, key).polluting += 1;
        }
        self.count_evictions(pool, cache, plan.evictions());
    }

    /// Counts the prefetches among evictions that were never used. [`plan`](Self::plan) and
    /// [`count_served`](Self::count_served) do so for theirs; the evictions of a plan that was rolled back, and of a prefetch
    /// that was [forgotten](ExpertCache::forget), are the caller's.
    pub fn count_evictions<'a, P: EvictionPolicy>(
        &mut self,
        pool: usize,
        cache: &ExpertCache<P>,
        evictions: impl IntoIterator<Item = &'a Eviction>,
    ) {
        for eviction in evictions.into_iter().filter(|eviction| eviction.unused) {
            let counts = self.counts_of(pool, eviction.key);
            counts.useless += 1;
            counts.useless_bytes += cache.sizes().of(eviction.key);
        }
    }

    fn counts_of(&mut self, pool: usize, key: ExpertKey) -> &mut PrefetchCounts {
        let (layer, _) = self.pools[pool].expert(key).expect("a key of the pool");
        &mut self.counts[layer.index()]
    }
}

/// Returns the requests to a pool after the running one, up to the predicted one.
fn requests_until(pool: &Pool, request: &Request<'_>, prediction: Prediction) -> usize {
    let up_to = |layer| pool.layers().partition_point(|&other| other <= layer);
    let (now, then) = (up_to(request.layer()), up_to(prediction.layer));
    if prediction.layer > request.layer() { then - now } else { pool.layers().len() - now + then }
}
