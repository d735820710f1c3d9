//! Made-up domains that need no files.

use std::collections::HashSet;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    corpus::{Corpus, Domain, check_held_out},
    grammar::{Grammar, lexicon},
};
use crate::error::{Result, check};

/// Bytes of a document, about.
const DOCUMENT_BYTES: usize = 1500;
/// Fewer would leave too little to hold out.
const MIN_BYTES: usize = 4 * DOCUMENT_BYTES;
const MAX_BYTES: usize = 1 << 28;
const MAX_DOMAINS: usize = 64;
/// With their own letters: an alphabet is too small for a lexicon below five letters.
const LETTERS: &str = "aeiouAEIOUyY0123456789bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ";
const MIN_LETTERS: usize = 5;

/// The letters that domains spell their words with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Letters {
    /// All domains with the same letters, so that a byte says little about the domain and a word much.
    Shared,
    /// Every domain with letters of its own, so that nearly every byte says the domain.
    Own,
}

/// A corpus of made-up languages, one a domain, that is a function of these figures alone.
///
/// A language is a small probabilistic grammar: determiners that agree with their noun, adjectives, subject, verb and
/// object in an order of its own, subordinate clauses; words by Zipf's law out of its own lexicon of made-up words; each
/// document has a topic, nouns and verbs that it prefers.
///
/// ```
/// use moe_testbed::SyntheticMix;
/// let mix = SyntheticMix { domains: 2, bytes: 10_000, ..SyntheticMix::default() };
/// let corpus = mix.corpus()?;
/// assert_eq!((corpus.domains.len(), corpus.domains[1].name.as_str()), (2, "grammar-1"));
/// assert_eq!(corpus.domains[0], mix.corpus()?.domains[0]);
/// # Ok::<(), moe_testbed::TestbedError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyntheticMix {
    /// Number of domains.
    pub domains: usize,
    /// Share of the words of a lexicon that are drawn from one that all domains draw from, each at places of its own: 0 makes
    /// the vocabularies disjoint, 1 equal; between, two domains have about the square in common.
    pub overlap: f64,
    /// The letters that words are spelled with.
    pub letters: Letters,
    /// Bytes of a domain, training and held-out text together.
    pub bytes: usize,
    /// Share of the bytes that is held out.
    pub held_out: f64,
    /// Seed of the languages and of their texts.
    pub seed: u64,
}

impl Default for SyntheticMix {
    /// Eight domains of 400 kB with disjoint vocabularies over the same letters.
    fn default() -> SyntheticMix {
        SyntheticMix { domains: 8, overlap: 0.0, letters: Letters::Shared, bytes: 400_000, held_out: 0.1, seed: 0 }
    }
}

/// Letters of syllables.
struct Alphabet {
    vowels: Vec<char>,
    consonants: Vec<char>,
}

impl SyntheticMix {
    /// Writes the text.
    ///
    /// # Errors
    /// [`TestbedError::Option`](crate::TestbedError::Option) for figures out of range, such as more domains than there
    /// are letters for.
    pub fn corpus(&self) -> Result<Corpus> {
        check("data.domains", self.domains, (1..=MAX_DOMAINS).contains(&self.domains), format!("1..={MAX_DOMAINS}"))?;
        check("data.overlap", self.overlap, (0.0..=1.0).contains(&self.overlap), "0 to 1")?;
        let bytes = MIN_BYTES..=MAX_BYTES;
        check("data.bytes", self.bytes, bytes.contains(&self.bytes), format!("{bytes:?}"))?;
        check_held_out(self.held_out)?;
        // The last alphabet is that of the common words.
        let alphabets = self.alphabets()?;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut known = HashSet::new();
        let common = lexicon(&mut random, None, alphabets[self.domains].speller(self.seed, 0, &mut known));
        let domain = |number: usize| {
            let stream = number as u64 + 1;
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(stream);
            let spell = alphabets[number].speller(self.seed, stream, &mut known);
            let lexicon = lexicon(&mut random, Some((&common, self.overlap)), spell);
            let grammar = Grammar::new(lexicon, &mut random);
            let (mut documents, mut bytes) = (Vec::new(), 0);
            while bytes < self.bytes {
                let document = grammar.document(&mut random, DOCUMENT_BYTES.min(self.bytes - bytes));
                bytes += document.len();
                documents.push(document);
            }
            Domain::split(format!("grammar-{number}"), documents, self.held_out, self.seed)
        };
        Ok(Corpus { domains: (0..self.domains).map(domain).collect() })
    }

    /// An alphabet for each domain, and one for the common words.
    fn alphabets(&self) -> Result<Vec<Alphabet>> {
        let count = match self.letters {
            Letters::Shared => 1,
            Letters::Own => self.domains + usize::from(self.overlap > 0.0),
        };
        let most = LETTERS.len() / MIN_LETTERS;
        check("data.domains", self.domains, count <= most, format!("up to {most} alphabets of their own letters"))?;
        // Dealt out in turn, every alphabet gets some of the vowels, which come first.
        let deal = |number: usize| {
            let letters: Vec<char> = LETTERS.chars().skip(number).step_by(count).collect();
            let vowels = if count == 1 { 5 } else { 2 };
            Alphabet { vowels: letters[..vowels].to_vec(), consonants: letters[vowels..].to_vec() }
        };
        let shared =
            || Alphabet { vowels: "aeiou".chars().collect(), consonants: "bcdfghjklmnpqrstvwxyz".chars().collect() };
        Ok((0..=self.domains)
            .map(|number| match self.letters {
                Letters::Shared => shared(),
                Letters::Own => deal(number.min(count - 1)),
            })
            .collect())
    }
}

