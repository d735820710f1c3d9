//! Which experts are loaded before they are wanted, decided as `expert_cache::Simulation` decides it.

use expert_cache::{
    Eviction, ExpertCache, ExpertKey, Load, Plan, Pool, Prediction, PrefetchCounts, Prefetcher, Request, Routing,
};
use moe_trace::{ExpertId, Phase};

use super::wishes::Wishes;
use crate::error::Result;
use crate::report::ReadAheadCounters;

/// A prefetcher at work.
#[derive(Debug)]
pub(super) struct Prefetches {
    prefetcher: Box<dyn Prefetcher>,
    per_request: usize,
    /// What becomes of the predictions that come next.
    wishes: Option<Wishes>,
    /// One entry a layer of the model.
    counts: Vec<PrefetchCounts>,
    /// The pool of each layer.
    pool_of: Vec<usize>,
    experts: Vec<ExpertId>,
    predictions: Vec<Prediction>,
}

impl Prefetches {
    /// Prefetches for a model; `pool_of` names the pool of each of its layers.
    pub(super) fn new(
        prefetcher: Box<dyn Prefetcher>,
        per_request: usize,
        wishes: Option<Wishes>,
        pool_of: Vec<usize>,
    ) -> Prefetches {
        let counts = vec![PrefetchCounts::default(); pool_of.len()];
        Prefetches { prefetcher, per_request, wishes, counts, pool_of, experts: Vec::new(), predictions: Vec::new() }
    }

    pub(super) fn counts(&self) -> &[PrefetchCounts] {
        &self.counts
    }

    /// One entry a layer of the model, if experts are read ahead.
    pub(super) fn wished(&self) -> Option<&[ReadAheadCounters]> {
        self.wishes.as_ref().map(Wishes::counters)
    }

    pub(super) fn sequence_end(&mut self) {
        self.prefetcher.sequence_end();
    }

    /// Counts what a served plan shows of earlier prefetches; `late` are hits that the call waited for.
    pub(super) fn served(&mut self, pool: &Pool, plan: &Plan, late: &[ExpertKey]) {
        for hit in plan.hits().iter().filter(|hit| hit.prefetched) {
            let counts = of_key(&mut self.counts, pool, hit.key);
            *if late.contains(&hit.key) { &mut counts.late } else { &mut counts.useful } += 1;
        }
        for &key in plan.displaced() {
            of_key(&mut self.counts, pool, key).polluting += 1;
        }
        plan.evictions().iter().for_each(|eviction| self.evicted(pool, eviction));
    }

    /// Counts an expert that left.
    pub(super) fn evicted(&mut self, pool: &Pool, eviction: &Eviction) {
        if eviction.unused {
            let counts = of_key(&mut self.counts, pool, eviction.key);
            counts.useless += 1;
            // Caches of one size count experts.
            counts.useless_bytes += 1;
        }
    }

    /// Decides what to load while a request is executed, and hands it to `load`, with the number of its pool; wishes for
    /// what comes next by rank.
    pub(super) fn issue(
        &mut self,
        number: usize,
        request: &Request<'_>,
        pools: &[Pool],
        caches: &mut [ExpertCache],
        mut load: impl FnMut(usize, Load),
    ) -> Result<()> {
        let first = pools[number].keys(request.layer()).unwrap_or_default().start;
        let ids = request.wanted().iter().map(|key| u16::try_from(key - first).expect("an expert of the layer"));
        self.experts.clear();
        self.experts.extend(ids.map(ExpertId));
        self.predictions.clear();
        let routing = Routing { layer: request.layer(), phase: request.phase(), experts: &self.experts };
        self.prefetcher.predict(&routing, &mut self.predictions);
        let best = |a: &Prediction, b: &Prediction| {
            b.score.total_cmp(&a.score).then(a.layer.cmp(&b.layer)).then(a.expert.cmp(&b.expert))
        };
        let considered = self.per_request.saturating_add(self.wishes.as_ref().map_or(0, Wishes::per_request));
        if self.predictions.len() > considered {
            self.predictions.select_nth_unstable_by(considered, best);
            self.predictions.truncate(considered);
        }
        self.predictions.sort_unstable_by(best);
        // What is there already is held before anything is loaded.
        for resident in [true, false] {
            for at in 0..self.per_request.min(self.predictions.len()) {
                let prediction = self.predictions[at];
                let Some((number, key)) = self.key(pools, &prediction) else { continue };
                if caches[number].resident().contains(key.index()) == resident {
                    let within = requests_until(&pools[number], request, prediction);
                    if let Some(planned) =
                        self.prefetch(&pools[number], &mut caches[number], key, (request.phase(), within))?
                    {
                        load(number, planned);
                    }
                }
            }
        }
        self.wish(pools, caches)
    }

    /// Wishes for predictions that no slot was considered for, unless they are in one.
    fn wish(&mut self, pools: &[Pool], caches: &[ExpertCache]) -> Result<()> {
        for at in self.per_request..self.predictions.len() {
            let prediction = self.predictions[at];
            let Some((number, key)) = self.key(pools, &prediction) else { continue };
            if let Some(wishes) = &mut self.wishes
                && !caches[number].resident().contains(key.index())
            {
                wishes.want(prediction.layer, prediction.expert)?;
            }
        }
        Ok(())
    }

    /// The pool of a predicted expert and its key there, if the model has it.
    fn key(&self, pools: &[Pool], prediction: &Prediction) -> Option<(usize, ExpertKey)> {
        let &number = self.pool_of.get(prediction.layer.index())?;
        Some((number, pools[number].key(prediction.layer, prediction.expert)?))
    }

    fn prefetch(
        &mut self,
        pool: &Pool,
        cache: &mut ExpertCache,
        key: ExpertKey,
        (phase, within): (Phase, usize),
    ) -> Result<Option<Load>> {
        let Some(load) = cache.prefetch(key, phase, within)? else { return Ok(None) };
        let counts = of_key(&mut self.counts, pool, key);
        counts.issued += 1;
        counts.issued_bytes += 1;
        for eviction in cache.prefetches().evicted(&load)? {
            self.evicted(pool, eviction);
        }
        Ok(Some(load))
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
