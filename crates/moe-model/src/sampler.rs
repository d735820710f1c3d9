//! Choice of the next token.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{ModelError, Result};

/// How the next token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The token of the largest logit; equal logits go to the lowest id.
    Greedy,
    /// A random token of the smallest set of likeliest tokens that together have probability `top_p` (Holtzman et al.
    /// 2020, arXiv 1904.09751). Equal seeds and logits give equal tokens, alone and at any place of a batch.
    TopP {
        /// Divides the logits; positive.
        temperature: f64,
        /// Probability that the set must have, above 0 and at most 1.
        top_p: f64,
        /// Seed of the random numbers of each prompt that [`GenerateOptions::seeds`](crate::GenerateOptions) gives none.
        seed: u64,
    },
}

/// The sampler of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    sequence: usize,
    rng: ChaCha8Rng,
    /// Tokens chosen so far.
    chosen: usize,
}

impl Sampler {
    /// Creates the sampler of a sequence, which is named in errors only; `seed` replaces that of `sampling`.
    pub(crate) fn new(sampling: Sampling, sequence: usize, seed: Option<u64>) -> Result<Sampler> {
        let own_seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::TopP { temperature, .. } if !temperature.is_finite() || temperature <= 0.0 => {
                let limit = "must be positive and finite";
                return Err(ModelError::Option { field: "temperature", value: temperature, limit });
            }
            Sampling::TopP { top_p, .. } if !(top_p > 0.0 && top_p <= 1.0) => {
                let limit = "must be above 0 and at most 1";
                return Err(ModelError::Option { field: "top_p", value: top_p, limit });
            }
            Sampling::TopP { seed, .. } => seed,
        };
        let rng = ChaCha8Rng::seed_from_u64(seed.unwrap_or(own_seed));
        Ok(Sampler { sampling, sequence, rng, chosen: 0 })
    }

    /// Chooses a token by its logits, `[vocab]`.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(ModelError::Logit { sequence: self.sequence, token: self.chosen, id, value: logits[id] });
        }
        self.chosen += 1;
        Ok(match self.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::TopP { temperature, top_p, .. } => draw(logits, temperature, top_p, self.rng.random()),
        })
    }
}

/// A token and its probability times a common factor.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    weight: f64,
    token: u32,
}

