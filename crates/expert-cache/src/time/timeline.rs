//! A clock that executes plans.

use moe_trace::Phase;

use super::link::{Arrival, Copied, Link};
use super::{CostModel, Overlap, Pass, Speed, WhileLoading};
use crate::{ExpertKey, Partition, Plan, Pool, Request, Result, Served};

/// A discrete-event model of one device, one copy engine and one host processor that serve passes through a model.
///
/// In each layer what is dense is computed first; then the router has decided, and the plan is executed wave by wave.
///
/// With [`Overlap::Copies`] the device computes resident experts while others are copied, each of those when it has
/// arrived, and the host computes bypassed ones meanwhile. Copies run one after the other. One that a plan demands waits
/// for the running copy and for those demanded before it, but never for one that was only foreseen; foreseen copies run
/// when none is demanded. A resident expert whose copy is still under way is waited for; one whose copy has not begun is
/// demanded. A wave begins when the one before has been computed, since it may load into its slots. A layer ends when
/// device and host are done.
///
/// With [`Overlap::None`] everything happens one after the other: the loads of a wave, its compute, the host.
///
/// ```
/// use expert_cache::{CostModel, ExpertCache, Linear, Lru, Overlap, Oversize, Pool, Simulation, Timeline};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// // One layer: loads take 10 s, an expert 1 s, the rest nothing.
/// let mut costs = CostModel::loads(vec![10.0], Overlap::Copies);
/// costs.device_expert = Linear { call_seconds: 1.0, seconds_each: 0.0 };
/// let geometry = Geometry::decoder(1, 4, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 1, 2], Phase::Decode)?)?;
///
/// let cache = ExpertCache::new(Lru::new(4), 4, 3, Oversize::Waves)?;
/// let mut simulation = Simulation::new(Pool::model(&geometry), cache)?;
/// let mut timeline = Timeline::new(costs, simulation.pools())?;
/// simulation.observe(&trace, |served| {
///     timeline.serve(served);
/// })?;
/// let decode = &timeline.speed().decode;
/// // Two loads and the last expert, 21 s; then a load beside the resident expert and the loaded expert, 11 s.
/// assert_eq!((decode.seconds, decode.compute_seconds, decode.hidden_seconds), (32.0, 4.0, 2.0));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Timeline {
    costs: CostModel,
    pools: Vec<Pool>,
    while_loading: WhileLoading,
    /// Seconds since the clock was made.
    now: f64,
    link: Link,
    /// The running pass.
    pass: Pass,
    /// The link was busy for so long before the running pass.
    busy_before: f64,
    late: u64,
    speed: Speed,
}

/// Experts of one layer, while they are computed.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    /// The device is done with what it got so far.
    device: f64,
    /// The host is done with what it got so far.
    host: f64,
    /// Of the seconds of the device, those computed.
    computed: f64,
}

impl Timeline {
    /// Creates a clock at 0 for the pools of a simulation, which must hold every layer of the model.
    ///
    /// # Errors
    /// As [`Partition::new`]; [`CacheError::CostLayers`](crate::CacheError::CostLayers) if the costs are of another number of
    /// layers; [`CacheError::Profile`](crate::CacheError::Profile) for a cost that is negative or not finite.
    pub fn new(costs: CostModel, pools: &[Pool]) -> Result<Timeline> {
        let partition = Partition::new(pools.to_vec())?;
        costs.check_layers(pools[0].geometry())?;
        Ok(Timeline {
            costs,
            pools: partition.into_pools(),
            while_loading: WhileLoading::default(),
            now: 0.0,
            link: Link::default(),
            pass: Pass::new(Phase::Decode, 0),
            busy_before: 0.0,
            late: 0,
            speed: Speed::default(),
        })
    }

    /// Chooses who computes an expert while it is loaded.
    pub fn while_loading(mut self, who: WhileLoading) -> Timeline {
        self.while_loading = who;
        self
    }

    /// Executes a layer of a pass; returns the pass that the model's last layer ends.
    ///
    /// # Panics
    /// If the request is not one to the pools that the clock was made for.
    pub fn serve(&mut self, served: &Served<'_>) -> Option<Pass> {
        let (request, layer) = (served.request, served.request.layer().index());
        let tokens = u64::from(request.tokens());
        if layer == 0 {
            self.pass = Pass::new(request.phase(), tokens);
            self.busy_before = self.link.busy(self.now);
        }
        self.compute(self.costs.dense.seconds(1, tokens));
        if !request.wanted().is_empty() {
            let books = self.costs.plan.seconds(1, request.wanted().len() as u64);
            self.now += books;
            self.pass.host_seconds += books;
        }
        self.execute(served);
        if layer + 1 < self.costs.load_seconds.len() {
            return None;
        }
        self.compute(self.costs.head.seconds(1, tokens));
        self.link.advance(self.now);
        self.pass.hidden_seconds = self.link.busy(self.now) - self.busy_before - self.pass.exposed_seconds;
        self.speed.of_mut(self.pass.phase).add_pass(&self.pass);
        Some(self.pass)
    }

    /// What the passes so far took.
    pub fn speed(&self) -> &Speed {
        &self.speed
    }

    /// Prefetched experts that were used before they had arrived.
    pub fn late_prefetches(&self) -> u64 {
        self.late
    }

