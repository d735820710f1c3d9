//! What the ids of a file show about the model.

use std::path::Path;

use super::{ImportOptions, record};
use crate::{EMPTY_SLOT, Geometry, ImportReport, Place, Result, TraceError, WarningKind};

/// The largest ids of a file and the most experts of a token and layer, with the places where they came first.
#[derive(Clone, Debug, Default)]
pub(super) struct IdsSeen {
    largest: Option<(usize, Place)>,
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

    /// Experts a layer: what the options or else the file itself claim, or else one more than the largest id, with a
    /// warning. A claim that the ids exceed is an error that names the place.
    pub(super) fn experts(
        &self,
        path: &Path,
        options: &ImportOptions,
        claimed: Option<usize>,
        report: &mut ImportReport,
    ) -> Result<usize> {
        let known = options.known_experts().or(claimed);
        let Some((largest, place)) = &self.largest else { return Ok(known.unwrap_or(1)) };
        match known {
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

    fn warn(&self, largest: usize, place: &Place, report: &mut ImportReport) {
        let stands_alone = self.second.is_none_or(|second| second + 1 <= largest / 2);
        if EMPTY_MARKS.contains(&largest) && stands_alone {
            let others = self.second.map_or("there is no other".to_owned(), |id| format!("the next largest is {id}"));
            let seen = format!("id {largest} stands far above all others ({others}), as marks of empty slots do");
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

/// The id of a slot as a trace has it: [`EMPTY_SLOT`] for -1 and what the options say; `None` if no expert can have it.
pub(super) fn slot(id: i64, options: &ImportOptions) -> Option<u16> {
    let narrow = u16::try_from(id).ok();
    if id == -1 || narrow.is_some_and(|id| options.empty_ids.contains(&id)) {
        return Some(EMPTY_SLOT);
    }
    narrow.filter(|&id| usize::from(id) < Geometry::MAX_EXPERTS)
}

/// What -1 is in unsigned integers of 8 and 16 bits.
const EMPTY_MARKS: [usize; 2] = [u8::MAX as usize, u16::MAX as usize];

/// The error of an id that is not below the number of experts.
pub(super) fn id_above(path: &Path, place: Place, id: usize, experts: usize) -> TraceError {
    let mark =
        if EMPTY_MARKS.contains(&id) || id == experts { ", or --empty-id if it marks an empty slot" } else { "" };
    let limit = format!("there are {experts} experts: give --experts if there are more{mark}");
    record(path, place, "expert", &id.to_string(), limit)
}

/// The id as a trace has it, if there is such an expert.
pub(super) fn narrow(id: usize, geometry: &Geometry) -> Option<u16> {
    u16::try_from(id).ok().filter(|&id| usize::from(id) < geometry.experts())
}
