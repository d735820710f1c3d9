//! How much of a figure's variation over runs goes with the scope, how much with the router.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::study::{CompleteRun, PointSummary, Study};
use crate::training::BalanceScope;

/// Shares of the variation of a figure over runs of routers crossed with scopes.
///
/// # Formula
/// Shares of the sum of squares about the mean: `sum n (mean of the group - mean)^2 / sum (value - mean)^2`, grouped by
/// scope, by router, and by both less the two before (the interaction); what is left is that of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effects {
    /// Goes with the balancing scope.
    pub scope: f64,
    /// Goes with the router.
    pub router: f64,
    /// Goes with neither alone.
    pub interaction: f64,
    /// Goes with the seed.
    pub seed: f64,
}

/// The same router and scope with and without a limit on the tokens of an expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DroppingEffect {
    /// The point with the limit.
    pub point: String,
    /// The point without.
    pub without: String,
    /// Figure with the limit less that without, mean over seeds.
    pub differences: BTreeMap<String, f64>,
}

impl Effects {
    /// Splits the variation of values, each of a scope and a router.
    fn of(values: &[((&str, String), f64)]) -> Option<Effects> {
        let mean = values.iter().map(|(_, value)| value).sum::<f64>() / values.len() as f64;
        let total: f64 = values.iter().map(|(_, value)| (value - mean).powi(2)).sum();
        let between = |by_scope: bool, by_router: bool| -> f64 {
            let mut groups: BTreeMap<_, (f64, f64)> = BTreeMap::new();
            for ((scope, router), value) in values {
                let group = (by_scope.then_some(*scope), by_router.then_some(router.as_str()));
                let (sum, count) = groups.entry(group).or_default();
                (*sum, *count) = (*sum + value, *count + 1.0);
            }
            groups.values().map(|(sum, count)| count * (sum / count - mean).powi(2)).sum::<f64>() / total
        };
        let (scope, router, both) = (between(true, false), between(false, true), between(true, true));
        (total > 0.0).then_some(Effects { scope, router, interaction: both - scope - router, seed: 1.0 - both })
    }
}

impl Study {
    /// Shares of the variation of a figure over routers crossed with scopes: all routers that ran with more than one
    /// scope, all scopes that each of these ran with, without dropping, with the architecture of the first run. No scope at all
    /// does not count as one: what is compared is how to balance. `None` if these are fewer than two routers or two scopes.
    pub fn effects(&self, figure: &str) -> Option<Effects> {
        let key = |run: &CompleteRun| (run.config.training.balancing.scope.name(), run.config.router());
        let first = self.runs.first()?;
        let alike = |run: &&CompleteRun| {
            let balancing = &run.config.training.balancing;
            balancing.scope != BalanceScope::None
                && balancing.capacity_factor.is_none()
                && run.config.same_architecture(&first.config)
        };
        let runs: Vec<&CompleteRun> = self.runs.iter().filter(alike).collect();
        let mut scopes_of: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (scope, router) in runs.iter().map(|run| key(run)) {
            scopes_of.entry(router).or_default().insert(scope);
        }
        scopes_of.retain(|_, scopes| scopes.len() > 1);
        let scopes = scopes_of.values().cloned().reduce(|all, scopes| &all & &scopes)?;
        if scopes.len() < 2 || scopes_of.len() < 2 {
            return None;
        }
        let crossed = runs.iter().map(|run| (key(run), run));
        let crossed = crossed.filter(|((scope, router), _)| scopes.contains(scope) && scopes_of.contains_key(router));
        let values: Option<Vec<((&str, String), f64)>> =
            crossed.map(|(key, run)| Some((key, *run.figures.by_name().get(figure)?))).collect();
        Effects::of(&values?)
    }

    /// What a capacity factor does to some figures, beside the point that differs in nothing else.
    pub fn dropping(&self, figures: &[&str]) -> Vec<DroppingEffect> {
        let points = self.points();
        let config = |name: &str| self.runs.iter().map(|run| &run.config).find(|config| config.point == name);
        let effect = |point: &PointSummary| {
            point.capacity_factor?;
            let ours = config(&point.point)?;
            let same = |other: &&PointSummary| {
                (&other.router, other.scope, other.capacity_factor) == (&point.router, point.scope, None)
                    && config(&other.point).is_some_and(|other| other.same_architecture(ours))
            };
            let without = points.iter().find(same)?;
            let difference = |name: &&str| {
                Some(((*name).to_owned(), point.figures.get(*name)?.mean - without.figures.get(*name)?.mean))
            };
            Some(DroppingEffect {
                point: point.point.clone(),
                without: without.point.clone(),
                differences: figures.iter().filter_map(difference).collect(),
            })
        };
        points.iter().filter_map(effect).collect()
    }

    /// The scopes that a run of the study has, in their order.
    pub fn scopes(&self) -> Vec<BalanceScope> {
        let has = |scope: &BalanceScope| self.runs.iter().any(|run| run.config.training.balancing.scope == *scope);
        BalanceScope::ALL.into_iter().filter(has).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        // Scopes differ by 4, routers by 2, seeds by 0 except for one pair: means 1, 3, 5, 7.
        let mut values = Vec::new();
        for (scope, router, seeds) in
            [("a", "x", [0.0, 2.0]), ("a", "y", [3.0, 3.0]), ("b", "x", [5.0, 5.0]), ("b", "y", [7.0, 7.0])]
        {
            seeds.into_iter().for_each(|value| values.push(((scope, router.to_owned()), value)));
        }
        // About the mean 4: 16 + 4 + 1 + 1 + 1 + 1 + 9 + 9 = 42; scopes 8 * 4 = 32, routers 8 * 1 = 8, seeds 2.
        let effects = Effects::of(&values).unwrap();
        let close = |found: f64, expected: f64| assert!((found - expected / 42.0).abs() < 1e-12, "{effects:?}");
        close(effects.scope, 32.0);
        close(effects.router, 8.0);
        close(effects.interaction, 0.0);
        close(effects.seed, 2.0);
        assert_eq!(Effects::of(&[(("a", "x".to_owned()), 1.0)]), None);
    }
}
