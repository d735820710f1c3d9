//! What the ids of a file show about the model.

use std::path::Path;

use super::array::IntArray;
use super::{ImportOptions, record};
use crate::{EMPTY_SLOT, Geometry, ImportReport, Place, Result, TraceError, WarningKind};

/// The largest ids of a file and the most experts of a token and layer, with the places where they came first.
#[derive(Clone, Debug, Default)]
pub(super) struct IdsSeen {
    largest: Option<(usize, Place)>,
    smallest: Option<usize>,
    /// Number of ids.
    count: usize,
    /// The largest id below the largest.
    second: Option<usize>,
    most: Option<(usize, Place)>,
    /// Whether some token uses fewer experts in a layer than another.
    uneven: bool,
}

impl IdsSeen {
    /// Takes the slots of a token in a layer.
    pub(super) fn row(&mut self, slots: &[u16], place: impl Fn() -> Place) {
        for &id in slots.iter().filter(|&&id| id != EMPTY_SLOT) {
            self.id(usize::from(id), &place);
        }
        self.experts_of_a_token(slots.len(), place);
    }

    /// Takes one id.
    pub(super) fn id(&mut self, id: usize, place: impl FnOnce() -> Place) {
        self.count += 1;
        self.smallest = Some(self.smallest.map_or(id, |smallest| smallest.min(id)));
        match &self.largest {
            Some((largest, _)) if id == *largest => {}
            Some((largest, _)) if id < *largest => self.second = self.second.max(Some(id)),
            largest => {
                self.second = largest.as_ref().map(|&(largest, _)| largest);
                self.largest = Some((id, place()));
            }
        }
    }

    /// Takes the number of experts of a token in a layer.
    pub(super) fn experts_of_a_token(&mut self, count: usize, place: impl FnOnce() -> Place) {
        match &self.most {
            Some((most, _)) if count <= *most => self.uneven |= count < *most,
            most => {
                self.uneven |= most.is_some();
                self.most = Some((count, place()));
            }
        }
    }

    /// Whether no id was seen.
    pub(super) fn is_empty(&self) -> bool {
        self.largest.is_none()
    }

    /// Experts a layer: what the options or else the file itself claim, or else one more than the largest id, with a
    /// warning. A claim that the ids exceed is an error that names the place.
    pub(super) fn experts(
        &self,
        path: &Path,
        options: &ImportOptions,
        claimed: Option<usize>,
        report: &mut ImportReport,
    ) -> Result<usize> {
        options.agree(path, "experts", options.known_experts(), claimed)?;
        let known = options.known_experts().or(claimed);
        let Some((largest, place)) = &self.largest else { return Ok(known.unwrap_or(1)) };
        match known {
            Some(experts) if *largest == experts && self.begins_with_1() => {
                let limit = format!("there are {experts} experts, and {}: {SUBTRACT}", from_1(*largest));
                Err(record(path, place.clone(), "expert", &largest.to_string(), limit))
            }
            Some(experts) if *largest >= experts => Err(id_above(path, place.clone(), *largest, experts)),
            Some(experts) => Ok(experts),
            None => {
                self.warn(*largest, place, report);
                Ok(largest + 1)
            }
        }
    }

    /// Slots a token and layer: what the options or else the file itself claim, or else the most that a token uses.
    pub(super) fn top_k(
        &self,
        path: &Path,
        options: &ImportOptions,
        claimed: Option<usize>,
        report: &mut ImportReport,
    ) -> Result<usize> {
        options.agree(path, "top_k", options.top_k, claimed)?;
        let Some((most, place)) = &self.most else { return Ok(options.known_top_k().or(claimed).unwrap_or(1)) };
        match options.known_top_k().or(claimed) {
            Some(top_k) if top_k < *most => {
                let limit = format!("top-k is {top_k}: give --top-k {most} or more");
                Err(record(path, place.clone(), "number of experts", &most.to_string(), limit))
            }
            Some(top_k) => Ok(top_k),
            None => {
                if self.uneven {
                    let seen = || {
                        let seen = format!("top-k is taken to be {most}, the most experts of a token in a layer");
                        (Some(place.clone()), seen)
                    };
                    report.warn(WarningKind::TOP_K_INFERRED, "--top-k or --config says otherwise", seen);
                }
                Ok(*most)
            }
        }
    }

    /// Whether 1 is the smallest of so many ids that 0 is not absent by chance.
    fn begins_with_1(&self) -> bool {
        const IDS_PER_EXPERT: usize = 4;
        let experts = self.largest.as_ref().map_or(0, |&(largest, _)| largest);
        self.smallest == Some(1) && self.count / IDS_PER_EXPERT >= experts
    }

