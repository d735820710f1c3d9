//! Members of a set, word by word.

use moe_trace::ExpertSet;

/// The members in ascending order.
pub(crate) fn members(set: &ExpertSet) -> impl Iterator<Item = usize> + '_ {
    set.words().iter().enumerate().flat_map(|(index, &word)| Members { word, first: index * 64 })
}

struct Members {
    word: u64,
    first: usize,
}

impl Iterator for Members {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.word == 0 {
            return None;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(self.first + bit)
    }
}

/// Whether `set` has a member that `other` lacks.
pub(crate) fn any_outside(set: &ExpertSet, other: &ExpertSet) -> bool {
    set.words().iter().zip(other.words()).any(|(&word, &other)| word & !other != 0)
}
