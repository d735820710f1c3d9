//! What a pool is asked for at once.

use moe_trace::{ExpertSet, LayerId, Phase};

use crate::ExpertKey;

/// The experts that a token, or a batch of tokens, wants from a pool in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    wanted: &'a ExpertSet,
    layer: LayerId,
    phase: Phase,
    /// `[universe]`, meaningful for wanted experts.
    mass: Option<&'a [f32]>,
}

impl<'a> Request<'a> {
    /// Creates a request without router weights.
    pub fn new(wanted: &'a ExpertSet, layer: LayerId, phase: Phase) -> Request<'a> {
        Request { wanted, layer, phase, mass: None }
    }

    /// Wanted experts, as keys of the pool.
    pub fn wanted(&self) -> &'a ExpertSet {
        self.wanted
    }

    /// The layer that is executed.
    pub fn layer(&self) -> LayerId {
        self.layer
    }

    /// Whether the tokens are prefilled or decoded.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Router weight of a wanted expert, summed over the tokens of the request; `None` if weights are not known.
    pub fn mass(&self, expert: ExpertKey) -> Option<f32> {
        self.mass.map(|mass| mass[expert.index()])
    }
}

/// Decoded tokens of layer 0 without router weights.
impl<'a> From<&'a ExpertSet> for Request<'a> {
    fn from(wanted: &'a ExpertSet) -> Request<'a> {
        Request::new(wanted, LayerId(0), Phase::Decode)
    }
}

/// A request being put together, to be reused for the next.
///
/// ```
/// use expert_cache::{ExpertKey, RequestBuffer};
/// use moe_trace::{LayerId, Phase};
///
/// let mut buffer = RequestBuffer::new(8);
/// buffer.want(ExpertKey(3), Some(0.5));
/// buffer.want(ExpertKey(3), Some(0.25));
/// let request = buffer.request(LayerId(0), Phase::Decode);
/// assert_eq!((request.wanted().len(), request.mass(ExpertKey(3))), (1, Some(0.75)));
/// ```
#[derive(Clone, Debug)]
pub struct RequestBuffer {
    wanted: ExpertSet,
    /// 0 for experts that are not wanted.
    mass: Vec<f32>,
    /// Whether every expert so far came with a weight.
    weighted: bool,
}

impl RequestBuffer {
    /// Creates an empty request to a pool of `universe` experts.
    pub fn new(universe: usize) -> RequestBuffer {
        RequestBuffer { wanted: ExpertSet::new(universe), mass: vec![0.0; universe], weighted: true }
    }

    /// Adds an expert that one token wants with a router weight.
    ///
    /// # Panics
    /// If the expert is outside of the pool.
    pub fn want(&mut self, expert: ExpertKey, weight: Option<f32>) {
        self.wanted.insert(expert.index());
        match weight {
            Some(weight) => self.mass[expert.index()] += weight,
            None => self.weighted = false,
        }
    }

    /// Empties the request.
    pub fn clear(&mut self) {
        self.wanted.iter().for_each(|expert| self.mass[expert] = 0.0);
        self.wanted.clear();
        self.weighted = true;
    }

    /// The request, made in `layer` by tokens of `phase`.
    pub fn request(&self, layer: LayerId, phase: Phase) -> Request<'_> {
        Request { wanted: &self.wanted, layer, phase, mass: self.weighted.then_some(&self.mass) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mass_is_known_only_if_every_expert_has_a_weight() {
        let mut buffer = RequestBuffer::new(4);
        buffer.want(ExpertKey(1), Some(1.0));
        buffer.want(ExpertKey(2), None);
        assert_eq!(buffer.request(LayerId(0), Phase::Decode).mass(ExpertKey(1)), None);
        buffer.clear();
        buffer.want(ExpertKey(1), Some(2.0));
        let request = buffer.request(LayerId(0), Phase::Decode);
        assert_eq!((request.mass(ExpertKey(1)), request.mass(ExpertKey(2))), (Some(2.0), Some(0.0)));
    }
}
