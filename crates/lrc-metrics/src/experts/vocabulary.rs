//! How faithfully tokens of the vocabulary go to one expert.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, Restore, Selection, checked_serde, total, within},
    error::{MetricError, Result, same},
};

/// Tokens seen less often in a layer say nothing about an expert.
const LEAST_SEEN: u64 = 20;
/// Tokens listed for each expert.
const TOP_TOKENS: usize = 15;

/// Which token a routing decision is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VocabularyToken {
    /// The token that is routed.
    Input,
    /// The token that follows in the text; the last one of a sequence has none.
    Next,
    /// The token that the model predicts to follow: give it to [`Vocabulary::update_tokens`] or
    /// [`Vocabulary::update_with`].
    Predicted,
}

/// Counts, for every token of the vocabulary, how often each expert is its top-1 expert.
///
/// # Formula
/// With `n(w, e)` the occurrences of token `w` whose first expert is `e`, over tokens with `sum_e n(w, e) >= 20`:
///
/// ```text
/// expert(w)         = arg max over e of n(w, e)          the smallest e on a tie
/// share(w)          = n(w, expert(w)) / sum_e n(w, e)
/// specialization(e) = mean of share(w) over the tokens with expert(w) = e
/// ```
///
/// # Complexity
/// `O(log)` of the counters of a token for a layer and token; memory is 16 bytes for each (token, layer, expert) that
/// occurs.
///
/// # References
/// arXiv 2505.16056, section 3.
///
/// ```
/// use lrc_metrics::{Accumulator, Vocabulary, VocabularyToken};
/// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
///
/// // One layer of 2 experts, top-1. Token 7 goes to expert 1 in 15 of 20 cases; token 8 occurs too rarely.
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let experts = [vec![1; 15], vec![0; 5], vec![0; 3]].concat();
/// let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Prefill)?;
/// sequence.token_ids = Some([vec![7; 20], vec![8; 3]].concat());
/// let mut vocabulary = Vocabulary::new(&geometry, &[LayerId(0)], VocabularyToken::Input)?;
/// vocabulary.update(&sequence.view(&geometry, 0)?)?;
/// let experts = &vocabulary.finish()[0];
/// assert_eq!((experts[0].specialization, experts[1].specialization), (None, Some(0.75)));
/// assert_eq!((experts[1].top_tokens[0].token, experts[1].top_tokens[0].seen), (7, 20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Vocabulary {
    token: VocabularyToken,
    selection: Selection,
    /// By token the counts of the cells (`position of the layer * experts + expert`) that occur, in order.
    counts: BTreeMap<u32, Vec<(u32, u64)>>,
}

/// The tokens of one expert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertVocabulary {
    /// Mean share over the expert's tokens; `None` if it has none.
    pub specialization: Option<f64>,
    /// Number of the expert's tokens.
    pub tokens: usize,
    /// The 15 tokens of largest share; on a tie the more frequent one, then the smaller id.
    pub top_tokens: Vec<TokenShare>,
}

/// A token and the expert that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenShare {
    /// The token's id.
    pub token: u32,
    /// Share of its occurrences whose top-1 expert is this one.
    pub share: f64,
    /// Its occurrences.
    pub seen: u64,
}

impl Vocabulary {
    /// Creates the counts of no sequence for some layers.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`] or a layer out of range.
    pub fn new(geometry: &Geometry, layers: &[LayerId], token: VocabularyToken) -> Result<Vocabulary> {
        Ok(Vocabulary { token, selection: Selection::new(geometry, layers)?, counts: BTreeMap::new() })
    }

    /// Adds a sequence whose tokens to count for are given, one for each routed token from the first on.
    ///
    /// Routed tokens beyond the given ones are not counted.
    ///
    /// # Errors
    /// [`MetricError::TokenCount`] if there are more ids than tokens; a sequence of another geometry.
    pub fn update_tokens(&mut self, sequence: &Sequence<'_>, ids: &[u32]) -> Result<()> {
        if ids.len() > sequence.len() {
            return Err(MetricError::TokenCount { ids: ids.len(), tokens: sequence.len() });
        }
        self.update_with(sequence, |token| ids.get(token).copied())
    }

