//! Costs of this machine, from what was measured of it and from the resident run.

use anyhow::Result;
use expert_cache::{CostModel, HardwareProfile, Linear, ModelSize, PolicyKind, PrefetcherKind};
use moe_offload::Transfers;

use crate::case::{Case, Served};
use crate::steps::Steps;

/// The median of each cost over the rounds.
pub(crate) fn costs(profiles: &[HardwareProfile], size: &ModelSize, from_disk: bool) -> Result<CostModel> {
    let of_rounds = profiles.iter().map(|profile| CostModel::new(profile, size, from_disk));
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

/// Chooses the costs of what is no expert so that the resident run takes as long as it did.
pub(crate) fn calibrate(served: &Served<'_>, costs: &mut CostModel, resident: &Steps) -> Result<()> {
    let mut experts_alone = costs.clone();
    experts_alone.load_seconds.fill(0.0);
    (experts_alone.plan, experts_alone.dense, experts_alone.head) = Default::default();
    let everything = Case {
        rho: served.geometry().experts() as f64,
        policy: PolicyKind::Lru,
        prefetcher: PrefetcherKind::None,
        per_request: 1,
        transfers: Transfers::Inline,
    };
    let speed = served.predict(&everything, &experts_alone)?.0;
    let layers = costs.load_seconds.len() as f64;
    let decode = (resident.decode_seconds() - speed.decode.mean_seconds()) / layers;
    // A pass of n tokens costs each layer call + n * each; a decode pass has 1 token.
    let (tokens, passes) = (speed.prefill.tokens as f64, resident.prefill.len() as f64);
    let prefill = (resident.prefill.iter().sum::<f64>() - speed.prefill.seconds) / layers;
    let each = if tokens > passes { (prefill - passes * decode) / (tokens - passes) } else { 0.0 };
    costs.dense.seconds_each = each.clamp(0.0, decode.max(0.0));
    costs.dense.call_seconds = (decode - costs.dense.seconds_each).max(0.0);
    costs.head = Linear::default();
    Ok(())
}

/// The median of some numbers, of which there is at least one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
