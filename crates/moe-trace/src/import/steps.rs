//! What the numbers of tokens count in files that tell forward passes apart.

use std::collections::{BTreeMap, HashSet};

use super::token_table::{TokenKey, TokenTable};
use crate::{Phase, SequenceBuf};

/// What the numbers of tokens count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Positions in the sequence, each in one pass.
    Positions,
    /// Tokens of a pass; every pass begins anew.
    InPass,
    /// Positions in the sequence, some in several passes, as with guesses of a draft model; the last pass counts.
    Again {
        /// Tokens that a later pass replaced.
        replaced: usize,
    },
}

/// Why tokens and passes do not make one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unclear {
    /// Where the token that does not fit came first.
    pub(super) place: u64,
    pub(super) key: TokenKey,
    pub(super) problem: &'static str,
}

/// Puts the tokens of a sequence into order; `tells_phase` says whether the file tells their phases. If not, the passes do:
/// a pass of one token that is not the first is a decode step, as is one of positions that come again.
pub(super) fn finish(mut table: TokenTable, tells_phase: bool) -> Result<(SequenceBuf, Counting), Unclear> {
    let sorted = table.sorted();
    let passes = by_pass(&table, &sorted);
    let token = |row: usize| table.keys()[row].token;
    let distinct = sorted.iter().map(|&row| token(row)).collect::<HashSet<_>>().len() == sorted.len();
    let in_pass = !distinct && counts_in_pass(&table, &passes);
    let mut again = vec![false; passes.len()];
    let (counting, order) = if in_pass {
        check_growth(&table, &passes)?;
        (Counting::InPass, sorted)
    } else {
        let mut kept: BTreeMap<i64, usize> = BTreeMap::new();
        for (pass, rows) in passes.iter().enumerate() {
            if !distinct {
                check_start(&table, &passes, pass)?;
                // What a pass computes again, the passes before it only guessed, and what follows there as well.
                again[pass] = pass > 0 && !kept.split_off(&token(rows[0])).is_empty();
            }
            kept.extend(rows.iter().map(|&row| (token(row), row)));
        }
        let replaced = sorted.len() - kept.len();
        let counting = if replaced == 0 { Counting::Positions } else { Counting::Again { replaced } };
        (counting, kept.into_values().collect())
    };
    if !tells_phase {
        for (pass, rows) in passes.iter().enumerate().skip(1) {
            if rows.len() == 1 || again[pass] || again.get(pass + 1) == Some(&true) {
                rows.iter().for_each(|&row| table.set_phase(row, Phase::Decode));
            }
        }
    }
    Ok((table.finish_in(&order), counting))
}

/// Rows of each pass, in the order of the tokens' numbers.
fn by_pass(table: &TokenTable, sorted: &[usize]) -> Vec<Vec<usize>> {
    sorted.chunk_by(|&a, &b| table.keys()[a].pass == table.keys()[b].pass).map(<[usize]>::to_vec).collect()
}

/// Whether every pass begins at the same number and counts up.
fn counts_in_pass(table: &TokenTable, passes: &[Vec<usize>]) -> bool {
    let token = |row: usize| table.keys()[row].token;
    passes.iter().all(|rows| {
        token(rows[0]) == token(passes[0][0])
            && rows.windows(2).all(|pair| token(pair[0]).checked_add(1) == Some(token(pair[1])))
    })
}

/// Refuses passes that grow by one token each: a model without a cache of keys and values computes the whole context again.
fn check_growth(table: &TokenTable, passes: &[Vec<usize>]) -> Result<(), Unclear> {
    if passes.windows(2).all(|pair| pair[1].len() == pair[0].len() + 1) {
        let problem = "every pass has one token more than the pass before: if each computes the whole context again, keep \
                       the rows of the last pass";
        return Err(unclear(table, passes[1][0], problem));
    }
    Ok(())
}

/// Refuses a pass that does not begin behind the start of the pass before.
fn check_start(table: &TokenTable, passes: &[Vec<usize>], pass: usize) -> Result<(), Unclear> {
    let start = |pass: usize| table.keys()[passes[pass][0]].token;
    if pass > 0 && start(pass) <= start(pass - 1) {
        let problem = "its pass does not begin behind the start of the pass before: is this another sequence? then name \
                       the column that tells sequences apart (--column sequence=NAME)";
        return Err(unclear(table, passes[pass][0], problem));
    }
    Ok(())
}

fn unclear(table: &TokenTable, row: usize, problem: &'static str) -> Unclear {
    Unclear { place: table.place(row), key: table.keys()[row], problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Geometry;

    /// A table whose tokens have the experts 0, 1, 2, ... in the order in which they come.
    fn finish_keys(keys: &[(i64, i64)], tells_phase: bool) -> Result<(Vec<u16>, Vec<u8>, Counting), &'static str> {
        let mut table = TokenTable::new(&Geometry::decoder(1, 64, 1).unwrap());
        for (expert, &(pass, token)) in (0..).zip(keys) {
            let row = table.row(TokenKey { pass, token }, Phase::Prefill, 1).unwrap();
            table.put(row, 0, 0, expert, None).unwrap();
        }
        let (sequence, counting) = finish(table, tells_phase).map_err(|unclear| unclear.problem)?;
        Ok((sequence.experts, sequence.phases, counting))
    }

    #[test]
    fn positions_of_single_passes_are_ordered_by_position() {
        let found = finish_keys(&[(1, 2), (0, 0), (0, 1)], false).unwrap();
        assert_eq!(found, (vec![1, 2, 0], vec![0, 0, 1], Counting::Positions));
        assert_eq!(finish_keys(&[(1, 2), (0, 0), (0, 1)], true).unwrap().1, [0, 0, 0], "the file tells phases");
    }

    #[test]
    fn numbers_that_begin_anew_in_every_pass_count_within_it() {
        let found = finish_keys(&[(0, 0), (0, 1), (4, 0), (3, 0), (7, 0), (7, 1)], false).unwrap();
        assert_eq!(found, (vec![0, 1, 3, 2, 4, 5], vec![0, 0, 1, 1, 0, 0], Counting::InPass));
        let problem = finish_keys(&[(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)], false).unwrap_err();
        assert!(problem.contains("computes the whole context again"), "{problem}");
    }

    #[test]
    fn positions_that_come_again_count_as_in_their_last_pass() {
        // Two prompt tokens, then guesses of three tokens: one accepted guess, then none.
        let keys = [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (2, 6), (3, 5)];
        let found = finish_keys(&keys, false).unwrap();
        assert_eq!(found.0, [0, 1, 2, 3, 5, 8]);
        assert_eq!((found.1, found.2), (vec![0, 0, 1, 1, 1, 1], Counting::Again { replaced: 3 }));
        let problem = finish_keys(&[(0, 0), (0, 1), (1, 2), (2, 0), (2, 1), (2, 2)], false).unwrap_err();
        assert!(problem.contains("another sequence"), "{problem}");
    }
}
