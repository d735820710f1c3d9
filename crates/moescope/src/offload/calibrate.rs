//! Costs of this machine, from what was measured of it and from the resident run.

use anyhow::Result;
use expert_cache::{CostModel, HardwareProfile, Linear, ModelSize, Overlap, PolicyKind, PrefetcherKind};
use moe_offload::Transfers;

use super::case::{Case, Misses, Served};
use super::steps::Steps;

/// What everything costs, the disk apart.
#[derive(Clone, Debug)]
pub(crate) struct Prices {
    /// Experts come from host memory.
    pub(crate) memory: CostModel,
    /// Seconds more of an expert from disk; 0 where there is none.
    pub(crate) disk_seconds: f64,
    /// Seconds of a copy from a cache in host memory into a slot; 0 where there is none.
    pub(crate) host_copy_seconds: f64,
}

impl Prices {
    /// Prices where what comes from disk goes to host memory, as it goes into slots otherwise, and is copied into slots from
    /// there.
    pub(crate) fn through_host_memory(&self) -> Prices {
        let mut prices = self.clone();
        prices.disk_seconds += prices.memory.load_seconds[0];
        prices.memory.load_seconds.fill(self.host_copy_seconds);
        prices
    }

    /// Costs where these shares of the loads, by layer, and of the experts that the host computes come from disk.
    pub(crate) fn costs(&self, loads: &dyn Fn(usize) -> f64, computed: f64) -> CostModel {
        let mut costs = self.memory.clone();
        for (layer, seconds) in costs.load_seconds.iter_mut().enumerate() {
            *seconds += self.disk_seconds * loads(layer);
        }
        costs.host_expert.call_seconds += self.disk_seconds * computed;
        costs
    }
}

/// The median of each price over the rounds.
pub(crate) fn prices(
    profiles: &[HardwareProfile],
    size: &ModelSize,
    from_disk: bool,
    overlap: Overlap,
) -> Result<Prices> {
    let disk = |profile: &HardwareProfile| profile.disk.seconds(size.expert_bytes[0]);
    let disk_seconds = if from_disk { median(profiles.iter().map(disk)) } else { 0.0 };
    Ok(Prices { memory: CostModel { overlap, ..costs(profiles, size)? }, disk_seconds, host_copy_seconds: 0.0 })
}

fn costs(profiles: &[HardwareProfile], size: &ModelSize) -> Result<CostModel> {
    let of_rounds = profiles.iter().map(|profile| CostModel::new(profile, size, false));
    let of_rounds = of_rounds.collect::<Result<Vec<_>, _>>()?;
    let of = |cost: fn(&CostModel) -> f64| median(of_rounds.iter().map(cost));
    let linear = |call_seconds, seconds_each| Linear { call_seconds: of(call_seconds), seconds_each: of(seconds_each) };
    let load = of(|one| one.load_seconds[0]);
    let mut all = CostModel::loads(vec![load; of_rounds[0].load_seconds.len()], of_rounds[0].overlap);
    all.device_expert = linear(|one| one.device_expert.call_seconds, |one| one.device_expert.seconds_each);
    all.host_expert = linear(|one| one.host_expert.call_seconds, |one| one.host_expert.seconds_each);
    all.plan = linear(|one| one.plan.call_seconds, |one| one.plan.seconds_each);
    Ok(all)
}

/// Chooses the costs of what is no expert, and how much of an expert's cost each of several tokens adds, so that the resident
/// run takes as long as it did. There, experts of a prompt are computed together; where they arrive one by one, threads do not
/// share them, and prefilling takes longer than predicted.
pub(crate) fn calibrate(served: &Served<'_>, prices: &mut Prices, resident: &Steps) -> Result<()> {
    let mut experts_alone = Prices { disk_seconds: 0.0, host_copy_seconds: 0.0, ..prices.clone() };
    experts_alone.memory.load_seconds.fill(0.0);
    (experts_alone.memory.plan, experts_alone.memory.dense, experts_alone.memory.head) = Default::default();
    let everything = Case {
        rho: served.geometry().experts() as f64,
        slots: served.geometry().experts(),
        policy: PolicyKind::Lru,
        prefetcher: PrefetcherKind::None,
        per_request: 1,
        ahead: None,
        misses: Misses::Load,
        transfers: Transfers::Inline,
    };
    let speed = served.predict(&everything, &experts_alone)?.speed;
    let costs = &mut prices.memory;
    let layers = costs.load_seconds.len() as f64;
    let decode = (resident.decode_seconds() - speed.decode.mean_seconds()) / layers;
    // A pass of n tokens costs each layer call + n * each; a decode pass has 1 token.
    let (tokens, passes) = (speed.prefill.tokens as f64, resident.prefill.len() as f64);
    let prefill = (resident.prefill.iter().sum::<f64>() - speed.prefill.seconds) / layers;
    let each = if tokens > passes { (prefill - passes * decode) / (tokens - passes) } else { 0.0 };
    costs.dense.seconds_each = each.clamp(0.0, decode.max(0.0));
    costs.dense.call_seconds = (decode - costs.dense.seconds_each).max(0.0);
    costs.head = Linear::default();
    // The rest is the experts': they were timed one by one, and several of them may share the threads better, or be in each
    // other's way. Seconds move from a call to its tokens or back, which leaves decoding as it is.
    let rest = (prefill - passes * costs.dense.call_seconds - tokens * costs.dense.seconds_each) * layers;
    let expert = costs.device_expert;
    let moved = |seconds: f64| Linear {
        call_seconds: expert.call_seconds - seconds,
        seconds_each: expert.seconds_each + seconds,
    };
    experts_alone.memory.device_expert = moved(expert.call_seconds);
    let most = served.predict(&everything, &experts_alone)?.speed.prefill.seconds - speed.prefill.seconds;
    if most > 0.0 {
        let seconds = expert.call_seconds * rest / most;
        costs.device_expert = moved(seconds.clamp(-expert.seconds_each, expert.call_seconds));
    }
    Ok(())
}

/// The median of some numbers, of which there is at least one; of an even count the upper of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
