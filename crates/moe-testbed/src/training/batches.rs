//! Which tokens a step learns from.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{Result, TestbedError, check},
    text::TokenizedCorpus,
};

/// Training sequences in a seeded order, balanced over domains.
///
/// The sequences of a run take the domains in turn, so every domain gives the same number of tokens. A domain's text is
/// cut into sequences at a random phase, served in random order, and cut anew when it is used up. The sequences of a
/// step are a pure function of the seed and the step.
#[derive(Clone, Debug)]
pub struct Batches {
    streams: Vec<Vec<u32>>,
    batch: usize,
    length: usize,
    seed: u64,
}

/// Sequences to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What the model reads, `[batch x length]`.
    pub inputs: Vec<u32>,
    /// What it shall predict, `[batch x length]`: the inputs one token on.
    pub targets: Vec<u32>,
    /// Domain of each sequence, `[batch]`.
    pub domains: Vec<usize>,
}

impl Batches {
    /// Serves steps of `batch` sequences of `length` tokens from the training part of a corpus.
    ///
    /// # Errors
    /// [`TestbedError::Option`] if `batch`, `length` or the number of domains is 0; [`TestbedError::TooFewTokens`] if a domain has fewer than
    /// `2 * length` tokens.
    pub fn new(corpus: &TokenizedCorpus, batch: usize, length: usize, seed: u64) -> Result<Batches> {
        check("batch", batch, batch > 0, "1 and more")?;
        check("length", length, length > 0, "1 and more")?;
        check("number of domains", corpus.domains.len(), !corpus.domains.is_empty(), "1 and more")?;
        for domain in &corpus.domains {
            let (tokens, min) = (domain.training.len(), length.saturating_mul(2));
            if tokens < min {
                return Err(TestbedError::TooFewTokens { domain: domain.name.clone(), tokens, min });
            }
        }
        let streams = corpus.domains.iter().map(|domain| domain.training.clone()).collect();
        Ok(Batches { streams, batch, length, seed })
    }

    /// The sequences of a step.
    pub fn step(&self, step: u64) -> Batch {
        let places = self.batch * self.length;
        let (mut inputs, mut targets) = (Vec::with_capacity(places), Vec::with_capacity(places));
        let mut domains = Vec::with_capacity(self.batch);
        let streams = self.streams.len();
        let first = usize::try_from(step).expect("a step number fits the machine") * self.batch;
        for sequence in first..first + self.batch {
            let (turn, domain) = (sequence / streams, sequence % streams);
            let stream = &self.streams[domain];
            let start = self.start(domain, turn);
            inputs.extend(&stream[start..start + self.length]);
            targets.extend(&stream[start + 1..start + 1 + self.length]);
            domains.push(domain);
        }
        Batch { inputs, targets, domains }
    }

    /// Number of tokens of each domain.
    pub(super) fn stream_lengths(&self) -> Vec<usize> {
        self.streams.iter().map(Vec::len).collect()
    }

    /// Where the sequence number `turn` of a domain starts.
    fn start(&self, domain: usize, turn: usize) -> usize {
        // A phase below `length` and the last target stay within the stream.
        let sequences = (self.streams[domain].len() - 1) / self.length - 1;
        let sequences = sequences.max(1);
        let (pass, place) = (turn / sequences, turn % sequences);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream((domain as u64) << 32 | pass as u64);
        let room = self.streams[domain].len() - 1 - sequences * self.length;
        let phase = random.random_range(0..=room.min(self.length - 1));
        let mut order: Vec<usize> = (0..sequences).collect();
        order.shuffle(&mut random);
        phase + order[place] * self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TokenizedDomain;

    fn corpus(sizes: &[u32]) -> TokenizedCorpus {
        let domain = |(n, &size): (u32, &u32)| TokenizedDomain {
            name: format!("domain {n}"),
            training: (1000 * n..1000 * n + size).collect(),
            held_out: Vec::new(),
        };
        TokenizedCorpus { domains: (0..).zip(sizes).map(domain).collect(), end_of_text: 0 }
    }

    #[test]
    fn a_step_is_a_pure_function_of_seed_and_step() {
        let corpus = corpus(&[100, 200]);
        let batches = Batches::new(&corpus, 3, 8, 7).unwrap();
        let third = batches.step(3);
        assert_eq!(Batches::new(&corpus, 3, 8, 7).unwrap().step(3), third);
        assert_ne!(Batches::new(&corpus, 3, 8, 8).unwrap().step(3), third);
        assert_ne!(batches.step(4), third);
    }

    #[test]
    fn domains_take_turns_and_targets_are_one_token_on() {
        let batches = Batches::new(&corpus(&[100, 200]), 3, 8, 7).unwrap();
        let steps = [batches.step(0), batches.step(1)];
        assert_eq!([steps[0].domains.clone(), steps[1].domains.clone()], [[0, 1, 0], [1, 0, 1]]);
        for step in steps {
            for (n, (input, target)) in step.inputs.iter().zip(&step.targets).enumerate() {
                assert_eq!((input + 1, (input / 1000) as usize), (*target, step.domains[n / 8]));
            }
        }
    }

    #[test]
    fn a_pass_serves_every_token_at_most_once() {
        let batches = Batches::new(&corpus(&[163]), 19, 8, 1).unwrap();
        let mut tokens = batches.step(0).inputs;
        tokens.sort_unstable();
        let served = tokens.len();
        tokens.dedup();
        assert_eq!((tokens.len(), served), (19 * 8, 19 * 8));
        assert!(*tokens.last().unwrap() < 162);
    }

    #[test]
    fn short_streams_work_down_to_the_limit() {
        for size in 16..40 {
            let batches = Batches::new(&corpus(&[size]), 50, 8, 1).unwrap();
            assert_eq!(batches.step(0).inputs.len(), 400);
        }
    }

    #[test]
    fn impossible_shapes_are_errors() {
        let message = |batch, length| Batches::new(&corpus(&[100, 12]), batch, length, 0).unwrap_err().to_string();
        assert_eq!(message(0, 8), "batch is 0, allowed are 1 and more");
        assert_eq!(message(1, 0), "length is 0, allowed are 1 and more");
        assert_eq!(message(1, 8), "domain domain 1: 12 training tokens, two sequences need 16");
        assert_eq!(
            message(1, usize::MAX),
            format!("domain domain 0: 100 training tokens, two sequences need {}", usize::MAX)
        );
        let none = Batches::new(&corpus(&[]), 1, 8, 0).unwrap_err().to_string();
        assert_eq!(none, "number of domains is 0, allowed are 1 and more");
    }
}
