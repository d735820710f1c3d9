//! Which expert is in which slot, and what room is left.

use moe_trace::ExpertSet;

use crate::{ExpertKey, ExpertSizes, SlotId};

const ABSENT: SlotId = SlotId(u32::MAX);

/// Slots of a cache. With experts of one size a free slot is room; otherwise bytes are what is scarce.
#[derive(Clone, Debug)]
pub(crate) struct Residency {
    slot_of: Vec<SlotId>,
    resident: ExpertSet,
    free: Vec<SlotId>,
    slots: usize,
    sizes: ExpertSizes,
    capacity: u64,
    used: u64,
}

impl Residency {
    pub(crate) fn new(sizes: ExpertSizes, capacity: u64) -> Residency {
        let slots = sizes.most_within(capacity);
        Residency {
            slot_of: vec![ABSENT; sizes.universe()],
            resident: ExpertSet::new(sizes.universe()),
            free: (0..).map(SlotId).take(slots).collect::<Vec<_>>().into_iter().rev().collect(),
            slots,
            sizes,
            capacity,
            used: 0,
        }
    }

    pub(crate) fn universe(&self) -> usize {
        self.slot_of.len()
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn sizes(&self) -> &ExpertSizes {
        &self.sizes
    }

    pub(crate) fn resident(&self) -> &ExpertSet {
        &self.resident
    }

    #[inline]
    pub(crate) fn slot(&self, key: usize) -> Option<SlotId> {
        let slot = self.slot_of[key];
        (slot != ABSENT).then_some(slot)
    }

    #[inline]
    pub(crate) fn size(&self, key: usize) -> u64 {
        self.sizes.of(ExpertKey::from_index(key))
    }

    #[inline]
    pub(crate) fn has_room(&self, size: u64) -> bool {
        size <= self.capacity - self.used
    }

    /// Puts an absent expert into the slot that was freed last; there must be room.
    pub(crate) fn occupy(&mut self, key: usize) -> SlotId {
        let slot = self.free.pop().expect("where there is room there is a slot");
        self.put(key, slot);
        slot
    }

    /// Puts an absent expert into a given slot, if the slot is free and there is room.
    pub(crate) fn occupy_again(&mut self, key: usize, slot: SlotId) -> bool {
        let place = self.free.iter().rposition(|&free| free == slot);
        match place.filter(|_| self.has_room(self.size(key)) && self.slot(key).is_none()) {
            Some(place) => {
                self.free.remove(place);
                self.put(key, slot);
                true
            }
            None => false,
        }
    }

    /// Frees the slot of an expert; none if it is absent.
    pub(crate) fn vacate(&mut self, key: usize) -> Option<SlotId> {
        let slot = self.slot(key)?;
        self.slot_of[key] = ABSENT;
        self.resident.remove(key);
        self.used -= self.size(key);
        self.free.push(slot);
        Some(slot)
    }

    fn put(&mut self, key: usize, slot: SlotId) {
        self.slot_of[key] = slot;
        self.resident.insert(key);
        self.used += self.size(key);
    }

    /// Asserts that every slot is free or holds exactly one expert, and that no more is used than there is.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let taken = self.slot_of.iter().copied().filter(|&slot| slot != ABSENT);
        let mut slots: Vec<SlotId> = taken.chain(self.free.iter().copied()).collect();
        slots.sort_unstable();
        let all: Vec<SlotId> = (0..).take(self.slots).map(SlotId).collect();
        assert_eq!(slots, all, "a slot is lost or taken twice");
        let resident: Vec<usize> = (0..self.universe()).filter(|&key| self.slot(key).is_some()).collect();
        assert_eq!(self.resident.iter().collect::<Vec<_>>(), resident);
        assert_eq!(self.used, resident.iter().map(|&key| self.size(key)).sum::<u64>());
        assert!(self.used <= self.capacity, "{} of {}", self.used, self.capacity);
    }
}
