//! Prefetching while a source is served.

use moe_trace::{ExpertId, Phase};
use serde::{Deserialize, Serialize};

use crate::{
    Eviction, EvictionPolicy, ExpertCache, ExpertKey, Load, Pool, Prediction, Prefetcher, Request, Result, Routing,
};

/// A prefetcher and its limits.
#[derive(Debug)]
pub struct Prefetching {
    prefetcher: Box<dyn Prefetcher>,
    per_request: usize,
    lead: u64,
}

impl Prefetching {
    /// Considers the `per_request` best predictions after every request, and loads those that are absent.
    pub fn new(prefetcher: Box<dyn Prefetcher>, per_request: usize) -> Prefetching {
        Prefetching { prefetcher, per_request, lead: 1 }
    }

    /// Counts a prefetch as late if it is used fewer than `requests` requests (layers executed) after the one at which it
    /// was issued: the copy takes so long. It is 1 at first, so that nothing is late.
    pub fn with_lead(mut self, requests: u64) -> Prefetching {
        self.lead = requests;
        self
    }
}

/// An expert loaded before it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetched {
    /// The number of the pool.
    pub pool: usize,
    /// What is loaded.
    pub load: Load,
    /// Its part of the evictions by prefetches.
    pub(super) evictions: (usize, usize),
}

/// What became of prefetches, counted as `ChampSim` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchCounts {
    /// Experts prefetched.
    pub issued: u64,
    /// Prefetched experts that were used, and had come in time.
    pub useful: u64,
    /// Prefetched experts that were used, but had been issued too late.
    pub late: u64,
    /// Prefetched experts that were evicted unused.
    pub useless: u64,
    /// Misses of experts that a prefetch had evicted.
    pub polluting: u64,
    /// What was prefetched, in bytes, or in experts where the cache counts slots.
    pub issued_bytes: u64,
    /// What was evicted unused, in bytes, or in experts where the cache counts slots.
    pub useless_bytes: u64,
}

impl PrefetchCounts {
    /// Adds other counts.
    pub fn merge(&mut self, other: &PrefetchCounts) {
        self.issued += other.issued;
        self.useful += other.useful;
        self.late += other.late;
        self.useless += other.useless;
        self.polluting += other.polluting;
        self.issued_bytes += other.issued_bytes;
        self.useless_bytes += other.useless_bytes;
    }

    /// Prefetched experts that are still resident and were not used yet.
    pub fn pending(&self) -> u64 {
        self.issued - self.useful - self.late - self.useless
    }

    /// Share of prefetches with a known end that were used, in time or late; 0 without such prefetches.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn accuracy(&self) -> f64 {
        let used = self.useful + self.late;
        if used + self.useless == 0 { 0.0 } else { used as f64 / (used + self.useless) as f64 }
    }
}

/// A running [`Prefetching`].
#[derive(Debug)]
pub(super) struct Prefetches {
    options: Prefetching,
    /// Requests served.
    clock: u64,
    /// When each expert was prefetched last, by pool and key.
    issued_at: Vec<Vec<u64>>,
    /// One entry a layer of the model.
    counts: Vec<PrefetchCounts>,
    experts: Vec<ExpertId>,
    predictions: Vec<Prediction>,
    issued: Vec<Prefetched>,
    evictions: Vec<Eviction>,
}

impl Prefetches {
    pub(super) fn new(options: Prefetching, pools: &[Pool]) -> Prefetches {
        let experts = pools[0].geometry().experts();
        let largest = pools.iter().map(Pool::universe).max().unwrap_or_default();
        Prefetches {
            options,
            clock: 0,
            issued_at: pools.iter().map(|pool| vec![0; pool.universe()]).collect(),
            counts: vec![PrefetchCounts::default(); pools[0].geometry().layers()],
            experts: Vec::with_capacity(experts),
            predictions: Vec::with_capacity(experts),
            issued: Vec::with_capacity(experts),
            evictions: Vec::with_capacity(largest),
        }
    }

    pub(super) fn counts(&self) -> &[PrefetchCounts] {
        &self.counts
    }

    pub(super) fn issued(&self) -> &[Prefetched] {
        &self.issued
    }

    pub(super) fn evictions(&self) -> &[Eviction] {
        &self.evictions
    }

    pub(super) fn sequence_end(&mut self) {
        self.options.prefetcher.sequence_end();
    }

