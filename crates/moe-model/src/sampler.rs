//! Choice of the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{ModelError, Result};

/// How the next token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The token of the largest logit; equal logits go to the lowest id.
    Greedy,
    /// A random token of the smallest set of likeliest tokens that together have probability `top_p` (Holtzman et al.
    /// 2020, arXiv 1904.09751). Equal seeds and logits give equal tokens, whatever else is in the batch.
    TopP {
        /// Divides the logits; positive.
        temperature: f64,
        /// Probability that the set must have, above 0 and at most 1.
        top_p: f64,
        /// Seed of the random numbers.
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
    pub(crate) fn new(sampling: Sampling, sequence: usize) -> Result<Sampler> {
        let seed = match sampling {
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
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(sequence as u64);
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
            Sampling::TopP { temperature, top_p, .. } => self.draw(logits, temperature, top_p),
        })
    }

    fn draw(&mut self, logits: &[f32], temperature: f64, top_p: f64) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |&logit: &f32| (f64::from(logit - max) / temperature).exp();
        let mut ranked: Vec<(f64, u32)> = logits.iter().map(weight).zip(0u32..).collect();
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total: f64 = ranked.iter().map(|&(weight, _)| weight).sum();
        let mut kept = 0.0;
        let len = ranked.iter().position(|&(weight, _)| {
            kept += weight;
            kept >= top_p * total
        });
        // Rounding may keep the sum below the total where top_p is 1.
        ranked.truncate(len.map_or(ranked.len(), |last| last + 1));
        let mut rest = self.rng.random::<f64>() * kept;
        let drawn = ranked.iter().find(|&&(weight, _)| {
            rest -= weight;
            rest < 0.0
        });
        drawn.or(ranked.last()).map_or(0, |&(_, token)| token)
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().zip(0u32..).reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map_or(0, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, sequence: usize, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, sequence).unwrap();
        (0..n).map(|_| sampler.choose(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id() {
        assert_eq!(draws(Sampling::Greedy, 0, &[0.0, 2.0, 1.0, 2.0], 2), [1, 1]);
    }

    #[test]
    fn top_p_draws_from_the_smallest_sufficient_set_in_proportion() {
        // Probabilities 1/8, 1/2, 1/4, 1/8; 0.7 needs the tokens 1 and 2, which then have 2/3 and 1/3.
        let logits = [0.0, 4f32.ln(), 2f32.ln(), 0.0];
        let drawn = draws(Sampling::TopP { temperature: 1.0, top_p: 0.7, seed: 5 }, 0, &logits, 3000);
        let count = |token| drawn.iter().filter(|&&t| t == token).count();
        assert_eq!((count(0), count(3)), (0, 0));
        assert!((1900..2100).contains(&count(1)), "{}", count(1));
        let all = draws(Sampling::TopP { temperature: 1.0, top_p: 1.0, seed: 5 }, 0, &logits, 300);
        assert!((0..4).all(|token| all.contains(&token)));
        let cold = draws(Sampling::TopP { temperature: 0.01, top_p: 1.0, seed: 5 }, 0, &logits, 300);
        assert!(cold.iter().all(|&token| token == 1));
    }

    #[test]
    fn seeds_and_sequences_have_their_own_random_numbers() {
        let draws =
            |seed, sequence| draws(Sampling::TopP { temperature: 1.0, top_p: 1.0, seed }, sequence, &[0.0; 50], 20);
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }

    #[test]
    fn options_and_logits_that_cannot_be_used_say_so() {
        let message = |temperature, top_p| {
            Sampler::new(Sampling::TopP { temperature, top_p, seed: 0 }, 0).unwrap_err().to_string()
        };
        assert_eq!(message(0.0, 0.9), "temperature is 0, must be positive and finite");
        assert_eq!(message(f64::NAN, 0.9), "temperature is NaN, must be positive and finite");
        assert_eq!(message(1.0, 0.0), "top_p is 0, must be above 0 and at most 1");
        assert_eq!(message(1.0, 1.5), "top_p is 1.5, must be above 0 and at most 1");
        let mut sampler = Sampler::new(Sampling::Greedy, 3).unwrap();
        sampler.choose(&[0.0, 1.0]).unwrap();
        let error = sampler.choose(&[0.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(error, "sequence 3, new token 1: logit of token id 1 is NaN, not a finite number");
    }
}