/// The likeliest token is the greatest; of equally likely tokens the one of the lowest id.
impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.weight.total_cmp(&other.weight).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// Draws a token by `uniform`, a number in 0..1, from the likeliest tokens that together have probability `top_p`.
///
/// # Complexity
/// `O(vocab + n log vocab)`, where `n` is the number of tokens in the set; if `top_p` is 1, only the tokens that are at
/// least as likely as the drawn one are ranked.
fn draw(logits: &[f32], temperature: f64, top_p: f64, uniform: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&logit: &f32| (f64::from(logit - max) / temperature).exp();
    let candidates: Vec<_> =
        logits.iter().map(weight).zip(0u32..).map(|(weight, token)| Candidate { weight, token }).collect();
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mut others = BinaryHeap::from(candidates);
    let (mut set, mut kept) = (Vec::new(), total);
    if top_p < 1.0 {
        kept = 0.0;
        while kept < top_p * total
            && let Some(likeliest) = others.pop()
        {
            kept += likeliest.weight;
            set.push(likeliest);
        }
        others.clear();
    }
    let (mut rest, mut drawn) = (uniform * kept, 0);
    for Candidate { weight, token } in set.into_iter().chain(std::iter::from_fn(|| others.pop())) {
        drawn = token;
        rest -= weight;
        if rest < 0.0 {
            break;
        }
    }
    drawn
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().zip(0u32..).reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map_or(0, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, 0, None).unwrap();
        (0..n).map(|_| sampler.choose(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id() {
        assert_eq!(draws(Sampling::Greedy, &[0.0, 2.0, 1.0, 2.0], 2), [1, 1]);
    }

    #[test]
    fn top_p_draws_from_the_smallest_sufficient_set_in_proportion() {
        // Probabilities 1/8, 1/2, 1/4, 1/8; 0.7 needs the tokens 1 and 2, which then have 2/3 and 1/3.
        let logits = [0.0, 4f32.ln(), 2f32.ln(), 0.0];
        let drawn = draws(Sampling::TopP { temperature: 1.0, top_p: 0.7, seed: 5 }, &logits, 3000);
        let count = |token| drawn.iter().filter(|&&t| t == token).count();
        assert_eq!((count(0), count(3)), (0, 0));
        assert!((1900..2100).contains(&count(1)), "{}", count(1));
        let all = draws(Sampling::TopP { temperature: 1.0, top_p: 1.0, seed: 5 }, &logits, 300);
        assert!((0..4).all(|token| all.contains(&token)));
        let cold = draws(Sampling::TopP { temperature: 0.01, top_p: 1.0, seed: 5 }, &logits, 300);
        assert!(cold.iter().all(|&token| token == 1));
    }

    /// The definition: rank all tokens, cut, walk through what is left.
    fn draw_naively(logits: &[f32], temperature: f64, top_p: f64, uniform: f64) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit - max) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        ranked.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
        let sum = |tokens: usize| ranked[..tokens].iter().map(|&token| weights[token]).sum::<f64>();
        let size = (1..=ranked.len()).find(|&size| top_p < 1.0 && sum(size) >= top_p * total).unwrap_or(ranked.len());
        let kept = if top_p < 1.0 { sum(size) } else { total };
        let mut rest = uniform * kept;
        let drawn = ranked[..size].iter().find(|&&token| {
            rest -= weights[token];
            rest < 0.0
        });
        u32::try_from(*drawn.unwrap_or(&ranked[size - 1])).unwrap()
    }

    proptest! {
        #[test]
        fn a_partial_ranking_draws_what_a_whole_one_draws(
            // Few different values, so that many tokens are equally likely.
            logits in prop::collection::vec((-8i8..8).prop_map(|logit| f32::from(logit) / 2.0), 1..60),
            temperature in 0.05..3.0,
            top_p in prop_oneof![Just(1.0), 0.001..1.0],
            uniform in 0.0..1.0,
        ) {
            let drawn = draw(&logits, temperature, top_p, uniform);
            prop_assert_eq!(drawn, draw_naively(&logits, temperature, top_p, uniform));
        }
    }

    #[test]
    fn seeds_alone_decide_about_the_random_numbers() {
        let draws = |seed, sequence, own| {
            let sampling = Sampling::TopP { temperature: 1.0, top_p: 1.0, seed };
            let mut sampler = Sampler::new(sampling, sequence, own).unwrap();
            (0..20).map(|_| sampler.choose(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 0, None), draws(1, 7, None));
        assert_eq!(draws(1, 0, Some(2)), draws(2, 7, None));
        assert_ne!(draws(1, 0, None), draws(2, 0, None));
    }

    #[test]
    fn options_and_logits_that_cannot_be_used_say_so() {
        let message = |temperature, top_p| {
            Sampler::new(Sampling::TopP { temperature, top_p, seed: 0 }, 0, None).unwrap_err().to_string()
        };
        assert_eq!(message(0.0, 0.9), "temperature is 0, must be positive and finite");
        assert_eq!(message(f64::NAN, 0.9), "temperature is NaN, must be positive and finite");
        assert_eq!(message(1.0, 0.0), "top_p is 0, must be above 0 and at most 1");
        assert_eq!(message(1.0, 1.5), "top_p is 1.5, must be above 0 and at most 1");
        let mut sampler = Sampler::new(Sampling::Greedy, 3, None).unwrap();
        sampler.choose(&[0.0, 1.0]).unwrap();
        let error = sampler.choose(&[0.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(error, "sequence 3, new token 1: logit of token id 1 is NaN, not a finite number");
    }
}
