//! A clock that executes plans.

use moe_trace::{LayerId, Phase};

use super::{CostModel, Overlap, Speed};
use crate::{CacheError, Plan, Result};

/// A discrete-event model of one device, one copy engine and one host processor that serve passes through a model.
///
/// A pass begins, asks for a plan in each layer, and ends. In each layer what is dense is computed first; then the
/// router has decided, and the plan is executed wave by wave. Copies run one after the other in the order of the plan.
/// With [`Overlap::Copies`] the device computes resident experts meanwhile and each loaded one when it has arrived, and
/// the host computes bypassed ones; without, the loads of a wave, its compute and the host follow each other. A wave
/// begins when the one before has been computed, since it may load into its slots. A layer ends when device and host
/// are done.
///
/// ```
/// use expert_cache::{CostModel, ExpertCache, Linear, Lru, Overlap, Oversize, Timeline};
/// use moe_trace::{ExpertSet, LayerId, Phase};
///
/// // One layer: loads take 10 s, an expert 1 s, the rest nothing.
/// let nothing = Linear::default();
/// let costs = CostModel {
///     load_seconds: vec![10.0],
///     device_expert: Linear { call_seconds: 1.0, seconds_each: 0.0 },
///     host_expert: nothing,
///     dense: nothing,
///     head: nothing,
///     overlap: Overlap::Copies,
/// };
/// let mut timeline = Timeline::new(costs)?;
/// let mut cache = ExpertCache::new(Lru::new(4), 4, 3, Oversize::Waves)?;
/// for experts in [[0, 1], [1, 2]] {
///     timeline.begin(Phase::Decode, 1);
///     let plan = cache.request(&ExpertSet::from_members(4, experts))?;
///     timeline.layer(LayerId(0), plan, 2)?;
///     timeline.end();
/// }
/// let decode = &timeline.speed().decode;
/// // Two loads and the last expert, 21 s; then a load beside the resident expert and the loaded expert, 11 s.
/// assert_eq!((decode.seconds, decode.compute_seconds, decode.hidden_seconds), (32.0, 4.0, 2.0));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Timeline {
    costs: CostModel,
    phase: Phase,
    tokens: u64,
    pass: Pass,
    speed: Speed,
}

/// Seconds of one pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pass {
    /// Device compute.
    pub(super) device: f64,
    /// The device waits for copies.
    pub(super) copies_exposed: f64,
    /// The device waits for the host, all copies done.
    pub(super) host_exposed: f64,
    /// The link is busy.
    pub(super) copies: f64,
}

impl Timeline {
    /// Creates a clock that has run nothing.
    ///
    /// # Errors
    /// [`CacheError::NoLayers`]; [`CacheError::Profile`] for a cost that is negative or not finite.
    pub fn new(costs: CostModel) -> Result<Timeline> {
        costs.check()?;
        Ok(Timeline { costs, phase: Phase::Decode, tokens: 0, pass: Pass::default(), speed: Speed::default() })
    }

    /// Begins a pass of `tokens` tokens.
    pub fn begin(&mut self, phase: Phase, tokens: u64) {
        (self.phase, self.tokens, self.pass) = (phase, tokens, Pass::default());
    }

    /// Executes a layer: its dense part, then a plan whose experts serve `uses` pairs of token and expert.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`] for a layer without costs.
    pub fn layer(&mut self, layer: LayerId, plan: &Plan, uses: u64) -> Result<()> {
        let layers = self.costs.load_seconds.len();
        let load = self.costs.load_seconds.get(layer.index());
        let load = *load.ok_or(CacheError::LayerOutOfRange { layer: layer.index(), layers })?;
        self.pass.device += self.costs.dense.seconds(1, self.tokens);
        let experts = plan.hits().len() + plan.loads().len() + plan.bypasses().len();
        if experts == 0 {
            return Ok(());
        }
        // Costs are linear in the tokens of an expert, so it does not matter which expert has how many.
        let share = uses as f64 / experts as f64;
        let device = self.costs.device_expert.call_seconds + self.costs.device_expert.seconds_each * share;
        let host = self.costs.host_expert.call_seconds + self.costs.host_expert.seconds_each * share;
        let host = host * plan.bypasses().len() as f64;
        let mut resident = plan.hits().len();
        let mut until_device = 0.0;
        for wave in plan.waves() {
            until_device += self.wave(std::mem::take(&mut resident), wave.len(), load, device);
        }
        self.pass.host_exposed += match self.costs.overlap {
            Overlap::None => host,
            Overlap::Copies => (host - until_device).max(0.0),
        };
        Ok(())
    }

