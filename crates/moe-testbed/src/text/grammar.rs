//! A made-up language: words, word order, agreement, topics.

use rand::seq::SliceRandom;
use rand::{Rng, RngCore};

/// Words of each class in a language.
const SIZES: [usize; CLASSES] = [5, 24, 60, 36, 12, 6];
const CLASSES: usize = 6;
/// Nouns and verbs that a document prefers.
const TOPIC: [usize; 2] = [10, 6];
/// How often a noun or verb is one of the topic's.
const ON_TOPIC: f64 = 0.7;

/// Word classes, by their place in a lexicon.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// Agrees with its noun: a language has as many genders as determiners.
    Determiner,
    Adjective,
    Noun,
    Verb,
    Adverb,
    Connective,
}

/// Words by class, the most frequent ones first.
pub(super) type Lexicon = [Vec<String>; CLASSES];

/// A probabilistic grammar with its own words.
#[derive(Clone, Debug)]
pub(super) struct Grammar {
    lexicon: Lexicon,
    verb_last: bool,
    determiner_last: bool,
    adjective_last: bool,
    /// Probabilities of an adjective, an object, an adverb, another clause.
    adjective: f64,
    object: f64,
    adverb: f64,
    clause: f64,
}

/// What a document is about: numbers of nouns and verbs.
struct Topic {
    nouns: Vec<usize>,
    verbs: Vec<usize>,
}

/// Fills a lexicon with words that `spell` makes; a share of each class, at random places, comes from `common`.
pub(super) fn lexicon(
    random: &mut impl Rng,
    common: Option<(&Lexicon, f64)>,
    mut spell: impl FnMut() -> String,
) -> Lexicon {
    std::array::from_fn(|class| {
        let mut words: Vec<String> = (0..SIZES[class]).map(|_| spell()).collect();
        if let Some((common, share)) = common {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of some words")]
            let shared = (share * words.len() as f64).round() as usize;
            let mut places: Vec<usize> = (0..words.len()).collect();
            places.shuffle(random);
            places[..shared].iter().for_each(|&place| words[place].clone_from(&common[class][place]));
        }
        words
    })
}

impl Grammar {
    /// Draws the rules of a language.
    pub(super) fn new(lexicon: Lexicon, random: &mut impl Rng) -> Grammar {
        Grammar {
            lexicon,
            verb_last: random.random(),
            determiner_last: random.random(),
            adjective_last: random.random(),
            adjective: random.random_range(0.2..0.6),
            object: random.random_range(0.5..0.9),
            adverb: random.random_range(0.1..0.4),
            clause: random.random_range(0.1..0.4),
        }
    }

    /// A document of about `bytes` bytes, whole sentences about one topic, a sentence a line.
    pub(super) fn document(&self, random: &mut impl Rng, bytes: usize) -> String {
        let topic = Topic {
            nouns: (0..TOPIC[0]).map(|_| zipf(random, SIZES[Class::Noun as usize])).collect(),
            verbs: (0..TOPIC[1]).map(|_| zipf(random, SIZES[Class::Verb as usize])).collect(),
        };
        let mut text = String::with_capacity(bytes + 128);
        while text.len() < bytes {
            self.clause(random, &topic, &mut text);
            while random.random_bool(self.clause) {
                self.word(Class::Connective, zipf(random, SIZES[Class::Connective as usize]), &mut text);
                self.clause(random, &topic, &mut text);
            }
            text.pop();
            text.push_str(".\n");
        }
        text
    }

    fn clause(&self, random: &mut impl Rng, topic: &Topic, text: &mut String) {
        self.noun_phrase(random, topic, text);
        let has_object = random.random_bool(self.object);
        if self.verb_last && has_object {
            self.noun_phrase(random, topic, text);
        }
        if random.random_bool(self.adverb) {
            self.word(Class::Adverb, zipf(random, SIZES[Class::Adverb as usize]), text);
        }
        self.word(Class::Verb, draw(random, &topic.verbs, SIZES[Class::Verb as usize]), text);
        if !self.verb_last && has_object {
            self.noun_phrase(random, topic, text);
        }
    }

