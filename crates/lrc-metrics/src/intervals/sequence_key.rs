//! A number for each sequence.

use moe_trace::Sequence;

use crate::random::SplitMix;

/// A hash of the number of a sequence and of all that is known of it, equal for equal ones whatever process reads them.
///
/// Sequences of equal content have different keys as long as their source gives them different numbers, so that a corpus
/// of short sequences, many of them alike, spreads over groups as any other; and what two shards give the same number
/// differs in content.
pub(super) fn sequence_key(sequence: &Sequence<'_>) -> u64 {
    let mut state = mix(sequence.number() as u64, sequence.len() as u64);
    state = mix(state, sequence.domain().map_or(u64::MAX, |domain| u64::from(domain.0)));
    let mut ids = Vec::new();
    for layer in sequence.geometry().layer_ids() {
        sequence.copy_layer(layer, &mut ids);
        let four = |ids: &[u16]| ids.iter().fold(0, |word, &id| word << 16 | u64::from(id));
        state = ids.chunks(4).map(four).fold(state, mix);
    }
    let tokens = sequence.token_ids().unwrap_or_default();
    tokens.iter().map(|&id| u64::from(id)).fold(state, mix)
}

/// One step of the hash that rustc uses for its tables; the generator of [`group_of`] makes its bits fit for choosing.
fn mix(state: u64, word: u64) -> u64 {
    (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// The group of a key, in `0..groups`.
pub(super) fn group_of(key: u64, groups: usize) -> usize {
    SplitMix::new(key).below(groups)
}