    fn compute(&mut self, seconds: f64) {
        self.now += seconds;
        self.pass.compute_seconds += seconds;
    }

    /// Executes a plan from the second in which the router has decided.
    fn execute(&mut self, served: &Served<'_>) {
        let (pool, request, plan) = (served.pool, served.request, served.plan);
        let started = self.now;
        let load = self.costs.load_seconds[request.layer().index()];
        let device = self.costs.device_expert;
        let mut clocks = Clocks { device: started, host: started, computed: 0.0 };
        self.link.advance(started);
        // Resident experts are there, on the way, or still queued.
        let (mut awaited, mut queued) = (None, Vec::new());
        for hit in plan.hits() {
            let arrival = self.link.arrival(Copied { pool, key: hit.key }, started);
            self.late += u64::from(hit.prefetched && arrival != Arrival::Here);
            match arrival {
                Arrival::Here => clocks.device(started, device.seconds(1, uses(request, hit.key))),
                Arrival::At(second) => awaited = Some((hit.key, second)),
                Arrival::Queued => queued.push(hit.key),
            }
        }
        for evicted in plan.evictions() {
            self.link.cancel(Copied { pool, key: evicted.key });
        }
        // Beside compute, prefetches give way to what the plan demands.
        if self.costs.overlap == Overlap::Copies {
            self.foresee(served);
        }
        if let Some((key, arrival)) = awaited {
            let uses = uses(request, key);
            if !self.by_host(&mut clocks, arrival, uses) {
                clocks.device(arrival, device.seconds(1, uses));
            }
        }
        for key in queued {
            self.fetch(&mut clocks, started, load, Copied { pool, key }, request, plan);
        }
        for (number, wave) in plan.waves().enumerate() {
            let begins = if number == 0 { started } else { clocks.device };
            for wanted in wave {
                self.fetch(&mut clocks, begins, load, Copied { pool, key: wanted.key }, request, plan);
            }
        }
        let bypassed = plan.bypasses().iter();
        clocks.host += bypassed.map(|&key| self.costs.host_expert.seconds(1, uses(request, key))).sum::<f64>();
        let host_alone = match self.costs.overlap {
            Overlap::None => clocks.host - started,
            Overlap::Copies => (clocks.host - clocks.device).max(0.0),
        };
        self.now = clocks.device + host_alone;
        self.pass.compute_seconds += clocks.computed;
        self.pass.exposed_seconds += clocks.device - started - clocks.computed;
        self.pass.host_seconds += host_alone;
        if self.costs.overlap == Overlap::None {
            self.foresee(served);
        }
    }

    /// Queues, or copies at once, what a request lets prefetch.
    fn foresee(&mut self, served: &Served<'_>) {
        for prefetched in served.prefetches() {
            for evicted in prefetched.evictions {
                self.link.cancel(Copied { pool: prefetched.pool, key: evicted.key });
            }
            let copied = Copied { pool: prefetched.pool, key: prefetched.load.key };
            let (layer, _) = self.pools[copied.pool].expert(copied.key).expect("an expert of the pool");
            let load = self.costs.load_seconds[layer.index()];
            match self.costs.overlap {
                Overlap::None => {
                    let arrival = self.link.demand(self.now, load);
                    self.pass.exposed_seconds += arrival - self.now;
                    self.now = arrival;
                }
                Overlap::Copies => self.link.enqueue(copied, self.now, load),
            }
        }
    }

    /// Serves an expert that is not there: the device when it has been copied, or the host at once, and the copy follows.
    fn fetch(
        &mut self,
        clocks: &mut Clocks,
        wanted: f64,
        load: f64,
        copied: Copied,
        request: &Request<'_>,
        plan: &Plan,
    ) {
        let uses = uses(request, copied.key);
        let wanted = if self.costs.overlap == Overlap::None { clocks.device } else { wanted };
        if !self.by_host(clocks, self.link.estimate(wanted, load), uses) {
            let arrival = self.link.demand(wanted, load);
            clocks.device(arrival, self.costs.device_expert.seconds(1, uses));
        } else if plan.evictions().iter().all(|evicted| evicted.key != copied.key) {
            // A later wave of the plan takes the slots of the others.
            self.link.enqueue(copied, wanted, load);
        }
    }

    /// Lets the host compute an expert that would arrive at some second, if it shall.
    fn by_host(&self, clocks: &mut Clocks, arrival: f64, uses: u64) -> bool {
        let done = clocks.host + self.costs.host_expert.seconds(1, uses);
        let shall = match (self.costs.overlap, self.while_loading) {
            (Overlap::None, _) | (_, WhileLoading::Device) => false,
            (_, WhileLoading::Host) => true,
            (_, WhileLoading::Sooner) => done < clocks.device.max(arrival) + self.costs.device_expert.seconds(1, uses),
        };
        if shall {
            clocks.host = done;
        }
        shall
    }
}

impl Clocks {
    /// The device computes for some seconds, not before `arrival`.
    fn device(&mut self, arrival: f64, seconds: f64) {
        self.device = self.device.max(arrival) + seconds;
        self.computed += seconds;
    }
}

/// Tokens that an expert serves.
fn uses(request: &Request<'_>, key: ExpertKey) -> u64 {
    u64::from(request.uses(key))
}