    fn noun_phrase(&self, random: &mut impl Rng, topic: &Topic, text: &mut String) {
        let noun = draw(random, &topic.nouns, SIZES[Class::Noun as usize]);
        let determiner = noun % SIZES[Class::Determiner as usize];
        let adjective = random.random_bool(self.adjective).then(|| zipf(random, SIZES[Class::Adjective as usize]));
        if !self.determiner_last {
            self.word(Class::Determiner, determiner, text);
        }
        if let (Some(adjective), false) = (adjective, self.adjective_last) {
            self.word(Class::Adjective, adjective, text);
        }
        self.word(Class::Noun, noun, text);
        if let (Some(adjective), true) = (adjective, self.adjective_last) {
            self.word(Class::Adjective, adjective, text);
        }
        if self.determiner_last {
            self.word(Class::Determiner, determiner, text);
        }
    }

    fn word(&self, class: Class, number: usize, text: &mut String) {
        text.push_str(&self.lexicon[class as usize][number]);
        text.push(' ');
    }
}

/// A word of the topic, or any.
fn draw(random: &mut impl Rng, topic: &[usize], words: usize) -> usize {
    if random.random_bool(ON_TOPIC) { topic[zipf(random, topic.len())] } else { zipf(random, words) }
}

/// A rank below `count` by Zipf's law.
fn zipf(random: &mut (impl RngCore + ?Sized), count: usize) -> usize {
    let weight = |rank: usize| 1.0 / (rank + 1) as f64;
    let total: f64 = (0..count).map(weight).sum();
    let mut left = random.random::<f64>() * total;
    (0..count - 1)
        .find(|&rank| {
            left -= weight(rank);
            left < 0.0
        })
        .unwrap_or(count - 1)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn numbered() -> Lexicon {
        let mut number = 0;
        lexicon(&mut ChaCha8Rng::seed_from_u64(0), None, || {
            number += 1;
            format!("w{number}")
        })
    }

    #[test]
    fn a_noun_has_one_determiner_and_the_rules_hold_everywhere() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let lexicon = numbered();
        let class = |word: &str| lexicon.iter().position(|words| words.iter().any(|known| known == word)).unwrap();
        let grammar = Grammar { determiner_last: false, adjective_last: true, ..Grammar::new(numbered(), &mut random) };
        let mut nouns = std::collections::HashMap::new();
        let text = grammar.document(&mut random, 20_000);
        assert!(text.len() >= 20_000 && text.ends_with(".\n"));
        for sentence in text.lines() {
            let words: Vec<&str> = sentence.strip_suffix('.').unwrap().split(' ').collect();
            for pair in words.windows(2) {
                if class(pair[1]) == Class::Noun as usize {
                    assert_eq!(nouns.entry(pair[1].to_owned()).or_insert(pair[0].to_owned()), pair[0]);
                    assert_eq!(class(pair[0]), Class::Determiner as usize);
                }
            }
        }
        assert!(nouns.len() > 30);
    }

    #[test]
    fn low_ranks_are_drawn_as_zipf_says() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0u32; 3];
        (0..11_000).for_each(|_| counts[zipf(&mut random, 3)] += 1);
        // 1 + 1/2 + 1/3 = 11/6: shares of 6/11, 3/11, 2/11.
        for (found, expected) in counts.into_iter().zip([6000, 3000, 2000]) {
            assert!(found.abs_diff(expected) < 200, "{counts:?}");
        }
    }

    #[test]
    fn a_share_of_the_words_is_common() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let common = numbered();
        let mixed = lexicon(&mut random, Some((&common, 0.5)), || "own".to_owned());
        for (words, common) in mixed.iter().zip(&common) {
            let shared = words.iter().filter(|word| common.contains(word)).count();
            assert_eq!(shared, words.len().div_ceil(2));
        }
    }
}
