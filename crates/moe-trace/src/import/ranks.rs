//! Rows of several processes that record the same tokens.

use std::collections::{BTreeMap, HashMap};

use super::token_table::{TokenKey, TokenTable};
use crate::{EMPTY_SLOT, Geometry, ImportReport, Place, WarningKind};

/// How the rows of one process relate to those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Both have the same experts: copies of tensor parallel processes.
    Copy,
    /// They have no expert in common: parts of expert parallel processes.
    Part,
}

/// Two processes whose rows for one token and layer fit neither copies nor parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    pub(super) rank: i64,
    /// Where the token came first among the rows of `rank`.
    pub(super) place: u64,
    pub(super) other: i64,
    pub(super) other_place: u64,
    pub(super) problem: &'static str,
}

impl Contradiction {
    /// What is allowed; `other_place` is that of the other rank.
    pub(super) fn limit(&self, other_place: &Place) -> String {
        format!(
            "rank {} has {} ({other_place}): ranks have equal experts, or parts without a common one; if ids count the \
             experts of each rank, add to them the first id of the rank",
            self.other, self.problem
        )
    }
}

/// Puts the rows of several processes together, sequence by sequence.
///
/// Any two processes are copies of each other in all that both have, or parts of one set of experts.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    relations: HashMap<(i64, i64), Relation>,
    /// Cells that a process only repeated.
    copies: u64,
    /// Cells that were put together from several processes.
    joined: u64,
}

/// The slots of one process in a cell.
struct Part<'a> {
    rank: i64,
    row: usize,
    table: &'a TokenTable,
    experts: &'a [u16],
}

impl Ranks {
    /// The most processes of a file.
    pub(super) const MOST: usize = 1 << 10;

    /// Puts the tables of one sequence together. Experts keep their slots if `slotted`; else those of a cell of several
    /// parts are ordered by weight, or by rank if not all have one.
    pub(super) fn join(
        &mut self,
        geometry: &Geometry,
        tables: BTreeMap<i64, TokenTable>,
        slotted: bool,
    ) -> Result<TokenTable, Contradiction> {
        let mut tables = tables;
        if tables.len() < 2 {
            return Ok(tables.pop_first().map_or_else(|| TokenTable::new(geometry), |(_, table)| table));
        }
        let mut joined = TokenTable::new(geometry);
        let keys: BTreeMap<TokenKey, (i64, usize)> = tables
            .iter()
            .rev()
            .flat_map(|(&rank, table)| table.keys().iter().enumerate().map(move |(row, &key)| (key, (rank, row))))
            .collect();
        for (&key, &(first, first_row)) in &keys {
            let owner = &tables[&first];
            let at = joined.add(key, owner.phase(first_row), owner.place(first_row));
            let rows: Vec<(i64, usize, &TokenTable)> =
                tables.iter().filter_map(|(&rank, table)| Some((rank, table.find(key)?, table))).collect();
            for &(rank, row, table) in &rows {
                if table.phase(row) != owner.phase(first_row) {
                    let other_place = owner.place(first_row);
                    let problem = "another phase";
                    return Err(Contradiction { rank, place: table.place(row), other: first, other_place, problem });
                }
                joined.copy_ids(at, table, row);
            }
            for layer in 0..geometry.layers() {
                let came = rows.iter().map(|&(_, row, table)| table.slots_that_came(row, layer)).sum();
                joined.came(at, layer, came);
                let parts = rows.iter().filter_map(|&(rank, row, table)| {
                    let experts = table.cell(row, layer);
                    experts.iter().any(|&id| id != EMPTY_SLOT).then_some(Part { rank, row, table, experts })
                });
                self.join_cell(&mut joined, at, layer, &parts.collect::<Vec<_>>(), slotted)?;
            }
        }
        Ok(joined)
    }

    /// Says how rows were put together.
    pub(super) fn say(&self, report: &mut ImportReport) {
        let Ranks { copies, joined, .. } = self;
        if *copies > 0 {
            let seen =
                format!("{copies} cells (a token in a layer) have equal experts of several ranks: each counts once");
            report.warn(WarningKind::RANK_COPIES, "keep the rows of one rank", || (None, seen));
        }
        if *joined > 0 {
            let seen = format!(
                "the experts of {joined} cells (a token in a layer) are put together from several ranks, in the order of \
                 their weights or, without weights, of their ranks"
            );
            let remedy =
                "--column slot=rank if it is the expert's slot, --column sequence=rank if each has its own requests";
            report.warn(WarningKind::RANKS_JOINED, remedy, || (None, seen));
        }
    }

    /// Puts one cell together.
    fn join_cell(
        &mut self,
        joined: &mut TokenTable,
        at: usize,
        layer: usize,
        all: &[Part<'_>],
        slotted: bool,
    ) -> Result<(), Contradiction> {
        let parts = self.distinct(all)?;
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(()) };
        let mut cell: Vec<(usize, u16, Option<f32>)> = Vec::new();
        for part in &parts {
            let weights = part.table.weights(part.row, layer);
            let used = part.experts.iter().enumerate().filter(|&(_, &id)| id != EMPTY_SLOT);
            cell.extend(used.map(|(slot, &id)| (slot, id, weights.map(|weights| weights[slot]))));
        }
        if parts.len() > 1 {
            self.joined += 1;
            if !slotted {
                if cell.iter().all(|(.., weight)| weight.is_some()) {
                    cell.sort_by(|(.., a), (.., b)| b.unwrap_or_default().total_cmp(&a.unwrap_or_default()));
                }
                (0..).zip(&mut cell).for_each(|(slot, entry)| entry.0 = slot);
            }
        }
        let slots = joined.cell(at, layer).len();
        for (slot, expert, weight) in cell {
            if slot >= slots {
                return Err(last.contradicts(first, "other experts, and together they are more than top-k"));
            }
            let taken = |_| last.contradicts(first, "an expert in the same slot");
            joined.put(at, layer, slot, expert, weight).map_err(taken)?;
        }
        Ok(())
    }