    fn warn(&self, largest: usize, place: &Place, report: &mut ImportReport) {
        let below = |quarters: usize| self.second.is_none_or(|second| second * 4 <= largest * quarters);
        let others = self.second.map_or("there is no other".to_owned(), |id| format!("the next largest is {id}"));
        let is_mark = i64::try_from(largest).is_ok_and(|id| EMPTY_MARKS.contains(&id));
        let suspected = if is_mark && below(3) || largest >= SMALLEST_JUMP && below(2) {
            Some(format!("id {largest} stands far above all others ({others}), as marks of empty slots do"))
        } else if largest >= 8 && largest.is_power_of_two() {
            Some(format!(
                "the largest id {largest} would make {} experts: it may mark empty slots, or be the number of \
                          experts where a shared expert is counted",
                largest + 1
            ))
        } else {
            None
        };
        if self.begins_with_1() && largest >= 8 && largest.is_power_of_two() {
            let seen = || (Some(place.clone()), format!("{}, as if experts were numbered from 1", from_1(largest)));
            report.warn(WarningKind::LAYOUT_SUSPECTED, SUBTRACT, seen);
        } else if let Some(seen) = suspected {
            let remedy = format!("--empty-id {largest} if it marks empty slots");
            report.warn(WarningKind::EMPTY_ID_SUSPECTED, &remedy, || (Some(place.clone()), seen));
        }
        let seen = || {
            let seen = format!("the number of experts is taken to be {}, from the largest id {largest}", largest + 1);
            (Some(place.clone()), seen)
        };
        report.warn(WarningKind::EXPERTS_INFERRED, "--experts or --config says otherwise", seen);
    }
}

/// How to read ids that are numbered from 1.
const SUBTRACT: &str = "subtract 1 from all ids if they are numbered from 1";

/// What shows that ids are numbered from 1.
fn from_1(largest: usize) -> String {
    format!("the ids are 1 to {largest} and never 0")
}

/// The id of a slot as a trace has it: [`EMPTY_SLOT`] for -1 and what the options say; `None` if no expert can have it.
pub(super) fn slot(id: i64, options: &ImportOptions) -> Option<u16> {
    if id == -1 || options.empty_ids.contains(&id) {
        return Some(EMPTY_SLOT);
    }
    u16::try_from(id).ok().filter(|&id| usize::from(id) < Geometry::MAX_EXPERTS)
}

/// The smallest id whose distance from all others is no accident of a short file.
const SMALLEST_JUMP: usize = 32;

/// What -1 is in unsigned integers of 8, 16 and 32 bits, and the largest number of 64 bits as an array gives it.
const EMPTY_MARKS: [i64; 4] = [255, 65_535, 4_294_967_295, i64::MAX];

/// What is allowed in place of an id that no expert can have, and what such an id may mean.
pub(super) fn no_expert(id: i64) -> String {
    let hint = if EMPTY_MARKS.contains(&id) {
        format!(": give --empty-id {id} if it marks an empty slot, a -1 in an unsigned number")
    } else if id < 0 {
        format!(": ids above 127 turn negative in a signed byte; give --empty-id {id} if it marks an empty slot")
    } else {
        String::new()
    };
    format!("expected an expert below {}{hint}", Geometry::MAX_EXPERTS)
}

/// The error of an id that is not below the number of experts.
pub(super) fn id_above(path: &Path, place: Place, id: usize, experts: usize) -> TraceError {
    let limit = not_among(i64::try_from(id).unwrap_or(i64::MAX), experts);
    let or = if limit.contains(';') { ", or" } else { ":" };
    record(path, place, "expert", &id.to_string(), format!("{limit}{or} give --experts if there are more"))
}

/// What is allowed in place of an id that is none of so many experts, and what such an id may mean.
pub(super) fn not_among(id: i64, experts: usize) -> String {
    let mark = if EMPTY_MARKS.contains(&id) || usize::try_from(id) == Ok(experts) {
        format!("; {id} often marks an empty slot: then give --empty-id {id}")
    } else {
        String::new()
    };
    format!("there are {experts} experts{mark}")
}

/// The expert of an element of an array, [`EMPTY_SLOT`] for the largest number of 16 bits too.
pub(super) fn element<B: AsRef<[u8]>>(
    path: &Path,
    array: &IntArray<B>,
    index: usize,
    place: impl FnOnce() -> Place,
    options: &ImportOptions,
) -> Result<u16> {
    let id = array.get(index);
    if id == i64::from(EMPTY_SLOT) {
        return Ok(EMPTY_SLOT);
    }
    slot(id, options).ok_or_else(|| record(path, place(), "id", &id.to_string(), no_expert(id)))
}
