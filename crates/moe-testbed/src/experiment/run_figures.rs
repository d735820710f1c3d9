//! Everything that is measured on one trained model.

use std::collections::BTreeMap;

use lrc_metrics::{
    Accumulator, ByDomain, Convention, CurvePolicy, LayerAgreement, LayerLoad, LoadBalance, MetricsOptions,
    ReferenceRouting, RoutingAgreement, TraceMetrics, accumulate, by_policy,
};
use moe_trace::{MemoryTrace, RoutingSource};
use serde::{Deserialize, Serialize};

use super::run_config::RunConfig;
use crate::{
    error::Result,
    measure::{MeasureOptions, PredictedSpeed, Reading, SpeedPlan, matched_experts, shuffled_tokens},
};

/// What is measured on the held-out text with one trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFigures {
    /// Parameters of the model.
    pub parameters: usize,
    /// Cross entropy of held-out text in nats a token, mean over domains.
    pub validation_loss: f64,
    /// The same, by domain.
    pub domain_losses: BTreeMap<String, f64>,
    /// Agreement with the domains, mean over layers.
    pub agreement: Agreement,
    /// Agreement with the domains, layer by layer.
    pub layers: Vec<LayerAgreement>,
    /// Load of the experts, layer by layer.
    pub load: Vec<LayerLoad>,
    /// Coefficient of variation of the activation rate over domains, mean over experts that two domains use.
    pub specialization: Option<f64>,
    /// SRP by window length.
    pub srp: BTreeMap<usize, SrpFigures>,
    /// Slots a layer of the hit rates.
    pub slots: usize,
    /// How these hit rates are counted; that of the predicted speed is the engine's.
    #[serde(default)]
    pub hit_rate_convention: Convention,
    /// Hit rates by policy.
    #[serde(with = "by_policy")]
    pub hit_rates: BTreeMap<CurvePolicy, BesideShuffled>,
    /// Predicted speed.
    pub speed: PredictedSpeed,
    /// Predicted speed of the same tokens in random order.
    pub shuffled_speed: PredictedSpeed,
}

/// Agreement with the domains beside that of routing that knows nothing of them.
///
/// The sequences of each domain are halved: on the first half every expert is given to a domain, as many to each, and the
/// figures are those of the second half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The model's routers.
    pub router: RoutingAgreement,
    /// The same under labels that are shuffled over sequences.
    pub shuffled: RoutingAgreement,
    /// A router that sees only the position of a token.
    pub position: RoutingAgreement,
    /// A router that hashes the id of a token.
    pub hash: RoutingAgreement,
}

/// SRP at one window length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SrpFigures {
    /// SRP of the model, and of the same tokens in random order.
    pub srp: BesideShuffled,
    /// Segment routing size ratio.
    pub rho: f64,
    /// What any routing of this activation rate reaches.
    pub lower_bound: f64,
}

/// A figure, and what it is when the same tokens come in random order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BesideShuffled {
    /// The figure.
    pub value: f64,
    /// The figure of the tokens in random order.
    pub shuffled: f64,
}

impl Agreement {
    /// Mean over layers.
    fn mean(layers: &[LayerAgreement]) -> Agreement {
        let of = |router: fn(&LayerAgreement) -> Option<RoutingAgreement>| {
            mean_agreement(&layers.iter().filter_map(router).collect::<Vec<_>>())
        };
        Agreement {
            router: of(|layer| Some(layer.router)),
            shuffled: of(|layer| Some(layer.shuffled)),
            position: of(|layer| Some(layer.position)),
            hash: of(|layer| layer.hash),
        }
    }
}

impl RunFigures {
    /// Measures a reading of the held-out text.
    ///
    /// # Errors
    /// [`TestbedError::Metric`](crate::TestbedError::Metric), [`TestbedError::Cache`](crate::TestbedError::Cache) or
    /// [`TestbedError::Model`](crate::TestbedError::Model) if reading and configuration do not belong together.
    pub fn measure(run: &RunConfig, reading: &Reading) -> Result<RunFigures> {
        let (config, trace, options) = (run.config()?, &reading.trace, &run.measure);
        let shuffled = shuffled_tokens(trace, run.seed())?;
        let slots = slots(options, trace);
        let (ordered, random) = (metrics(trace, options)?, metrics(&shuffled, options)?);
        let srp = |(&window, value): (&usize, &lrc_metrics::SrpValue)| {
            let srp = BesideShuffled { value: value.srp, shuffled: random.model.srp[&window].srp };
            (window, SrpFigures { srp, rho: value.rho, lower_bound: value.lower_bound() })
        };
        let rate = |&policy: &CurvePolicy| {
            let value = ordered.hit_rate(policy, slots)?;
            let shuffled = random.hit_rate(policy, slots)?;
            Some((policy, BesideShuffled { value, shuffled }))
        };
        let load = by_domain(trace, 0)?.finish()?;
        let specializations: Vec<f64> = load.specialization().into_iter().flatten().flatten().collect();
        let layers = agreement(trace, run.seed())?;
        let plan = SpeedPlan::new(&config, &options.speed)?;
        Ok(RunFigures {
            parameters: config.parameters(),
            validation_loss: mean(reading.losses.iter().copied()),
            domain_losses: trace.domains().iter().cloned().zip(reading.losses.iter().copied()).collect(),
            agreement: Agreement::mean(&layers),
            layers,
            specialization: (!specializations.is_empty()).then(|| mean(specializations.iter().copied())),
            load: load.all,
            srp: ordered.model.srp.iter().map(srp).collect(),
            slots,
            hit_rate_convention: ordered.convention,
            hit_rates: ordered.model.curves.keys().filter_map(rate).collect(),
            speed: plan.predict(trace)?,
            shuffled_speed: plan.predict(&shuffled)?,
        })
    }

