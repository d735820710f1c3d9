//! Frequency that fades, and recency with it.

use super::decayed::{Contribution, Decayed};
use crate::key::ExpertKey;
use crate::request::Request;

/// A policy that evicts the expert with the least combined frequency and recency: the number of its requests, each counted
/// about `1 / e` for every `memory` tokens of its age.
///
/// In one layer and with a memory of 1, a request counts half as much with every token. A short memory makes the policy
/// LRU, a long one LFU. It is known as LFRU in serving engines and as LRFU in its source. [`Decayed`] has the formula.
///
/// Source: D. Lee et al., "LRFU: a spectrum of policies that subsumes the least recently used and least frequently used
/// policies", IEEE Transactions on Computers 50(12), 2001.
pub type Lfru = Decayed<RequestCount>;

/// A contribution of 1 per request.
#[derive(Clone, Debug)]
pub struct RequestCount;

impl Contribution for RequestCount {
    const POLICY: &'static str = concat!(module_path!(), "::Lfru");
    const READS_MASS: bool = false;

    fn of(_request: &Request<'_>, _expert: ExpertKey) -> f64 {
        1.0
    }
}