    /// Adds a sequence in which routed token `t` counts for the token `id(t)`, and for none where that is `None`.
    ///
    /// # Errors
    /// If the sequence is of another geometry.
    ///
    /// ```
    /// use lrc_metrics::{Vocabulary, VocabularyToken};
    /// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
    ///
    /// // 20 tokens of expert 1 predict token 5; what the first one predicts is not known.
    /// let geometry = Geometry::decoder(1, 2, 1)?;
    /// let sequence = SequenceBuf::from_experts(&geometry, vec![1; 21], Phase::Decode)?;
    /// let mut vocabulary = Vocabulary::new(&geometry, &[LayerId(0)], VocabularyToken::Predicted)?;
    /// vocabulary.update_with(&sequence.view(&geometry, 0)?, |token| (token > 0).then_some(5))?;
    /// assert_eq!(vocabulary.finish()[0][1].top_tokens[0].seen, 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update_with(&mut self, sequence: &Sequence<'_>, id: impl Fn(usize) -> Option<u32>) -> Result<()> {
        self.selection.check(sequence)?;
        let experts = self.selection.experts();
        for (token, id) in (0..sequence.len()).filter_map(|token| Some((token, id(token)?))) {
            let counts = self.counts.entry(id).or_default();
            for (position, &layer) in self.selection.layers().iter().enumerate() {
                if let Some(expert) = sequence.experts(token, layer).next() {
                    let cell = u32::try_from(position * experts + expert.index()).expect("below 2^16 x 2^16");
                    add(counts, cell, 1);
                }
            }
        }
        Ok(())
    }

    /// The tokens of every expert, by layer in the order of selection and by expert.
    pub fn finish(&self) -> Vec<Vec<ExpertVocabulary>> {
        let experts = self.selection.experts();
        let mut owned: Vec<Vec<TokenShare>> = vec![Vec::new(); self.selection.layers().len() * experts];
        for (&token, counts) in &self.counts {
            let layer = |cell: u32| cell as usize / experts;
            for counts in counts.chunk_by(|a, b| layer(a.0) == layer(b.0)) {
                let seen: u64 = counts.iter().map(|&(_, count)| count).sum();
                let best = counts.iter().max_by_key(|&&(cell, count)| (count, Reverse(cell)));
                if let (Some(&(cell, count)), true) = (best, seen >= LEAST_SEEN) {
                    owned[cell as usize].push(TokenShare { token, share: count as f64 / seen as f64, seen });
                }
            }
        }
        let mut vocabularies = owned.into_iter().map(ExpertVocabulary::of);
        self.selection.layers().iter().map(|_| vocabularies.by_ref().take(experts).collect()).collect()
    }
}

impl ExpertVocabulary {
    fn of(mut tokens: Vec<TokenShare>) -> ExpertVocabulary {
        let specialization = tokens.iter().map(|token| token.share).sum::<f64>() / tokens.len() as f64;
        tokens.sort_by(|a, b| b.share.total_cmp(&a.share).then(b.seen.cmp(&a.seen)).then(a.token.cmp(&b.token)));
        let count = tokens.len();
        tokens.truncate(TOP_TOKENS);
        ExpertVocabulary { specialization: (count > 0).then_some(specialization), tokens: count, top_tokens: tokens }
    }
}

/// Adds to the count of a cell.
fn add(counts: &mut Vec<(u32, u64)>, cell: u32, more: u64) {
    match counts.binary_search_by_key(&cell, |&(cell, _)| cell) {
        Ok(at) => counts[at].1 += more,
        Err(at) => counts.insert(at, (cell, more)),
    }
}

impl Accumulator for Vocabulary {
    /// Adds a sequence with the token ids of the trace.
    ///
    /// # Errors
    /// [`MetricError::NoTokenIds`] if the trace does not have the tokens to count for.
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        let ids = match self.token {
            VocabularyToken::Input => sequence.token_ids(),
            VocabularyToken::Next => sequence.token_ids().map(|ids| ids.get(1..).unwrap_or_default()),
            VocabularyToken::Predicted => sequence.predictions(),
        };
        self.update_tokens(sequence, ids.ok_or(MetricError::NoTokenIds { token: self.token })?)
    }

    fn merge(&mut self, other: &Vocabulary) -> Result<()> {
        same("token", &self.token, &other.token)?;
        self.selection.same(&other.selection)?;
        for (&token, counts) in &other.counts {
            let sum = self.counts.entry(token).or_default();
            counts.iter().for_each(|&(cell, count)| add(sum, cell, count));
        }
        Ok(())
    }
}

