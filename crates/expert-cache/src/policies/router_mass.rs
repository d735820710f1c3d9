//! The router's weights as frequency.

use super::decayed::{Contribution, Decayed};
use crate::key::ExpertKey;
use crate::request::Request;

/// A policy that evicts the expert with the least router probability lately, where a weight counts about `1 / e` for every
/// `memory` tokens of its age.
///
/// It reads the mass of requests; in a request without router weights all experts have the same share of 1. [`Decayed`] has
/// the formula.
///
/// Source: the score-aware caching of HybriMoE, arXiv 2504.05897, here from the weights of the chosen experts only.
pub type RouterMass = Decayed<RouterWeight>;

/// A contribution of the router weight of the expert.
#[derive(Clone, Debug)]
pub struct RouterWeight;

impl Contribution for RouterWeight {
    const POLICY: &'static str = concat!(module_path!(), "::RouterMass");
    const READS_MASS: bool = true;

    #[expect(clippy::cast_precision_loss, reason = "requests are smaller than 2^53")]
    fn of(request: &Request<'_>, expert: ExpertKey) -> f64 {
        request.mass(expert).map_or_else(|| 1.0 / request.wanted().len() as f64, f64::from)
    }
}
