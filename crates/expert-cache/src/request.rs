//! What a pool is asked for at once.

use moe_trace::{ExpertSet, LayerId, Phase};

use crate::ExpertKey;

/// The experts that a token, or a batch of tokens, wants from a pool in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    wanted: &'a ExpertSet,
    layer: LayerId,
    phase: Phase,
    tokens: u32,
    /// `[universe]`, meaningful for wanted experts.
    uses: Option<&'a [u32]>,
    /// `[universe]`, meaningful for wanted experts.
    mass: Option<&'a [f32]>,
}

impl<'a> Request<'a> {
    /// Creates the request of one token without router weights.
    pub fn new(wanted: &'a ExpertSet, layer: LayerId, phase: Phase) -> Request<'a> {
        Request { wanted, layer, phase, tokens: 1, uses: None, mass: None }
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

    /// Number of tokens that the request serves.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Number of tokens that want an expert.
    ///
    /// # Panics
    /// If the expert is outside of the pool.
    pub fn uses(&self, expert: ExpertKey) -> u32 {
        match self.uses {
            Some(uses) => uses[expert.index()],
            None => u32::from(self.wanted.contains(expert.index())),
        }
    }

    /// Router weight of a wanted expert, summed over the tokens of the request; `None` if weights are not known.
    pub fn mass(&self, expert: ExpertKey) -> Option<f32> {
        self.mass.map(|mass| mass[expert.index()])
    }
}

impl Request<'_> {
    /// Router weight of all wanted experts; `None` if weights are not known.
    pub fn total_mass(&self) -> Option<f64> {
        let mass = self.mass?;
        Some(self.wanted.iter().map(|expert| f64::from(mass[expert])).sum())
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
/// for weight in [0.5, 0.25] {
///     buffer.token();
///     buffer.want(ExpertKey(3), Some(weight));
/// }
/// let request = buffer.request(LayerId(0), Phase::Decode);
/// assert_eq!((request.wanted().len(), request.mass(ExpertKey(3))), (1, Some(0.75)));
/// assert_eq!((request.tokens(), request.uses(ExpertKey(3))), (2, 2));
/// ```
#[derive(Clone, Debug)]
pub struct RequestBuffer {
    wanted: ExpertSet,
    tokens: u32,
    /// 0 for experts that are not wanted.
    uses: Vec<u32>,
    /// 0 for experts that are not wanted.
    mass: Vec<f32>,
    /// Whether every expert so far came with a weight.
    weighted: bool,
}

impl RequestBuffer {
    /// Creates an empty request to a pool of `universe` experts.
    pub fn new(universe: usize) -> RequestBuffer {
        RequestBuffer {
            wanted: ExpertSet::new(universe),
            tokens: 0,
            uses: vec![0; universe],
            mass: vec![0.0; universe],
            weighted: true,
        }
    }

    /// Counts a token whose experts follow.
    pub fn token(&mut self) {
        self.tokens += 1;
    }

    /// Adds an expert that one token wants with a router weight.
    ///
    /// # Panics
    /// If the expert is outside of the pool.
    pub fn want(&mut self, expert: ExpertKey, weight: Option<f32>) {
        self.wanted.insert(expert.index());
        self.uses[expert.index()] += 1;
        match weight {
            Some(weight) => self.mass[expert.index()] += weight,
            None => self.weighted = false,
        }
    }

    /// Empties the request.
    pub fn clear(&mut self) {
        for expert in self.wanted.iter() {
            self.uses[expert] = 0;
            self.mass[expert] = 0.0;
        }
        self.wanted.clear();
        self.tokens = 0;
        self.weighted = true;
    }

    /// The request, made in `layer` by tokens of `phase`.
    pub fn request(&self, layer: LayerId, phase: Phase) -> Request<'_> {
        Request {
            wanted: &self.wanted,
            layer,
            phase,
            tokens: self.tokens,
            uses: Some(&self.uses),
            mass: self.weighted.then_some(&self.mass),
        }
    }

    /// Replaces the request by a recorded one.
    pub(crate) fn set(&mut self, tokens: u32, experts: &[u32], uses: &[u32], mass: Option<&[f32]>) {
        self.clear();
        self.tokens = tokens;
        for (&expert, &uses) in experts.iter().zip(uses) {
            self.wanted.insert(expert as usize);
            self.uses[expert as usize] = uses;
        }
        match mass {
            Some(mass) => experts.iter().zip(mass).for_each(|(&expert, &mass)| self.mass[expert as usize] = mass),
            None => self.weighted = false,
        }
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