checked_serde!(Vocabulary);

impl Restore for Vocabulary {
    fn restore(&mut self) -> Result<()> {
        let cells = (self.selection.layers().len() * self.selection.experts()) as u128;
        for counts in self.counts.values() {
            let mut least = 0;
            for &(cell, _) in counts {
                within("cell of a token", least, cells - 1, cell.into())?;
                least = u128::from(cell) + 1;
            }
        }
        total("number of occurrences", self.counts.values().flatten().map(|(_, count)| count))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Phase, SequenceBuf};

    use super::*;

    fn vocabulary(experts: Vec<u16>, ids: Vec<u32>, token: VocabularyToken) -> Vec<ExpertVocabulary> {
        let geometry = Geometry::decoder(1, 3, 1).unwrap();
        let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Prefill).unwrap();
        sequence.token_ids = Some(ids);
        let mut vocabulary = Vocabulary::new(&geometry, &[LayerId(0)], token).unwrap();
        vocabulary.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
        vocabulary.finish().remove(0)
    }

    #[test]
    fn the_next_token_is_one_later() {
        // Experts 0 and 1 take turns and so do tokens 5 and 6: what follows a token of expert 0 is a 6.
        let (experts, ids) = ([0, 1].repeat(21), [5, 6].repeat(21));
        let tokens = |token| -> Vec<Vec<u32>> {
            let experts = vocabulary(experts.clone(), ids.clone(), token);
            experts.iter().map(|expert| expert.top_tokens.iter().map(|token| token.token).collect()).collect()
        };
        assert_eq!(tokens(VocabularyToken::Input), [vec![5], vec![6], vec![]]);
        assert_eq!(tokens(VocabularyToken::Next), [vec![6], vec![5], vec![]]);
    }

    #[test]
    fn ties_go_to_the_smaller_expert_and_fifteen_tokens_are_listed() {
        // 16 tokens, each 10 times on expert 2 and 10 times on expert 1; token 3 once more on expert 1.
        let mut experts = [[2u16; 10], [1; 10]].concat().repeat(16);
        let mut ids: Vec<u32> = (0..16).flat_map(|token| [token; 20]).collect();
        experts.push(1);
        ids.push(3);
        let experts = vocabulary(experts, ids, VocabularyToken::Input);
        assert_eq!((experts[2].tokens, experts[1].tokens), (0, 16));
        let top: Vec<u32> = experts[1].top_tokens.iter().map(|token| token.token).collect();
        assert_eq!(top, [3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        let mean = (15.0 * 0.5 + 11.0 / 21.0) / 16.0;
        assert!((experts[1].specialization.unwrap() - mean).abs() < 1e-12);
    }

    #[test]
    fn missing_and_superfluous_ids_say_so() {
        let geometry = Geometry::decoder(1, 3, 1).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1], Phase::Prefill).unwrap();
        let view = sequence.view(&geometry, 0).unwrap();
        let mut predicted = Vocabulary::new(&geometry, &[LayerId(0)], VocabularyToken::Predicted).unwrap();
        let error = predicted.update(&view).unwrap_err().to_string();
        assert_eq!(error, "the trace has no ids of Predicted tokens");
        let error = predicted.update_tokens(&view, &[1, 2, 3]).unwrap_err().to_string();
        assert_eq!(error, "3 token ids are given, the sequence has 2 tokens");
        predicted.update_tokens(&view, &[1, 2]).unwrap();
        let input = Vocabulary::new(&geometry, &[LayerId(0)], VocabularyToken::Input).unwrap();
        let error = predicted.merge(&input).unwrap_err().to_string();
        assert_eq!(error, "accumulators do not belong together: token is Input, expected Predicted");
    }
}