    /// Mean of a figure of the load over layers.
    pub fn mean_load(&self, figure: impl Fn(&LayerLoad) -> f64) -> f64 {
        mean(self.load.iter().map(figure))
    }

    /// Every figure of the run by its name, as it stands in the tables of a study.
    pub fn by_name(&self) -> BTreeMap<String, f64> {
        let mut named = BTreeMap::new();
        let mut add = |name: String, value: f64| {
            named.insert(name, value);
        };
        add("parameters".to_owned(), self.parameters as f64);
        add("validation_loss".to_owned(), self.validation_loss);
        let Agreement { router, shuffled, position, hash } = self.agreement;
        let routers = [("", router), ("_shuffled_labels", shuffled), ("_position", position), ("_hash", hash)];
        for (null, agreement) in routers {
            add(format!("purity{null}"), agreement.purity);
            add(format!("nmi{null}"), agreement.nmi);
            add(format!("top1{null}"), agreement.top1);
            add(format!("precision{null}"), agreement.precision);
            add(format!("coverage{null}"), agreement.coverage);
        }
        add("utilization".to_owned(), self.mean_load(|load| load.utilization));
        add("load_deviation_percent".to_owned(), self.mean_load(|load| load.deviation_percent));
        add("load_entropy".to_owned(), self.mean_load(|load| load.entropy));
        add("load_max".to_owned(), self.mean_load(|load| load.max_load));
        add("dead_experts".to_owned(), self.mean_load(|load| load.dead_experts as f64));
        self.specialization.into_iter().for_each(|value| add("specialization".to_owned(), value));
        for (window, figures) in &self.srp {
            add(format!("srp_{window}"), figures.srp.value);
            add(format!("srp_{window}_shuffled_tokens"), figures.srp.shuffled);
            add(format!("srp_{window}_rho"), figures.rho);
            add(format!("srp_{window}_lower_bound"), figures.lower_bound);
        }
        for (policy, rate) in &self.hit_rates {
            add(policy.to_string(), rate.value);
            add(format!("{policy}_shuffled_tokens"), rate.shuffled);
        }
        add("tokens_per_second".to_owned(), self.speed.tokens_per_second);
        add("tokens_per_second_shuffled_tokens".to_owned(), self.shuffled_speed.tokens_per_second);
        add("tokens_per_second_resident".to_owned(), self.speed.resident_tokens_per_second);
        add("offloading_slots".to_owned(), self.speed.slots as f64);
        add("offloading_hit_rate".to_owned(), self.speed.hit_rate);
        named
    }
}

/// Slots a layer, at least one and at most all experts.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=experts")]
fn slots(options: &MeasureOptions, trace: &MemoryTrace) -> usize {
    let geometry = trace.geometry();
    (options.rho * geometry.top_k() as f64).round().clamp(1.0, geometry.experts() as f64) as usize
}

fn metrics(trace: &MemoryTrace, options: &MeasureOptions) -> Result<lrc_metrics::MetricsReport> {
    let options = MetricsOptions { windows: options.windows.clone(), ..MetricsOptions::default() };
    Ok(accumulate(trace, &TraceMetrics::new(trace.geometry(), &options)?, &|_done| {})?.finish()?)
}

/// Load by domain, of all sequences or of a domain's first ones.
fn by_domain(trace: &MemoryTrace, first: usize) -> Result<ByDomain<LoadBalance>> {
    let mut load = ByDomain::new(&LoadBalance::new(trace.geometry()), trace.domains().len());
    for number in 0..if first == 0 { trace.len() } else { first } {
        load.update(&trace.sequence(number)?)?;
    }
    Ok(load)
}

/// Agreement of every layer on the second half of the sequences with the experts matched on the first half.
fn agreement(trace: &MemoryTrace, seed: u64) -> Result<Vec<LayerAgreement>> {
    // The domains take turns, so a half of the sequences is a half of each domain.
    let domains = trace.domains().len();
    let half = trace.len() / domains / 2 * domains;
    let load = by_domain(trace, half)?.finish()?;
    let layer = |layer: moe_trace::LayerId| {
        let matched = matched_experts(&load, layer.index());
        let mut routing = ReferenceRouting::new(trace.geometry(), &[layer], &matched, seed)?;
        for number in half..trace.len() {
            routing.update(&trace.sequence(number)?)?;
        }
        Ok(routing.finish())
    };
    let layers: Result<Vec<Vec<LayerAgreement>>> = trace.geometry().layer_ids().map(layer).collect();
    Ok(layers?.concat())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

fn mean_agreement(layers: &[RoutingAgreement]) -> RoutingAgreement {
    let of = |figure: fn(&RoutingAgreement) -> f64| mean(layers.iter().map(figure));
    RoutingAgreement {
        purity: of(|layer| layer.purity),
        top1: of(|layer| layer.top1),
        precision: of(|layer| layer.precision),
        coverage: of(|layer| layer.coverage),
        nmi: of(|layer| layer.nmi),
    }
}
