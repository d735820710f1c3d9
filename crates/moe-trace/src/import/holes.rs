//! Holes between the rows of a sequence: numbers that no token has, layers without a row, slots without an expert.

use std::collections::BTreeSet;

use super::token_table::TokenTable;
use crate::{Geometry, ImportReport, Phase, Place, Stack, WarningKind};

/// What explains a hole, or tells how to fill it.
const REMEDY: &str = "record the missing rows, or read a column that is called otherwise (--column COLUMN=NAME)";

/// The tokens of one sequence, before they are put into order.
pub(super) struct Holes<'a> {
    pub(super) geometry: &'a Geometry,
    /// Name of the sequence; empty if the file has none.
    pub(super) sequence: &'a str,
    pub(super) table: &'a TokenTable,
    /// Numbers of tokens whose rows the file itself leaves out.
    pub(super) left_out: &'a BTreeSet<i64>,
}

impl Holes<'_> {
    /// Warns of layers without a row and of slots without an expert.
    ///
    /// A token needs no row in a stack of which it has none: tokens of an encoder are not routed in the decoder. A row that
    /// says that its slots are empty is no hole.
    pub(super) fn warn_of_cells(&self, report: &mut ImportReport, place_of: impl Fn(u64) -> Place) {
        for stack in [Stack::Encoder, Stack::Decoder] {
            let layers = self.geometry.moe_layers().iter().enumerate().filter(|(_, layer)| layer.stack == stack);
            let layers: Vec<(usize, u32)> = layers.map(|(at, layer)| (at, layer.model_layer)).collect();
            for token in 0..self.table.keys().len() {
                let has_stack = layers.iter().any(|&(layer, _)| self.table.slots_that_came(token, layer) > 0);
                for &(layer, number) in layers.iter().filter(|_| has_stack) {
                    let is_last = layers.last().is_some_and(|&(last, _)| last == layer);
                    self.warn_of_cell(token, layer, number, is_last, report, &place_of);
                }
            }
        }
    }

    fn warn_of_cell(
        &self,
        token: usize,
        layer: usize,
        number: u32,
        is_last: bool,
        report: &mut ImportReport,
        place_of: &impl Fn(u64) -> Place,
    ) {
        let (came, top_k) = (self.table.slots_that_came(token, layer), self.geometry.top_k());
        if came >= top_k {
            return;
        }
        let name = format!("token {}{}", self.table.keys()[token].token, self.of_sequence());
        let place = Some(place_of(self.table.place(token)));
        if came > 0 {
            let seen = || {
                let what = "an engine dropped experts, or rows are missing; the other slots stay empty";
                (place, format!("{name} has {came} of {top_k} experts in layer {number}: {what}"))
            };
            report.warn(WarningKind::SLOTS_MISSING, REMEDY, seen);
        } else if is_last && self.table.phase(token) == Phase::Prefill {
            let seen = || {
                let what = "some engines compute the last layer only where a token is sampled";
                (
                    place,
                    format!("{name} is prefilled and has no row of the last layer {number}: {what}; it stays empty"),
                )
            };
            report.warn(WarningKind::UNROUTED_TOKENS, REMEDY, seen);
        } else {
            let seen = || (place, format!("{name} has rows, but none of layer {number}: its slots stay empty there"));
            report.warn(WarningKind::CELLS_MISSING, REMEDY, seen);
        }
    }

    /// Warns of numbers between the first and the last token that no token has. Tokens are numbered by position.
    pub(super) fn warn_of_gaps(&self, report: &mut ImportReport, place_of: impl Fn(u64) -> Place) {
        let mut numbers: Vec<(i64, u64)> =
            self.table.keys().iter().enumerate().map(|(row, key)| (key.token, self.table.place(row))).collect();
        numbers.sort_unstable();
        for pair in numbers.windows(2) {
            let [(before, _), (after, place)] = *pair else { continue };
            let numbers = after.abs_diff(before).saturating_sub(1);
            if numbers == 0 {
                continue;
            }
            let left_out = self.left_out.range(before..=after).filter(|&&number| number > before && number < after);
            let missing = numbers.saturating_sub(left_out.count() as u64);
            if missing > 0 {
                let seen = || {
                    let of = self.of_sequence();
                    let what = format!("{missing} tokens are missing between the tokens {before} and {after}{of}");
                    (Some(place_of(place)), format!("{what}, which become neighbours"))
                };
                report.warn(WarningKind::TOKENS_MISSING, REMEDY, seen);
            }
        }
    }

    fn of_sequence(&self) -> String {
        if self.sequence.is_empty() { String::new() } else { format!(" of sequence {}", self.sequence) }
    }
}