    /// Seconds of a wave: `resident` experts that are there and `loads` that come.
    fn wave(&mut self, resident: usize, loads: usize, load: f64, compute: f64) -> f64 {
        let computing = compute * (resident + loads) as f64;
        let copying = load * loads as f64;
        let seconds = match self.costs.overlap {
            Overlap::None => copying + computing,
            Overlap::Copies => {
                (1..=loads).fold(compute * resident as f64, |device, number| device.max(load * number as f64) + compute)
            }
        };
        self.pass.device += computing;
        self.pass.copies += copying;
        self.pass.copies_exposed += (seconds - computing).max(0.0);
        seconds
    }

    /// Ends the pass.
    pub fn end(&mut self) {
        self.pass.device += self.costs.head.seconds(1, self.tokens);
        self.speed.of_mut(self.phase).add_pass(self.tokens, &self.pass);
    }

    /// What the passes so far took.
    pub fn speed(&self) -> &Speed {
        &self.speed
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::ExpertSet;

    use super::*;
    use crate::{ExpertCache, Linear, Lru, Oversize};

    fn costs(overlap: Overlap) -> CostModel {
        let linear = |call_seconds, seconds_each| Linear { call_seconds, seconds_each };
        CostModel {
            load_seconds: vec![4.0],
            device_expert: linear(1.0, 0.5),
            host_expert: linear(6.0, 1.0),
            dense: linear(2.0, 0.25),
            head: linear(3.0, 0.0),
            overlap,
        }
    }

    /// One pass of two tokens that want experts 0..wanted; two slots, expert 0 is resident.
    fn pass(overlap: Overlap, oversize: Oversize, wanted: usize) -> Speed {
        let mut timeline = Timeline::new(costs(overlap)).unwrap();
        let mut cache = ExpertCache::new(Lru::new(4), 4, 2, oversize).unwrap();
        cache.request(&ExpertSet::from_members(4, [0])).unwrap();
        timeline.begin(Phase::Decode, 2);
        let plan = cache.request(&ExpertSet::from_members(4, 0..wanted)).unwrap();
        timeline.layer(LayerId(0), plan, 2 * wanted as u64).unwrap();
        timeline.end();
        timeline.speed().clone()
    }

    #[test]
    fn one_after_the_other_by_hand() {
        // Dense 2 + 2 * 0.25, head 3; each expert 1 + 2 * 0.5; expert 1 loads for 4, then 2 and 3 in waves of two.
        let decode = pass(Overlap::None, Oversize::Waves, 4).decode;
        assert_eq!(decode.seconds, 5.5 + 4.0 * 2.0 + 3.0 * 4.0);
        assert_eq!((decode.compute_seconds, decode.exposed_seconds, decode.hidden_seconds), (13.5, 12.0, 0.0));
        // Two of the four are bypassed: 6 + 2 each.
        let decode = pass(Overlap::None, Oversize::Bypass, 4).decode;
        assert_eq!((decode.seconds, decode.host_seconds), (5.5 + 2.0 * 2.0 + 4.0 + 2.0 * 8.0, 16.0));
    }

    #[test]
    fn side_by_side_by_hand() {
        // The resident expert is done at 2, the loaded one arrives at 4 and is done at 6. Second wave: loads arrive at 4
        // and 8, done at 6 and 10.
        let decode = pass(Overlap::Copies, Oversize::Waves, 4).decode;
        assert_eq!(decode.seconds, 5.5 + 6.0 + 10.0);
        assert_eq!((decode.compute_seconds, decode.exposed_seconds, decode.hidden_seconds), (13.5, 8.0, 4.0));
        // The host needs 16 beside the 6 of the device.
        let decode = pass(Overlap::Copies, Oversize::Bypass, 4).decode;
        assert_eq!((decode.seconds, decode.host_seconds), (5.5 + 16.0, 10.0));
    }

    #[test]
    fn layers_without_costs_and_impossible_costs_are_refused() {
        let mut timeline = Timeline::new(costs(Overlap::None)).unwrap();
        let error = timeline.layer(LayerId(1), &Plan::default(), 0).unwrap_err().to_string();
        assert_eq!(error, "layer 1 is out of range, the trace has 1 MoE layers");
        let refused = |change: fn(&mut CostModel)| {
            let mut costs = costs(Overlap::None);
            change(&mut costs);
            Timeline::new(costs).unwrap_err().to_string()
        };
        assert_eq!(refused(|costs| costs.load_seconds[0] = -1.0), "load_seconds is -1, it must be at least 0");
        assert_eq!(
            refused(|costs| costs.head.seconds_each = f64::NAN),
            "head.seconds_each is NaN, it must be at least 0"
        );
        assert_eq!(refused(|costs| costs.load_seconds.clear()), "there are no layers");
    }
}