    /// The parts of a cell that are no copies of another.
    fn distinct<'p, 'a>(&mut self, all: &'p [Part<'a>]) -> Result<Vec<&'p Part<'a>>, Contradiction> {
        let mut parts: Vec<&Part<'_>> = Vec::new();
        'next: for part in all {
            for other in &parts {
                let Some(relation) = relation(part.experts, other.experts) else {
                    return Err(part.contradicts(other, "some of the same experts, and others"));
                };
                if *self.relations.entry((other.rank, part.rank)).or_insert(relation) != relation {
                    return Err(part.contradicts(
                        other,
                        match relation {
                            Relation::Copy => "the same experts, but others for a token before",
                            Relation::Part => "other experts, but the same for a token before",
                        },
                    ));
                }
                if relation == Relation::Copy {
                    self.copies += 1;
                    continue 'next;
                }
            }
            parts.push(part);
        }
        Ok(parts)
    }
}

impl Part<'_> {
    /// The error of two parts that do not fit.
    fn contradicts(&self, other: &Part<'_>, problem: &'static str) -> Contradiction {
        Contradiction {
            rank: self.rank,
            place: self.table.place(self.row),
            other: other.rank,
            other_place: other.table.place(other.row),
            problem,
        }
    }
}

/// How two cells relate; `None` if they share some experts only.
fn relation(one: &[u16], other: &[u16]) -> Option<Relation> {
    let used = |cell: &[u16]| cell.iter().copied().filter(|&id| id != EMPTY_SLOT).collect::<Vec<_>>();
    let (one, other) = (used(one), used(other));
    match one.iter().filter(|id| other.contains(id)).count() {
        0 => Some(Relation::Part),
        shared if shared == one.len() && shared == other.len() => Some(Relation::Copy),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;

    /// Experts and weights of a token.
    type Experts<'a> = &'a [(u16, f32)];

    /// Joins the tables of ranks, each with tokens and their experts, of one layer of 16 experts, top-4.
    fn join(ranks: &[(i64, &[(i64, Experts<'_>)])]) -> Result<(Vec<u16>, u64, u64), &'static str> {
        let geometry = Geometry::decoder(1, 16, 4).unwrap();
        let tables = ranks.iter().map(|&(rank, tokens)| {
            let mut table = TokenTable::new(&geometry);
            for &(token, experts) in tokens {
                let row = table.row(TokenKey::at(token), Phase::Decode, 1).unwrap();
                for (slot, &(expert, weight)) in experts.iter().enumerate() {
                    table.put(row, 0, slot, expert, (weight > 0.0).then_some(weight)).unwrap();
                }
            }
            (rank, table)
        });
        let mut joiner = Ranks::default();
        let joined = joiner.join(&geometry, tables.collect(), false).map_err(|contradiction| contradiction.problem)?;
        Ok((joined.finish().experts, joiner.copies, joiner.joined))
    }

    const E: u16 = EMPTY_SLOT;

    #[test]
    fn copies_count_once_and_parts_are_put_together_by_weight() {
        let copies = join(&[(0, &[(0, &[(3, 0.0), (1, 0.0)])]), (1, &[(0, &[(3, 0.0), (1, 0.0)])])]).unwrap();
        assert_eq!(copies, (vec![3, 1, E, E], 1, 0));
        let parts = join(&[(0, &[(0, &[(3, 0.2), (1, 0.1)])]), (7, &[(0, &[(9, 0.7)]), (1, &[(8, 1.0)])])]).unwrap();
        assert_eq!(parts, (vec![9, 3, 1, E, 8, E, E, E], 0, 1));
        let unweighted = join(&[(7, &[(0, &[(9, 0.0)])]), (0, &[(0, &[(3, 0.0)])])]).unwrap();
        assert_eq!(unweighted.0, [3, 9, E, E], "in the order of the ranks");
        // Two ranks of tensor parallelism in each of two parts.
        let (a, b): (Experts<'_>, Experts<'_>) = (&[(1, 0.0)], &[(2, 0.0)]);
        let both = join(&[(0, &[(0, a)]), (1, &[(0, a)]), (2, &[(0, b)]), (3, &[(0, b)])]).unwrap();
        assert_eq!(both, (vec![1, 2, E, E], 2, 1));
    }

    #[test]
    fn ranks_that_contradict_each_other_are_refused() {
        let (a, b): (Experts<'_>, Experts<'_>) = (&[(1, 0.0), (2, 0.0)], &[(2, 0.0), (3, 0.0)]);
        assert_eq!(join(&[(0, &[(0, a)]), (1, &[(0, b)])]).unwrap_err(), "some of the same experts, and others");
        let other: Experts<'_> = &[(5, 0.0), (6, 0.0)];
        let changed = join(&[(0, &[(0, a), (1, a)]), (1, &[(0, a), (1, other)])]);
        assert_eq!(changed.unwrap_err(), "other experts, but the same for a token before");
        let many: Experts<'_> = &[(7, 0.0), (8, 0.0), (9, 0.0)];
        let together = join(&[(0, &[(0, a)]), (1, &[(0, many)])]);
        assert_eq!(together.unwrap_err(), "other experts, and together they are more than top-k");
    }
}