impl Alphabet {
    /// Makes words of one to four syllables that nobody has yet.
    fn speller<'a>(&'a self, seed: u64, stream: u64, known: &'a mut HashSet<String>) -> impl FnMut() -> String + 'a {
        let mut random = ChaCha8Rng::seed_from_u64(!seed);
        random.set_stream(stream);
        move || {
            loop {
                let syllables = random.random_range(1..=4);
                let mut word = String::new();
                for _ in 0..syllables {
                    word.extend(self.consonants.choose(&mut random));
                    word.extend(self.vowels.choose(&mut random));
                }
                if known.insert(word.clone()) {
                    return word;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::Hash;

    use super::*;

    fn small(mix: &SyntheticMix) -> Corpus {
        SyntheticMix { bytes: 60_000, ..mix.clone() }.corpus().unwrap()
    }

    /// Share of held-out documents whose domain a naive Bayes classifier of independent units finds.
    fn classified<'a, T: Eq + Hash>(corpus: &'a Corpus, units: impl Fn(&'a str) -> Vec<T>) -> f64 {
        let mut counts: Vec<HashMap<T, f64>> = Vec::new();
        for domain in &corpus.domains {
            let mut of_domain = HashMap::new();
            let all = domain.training.iter().flat_map(|text| units(text));
            all.for_each(|unit| *of_domain.entry(unit).or_insert(0.0) += 1.0);
            counts.push(of_domain);
        }
        let (mut right, mut documents) = (0.0, 0.0);
        for (truth, domain) in corpus.domains.iter().enumerate() {
            for text in &domain.held_out {
                // A line at a time is harder than a document.
                for line in text.lines() {
                    let score = |of_domain: &HashMap<T, f64>| -> f64 {
                        let total: f64 = of_domain.values().sum();
                        units(line).iter().map(|unit| ((of_domain.get(unit).unwrap_or(&0.0) + 0.1) / total).ln()).sum()
                    };
                    let scores: Vec<f64> = counts.iter().map(score).collect();
                    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
                    right += f64::from(best == truth);
                    documents += 1.0;
                }
            }
        }
        right / documents
    }

    fn words(text: &str) -> Vec<&str> {
        text.split([' ', '.', '\n']).filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn unigrams_tell_the_domain_of_a_sentence() {
        let shared = classified(&small(&SyntheticMix { overlap: 0.2, ..SyntheticMix::default() }), words);
        assert!(shared > 0.99, "{shared}");
        let own = SyntheticMix { letters: Letters::Own, ..SyntheticMix::default() };
        let bytes = classified(&small(&own), |text| text.bytes().collect());
        assert!(bytes > 0.99, "{bytes}");
        // Which vocabularies in common make harder.
        let equal = classified(&small(&SyntheticMix { overlap: 1.0, ..SyntheticMix::default() }), words);
        assert!(equal < 0.6, "{equal}");
    }

    #[test]
    fn vocabularies_are_disjoint_up_to_the_overlap() {
        let vocabulary = |domain: &Domain| -> HashSet<String> {
            domain.training.iter().flat_map(|text| words(text)).map(str::to_owned).collect()
        };
        let shared = |overlap| {
            let corpus = small(&SyntheticMix { overlap, domains: 3, ..SyntheticMix::default() });
            let vocabularies: Vec<_> = corpus.domains.iter().map(vocabulary).collect();
            vocabularies[0].intersection(&vocabularies[1]).count() as f64 / vocabularies[0].len() as f64
        };
        assert_eq!(shared(0.0), 0.0);
        // A word is common to two domains if both have it in their half.
        let half = shared(0.5);
        assert!((0.1..0.5).contains(&half), "{half}");
    }

    #[test]
    fn equal_figures_make_equal_bytes_and_domains_are_balanced() {
        let mix = SyntheticMix { seed: 7, domains: 8, ..SyntheticMix::default() };
        let corpus = small(&mix);
        assert_eq!(corpus.domains, small(&mix).domains);
        assert_ne!(corpus.domains, small(&SyntheticMix { seed: 8, ..mix }).domains);
        for domain in &corpus.domains {
            let bytes = |documents: &[String]| documents.iter().map(String::len).sum::<usize>();
            let (training, held_out) = (bytes(&domain.training), bytes(&domain.held_out));
            assert!((60_000..60_400).contains(&(training + held_out)));
            assert!((4_000..=6_100).contains(&held_out), "{held_out}");
        }
        // One domain more leaves the others as they are.
        let more = SyntheticMix { domains: 9, ..SyntheticMix::default() };
        assert_eq!(small(&more).domains[..8], small(&SyntheticMix::default()).domains);
    }

    #[test]
    fn figures_out_of_range_are_errors() {
        let message = |mix: &SyntheticMix| mix.corpus().unwrap_err().to_string();
        let mix = SyntheticMix::default();
        assert_eq!(message(&SyntheticMix { domains: 0, ..mix.clone() }), "data.domains is 0, allowed are 1..=64");
        let own = SyntheticMix { domains: 13, letters: Letters::Own, ..mix.clone() };
        assert_eq!(message(&own), "data.domains is 13, allowed are up to 12 alphabets of their own letters");
        assert_eq!(message(&SyntheticMix { overlap: 1.5, ..mix.clone() }), "data.overlap is 1.5, allowed are 0 to 1");
        assert_eq!(
            message(&SyntheticMix { bytes: 10, ..mix.clone() }),
            "data.bytes is 10, allowed are 6000..=268435456"
        );
        assert_eq!(
            message(&SyntheticMix { held_out: 0.0, ..mix }),
            "held-out fraction is 0, allowed are above 0 up to 0.5"
        );
    }
}