    /// Counts what a plan shows of earlier prefetches.
    pub(super) fn served<P: EvictionPolicy>(&mut self, number: usize, pool: &Pool, cache: &ExpertCache<P>) {
        self.clock += 1;
        let plan = cache.plan();
        for hit in plan.hits().iter().filter(|hit| hit.prefetched) {
            let late = self.clock - self.issued_at[number][hit.key.index()] < self.options.lead;
            let counts = of_key(&mut self.counts, pool, hit.key);
            *if late { &mut counts.late } else { &mut counts.useful } += 1;
        }
        for &key in plan.displaced() {
            of_key(&mut self.counts, pool, key).polluting += 1;
        }
        self.count_useless(pool, cache, plan.evictions());
    }

    fn count_useless<P: EvictionPolicy>(&mut self, pool: &Pool, cache: &ExpertCache<P>, evictions: &[Eviction]) {
        for eviction in evictions.iter().filter(|eviction| eviction.unused) {
            let counts = of_key(&mut self.counts, pool, eviction.key);
            counts.useless += 1;
            counts.useless_bytes += cache.sizes().of(eviction.key);
        }
    }

    /// Issues prefetches while a request is executed.
    pub(super) fn issue<P: EvictionPolicy>(
        &mut self,
        number: usize,
        request: &Request<'_>,
        pools: &[Pool],
        caches: &mut [ExpertCache<P>],
    ) -> Result<()> {
        let keys = pools[number].keys(request.layer()).unwrap_or_default();
        let ids = request.wanted().iter().map(|key| u16::try_from(key - keys.start).expect("an expert of the layer"));
        self.experts.clear();
        self.experts.extend(ids.map(ExpertId));
        self.issued.clear();
        self.evictions.clear();
        self.predictions.clear();
        let routing = Routing { layer: request.layer(), phase: request.phase(), experts: &self.experts };
        self.options.prefetcher.predict(&routing, &mut self.predictions);
        let best = |a: &Prediction, b: &Prediction| {
            b.score.total_cmp(&a.score).then(a.layer.cmp(&b.layer)).then(a.expert.cmp(&b.expert))
        };
        if self.predictions.len() > self.options.per_request {
            self.predictions.select_nth_unstable_by(self.options.per_request, best);
            self.predictions.truncate(self.options.per_request);
        }
        self.predictions.sort_unstable_by(best);
        // What is there already is held before anything is loaded.
        for resident in [true, false] {
            for at in 0..self.predictions.len() {
                let prediction = self.predictions[at];
                let key = |pool: &Pool| pool.key(prediction.layer, prediction.expert);
                let found = pools.iter().enumerate().find_map(|(number, pool)| Some((number, key(pool)?)));
                let Some((number, key)) = found else { continue };
                if caches[number].resident().contains(key.index()) == resident {
                    let within = requests_until(&pools[number], request, prediction);
                    self.load((number, &pools[number]), &mut caches[number], key, (request.phase(), within))?;
                }
            }
        }
        Ok(())
    }

    fn load<P: EvictionPolicy>(
        &mut self,
        (number, pool): (usize, &Pool),
        cache: &mut ExpertCache<P>,
        key: ExpertKey,
        (phase, within): (Phase, usize),
    ) -> Result<()> {
        let Some(load) = cache.prefetch(key, phase, within)? else { return Ok(()) };
        self.issued_at[number][key.index()] = self.clock;
        let counts = of_key(&mut self.counts, pool, key);
        counts.issued += 1;
        counts.issued_bytes += cache.sizes().of(key);
        let first = self.evictions.len();
        let evicted = cache.prefetches().evicted(&load)?;
        self.evictions.extend_from_slice(evicted);
        self.count_useless(pool, cache, evicted);
        self.issued.push(Prefetched { pool: number, load, evictions: (first, self.evictions.len()) });
        Ok(())
    }
}

/// Requests to a pool from the running one, not counted, to the predicted one.
fn requests_until(pool: &Pool, request: &Request<'_>, prediction: Prediction) -> usize {
    let up_to = |layer| pool.layers().partition_point(|&other| other <= layer);
    let (now, then) = (up_to(request.layer()), up_to(prediction.layer));
    if prediction.layer > request.layer() { then - now } else { pool.layers().len() - now + then }
}

fn of_key<'a>(counts: &'a mut [PrefetchCounts], pool: &Pool, key: ExpertKey) -> &'a mut PrefetchCounts {
    let (layer, _) = pool.expert(key).expect("a key of the pool");
    &mut counts[layer.index()]
}
