//! Loading one expert: waves, room, victims.

use moe_trace::Phase;

use super::{ExpertCache, Oversize};
use crate::{CacheError, Eviction, EvictionPolicy, ExpertKey, Request, Result, Skip, Substitute};

/// Why no room was made.
enum Refusal {
    /// The policy would rather not.
    Declined,
    /// Prefill has used up its quota in this wave.
    Guarded,
    /// The policy chose an expert that may not leave.
    Wrong(CacheError),
}

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Serves those misses that are not to be loaded, and leaves the others.
    pub(super) fn serve_without_loading(&mut self, request: &Request<'_>) {
        let mut missing = std::mem::take(&mut self.missing);
        missing.retain(|&key| {
            let key = ExpertKey(key);
            if self.misses.on_host(request, key) {
                self.plan.bypasses.push(key);
                return false;
            }
            let substitute = match self.misses.without(request, key) {
                None => return true,
                Some(None) => None,
                Some(Some(substitutes)) => {
                    let resident = |&buddy: &u32| {
                        let slot =
                            self.residency.slot(buddy as usize).filter(|_| !self.pinned.contains(buddy as usize));
                        slot.map(|slot| Substitute { key: ExpertKey(buddy), slot })
                    };
                    let Some(substitute) = substitutes.iter().find_map(resident) else { return true };
                    self.pinned.insert(substitute.key.index());
                    self.wave_used += self.residency.size(substitute.key.index());
                    Some(substitute)
                }
            };
            self.plan.skips.push(Skip { key, substitute });
            false
        });
        self.missing = missing;
    }

    /// Loads a missing expert, in the next wave if need be, or bypasses it.
    ///
    /// # Errors
    /// [`CacheError::Victim`]; what left for the expert is back then.
    pub(super) fn load(&mut self, key: ExpertKey, phase: Phase) -> Result<()> {
        if !self.policy.should_admit(key) {
            self.plan.bypasses.push(key);
            return Ok(());
        }
        let size = self.residency.size(key.index());
        let first = self.plan.evictions.len();
        self.pinned.insert(key.index());
        if size > self.residency.capacity() - self.wave_used && !self.next_wave(key) {
            self.plan.bypasses.push(key);
            return Ok(());
        }
        loop {
            match self.make_room(key, phase) {
                Ok(()) => break,
                // A wave that holds nothing is never refused.
                Err(Refusal::Guarded) if self.next_wave(key) => {}
                Err(refusal) => {
                    let mut plan = std::mem::take(&mut self.plan);
                    plan.evictions.drain(first..).rev().for_each(|eviction| self.restore(&eviction));
                    self.plan = plan;
                    if let Refusal::Wrong(error) = refusal {
                        return Err(error);
                    }
                    self.plan.bypasses.push(key);
                    return Ok(());
                }
            }
        }
        let slot = self.residency.occupy(key.index());
        self.admitted(key, phase == Phase::Decode);
        self.plan.push_load(key, slot, first);
        self.wave_used += size;
        Ok(())
    }

    /// Begins a wave with `key`, if there may be one.
    fn next_wave(&mut self, key: ExpertKey) -> bool {
        if self.oversize == Oversize::Bypass {
            return false;
        }
        self.plan.wave_ends.push(self.plan.loads.len());
        self.pinned.clear();
        self.pinned.insert(key.index());
        self.wave_used = 0;
        true
    }

    /// Evicts until there is room for an expert.
    fn make_room(&mut self, key: ExpertKey, phase: Phase) -> Result<(), Refusal> {
        let size = self.residency.size(key.index());
        while !self.residency.has_room(size) {
            let victim = self.victim(key, phase)?;
            let eviction = self.evict(victim).ok_or(Refusal::Declined)?;
            self.plan.evictions.push(eviction);
        }
        Ok(())
    }

    fn victim(&mut self, key: ExpertKey, phase: Phase) -> Result<ExpertKey, Refusal> {
        let guarded = self.is_guarded(key, phase);
        if guarded || self.marks.holding() {
            // Held experts go last.
            for held in [true, false] {
                if self.block(guarded, held) {
                    return self.checked_victim(key, true).map_err(Refusal::Wrong)?.ok_or(Refusal::Declined);
                }
            }
            if guarded && (self.wave_used > 0 || self.oversize == Oversize::Bypass) {
                return Err(Refusal::Guarded);
            }
        }
        self.checked_victim(key, false).map_err(Refusal::Wrong)?.ok_or(Refusal::Declined)
    }

    /// The policy's victim, which is resident and neither pinned nor, where more are, blocked.
    pub(super) fn checked_victim(&mut self, incoming: ExpertKey, more_blocked: bool) -> Result<Option<ExpertKey>> {
        let blocked = if more_blocked { &self.blocked } else { &self.pinned };
        let Some(victim) = self.policy.victim(incoming, blocked) else { return Ok(None) };
        let problem = match victim.index() {
            key if key >= self.residency.universe() => "is not of the pool",
            key if self.residency.slot(key).is_none() => "is not resident",
            key if blocked.contains(key) => "is pinned",
            _ => return Ok(Some(victim)),
        };
        Err(CacheError::Victim { policy: self.policy.name(), victim: victim.index(), problem })
    }

    /// Whether the guard lets only experts go for `key` that decode has not used.
    pub(super) fn is_guarded(&self, key: ExpertKey, phase: Phase) -> bool {
        let size = self.residency.size(key.index());
        phase == Phase::Prefill && self.guard.as_ref().is_some_and(|guard| guard.is_full(size))
    }

    /// Collects who may not be evicted; tells whether somebody may.
    pub(super) fn block(&mut self, guarded: bool, held: bool) -> bool {
        self.blocked.copy_from(&self.pinned);
        if let Some(guard) = self.guard.as_ref().filter(|_| guarded) {
            self.blocked.union_with(guard.decode());
        }
        if held {
            self.blocked.union_with(self.marks.held());
        }
        !self.residency.resident().is_subset(&self.blocked)
    }

    /// Takes an expert out of its slot; none if it has none.
    pub(super) fn evict(&mut self, key: ExpertKey) -> Option<Eviction> {
        let slot = self.residency.vacate(key.index())?;
        self.policy.on_evict(key);
        let size = self.residency.size(key.index());
        let kept_for_decode = self.guard.as_mut().is_some_and(|guard| guard.release(key.index(), size));
        let held = self.marks.is_held(key.index());
        Some(Eviction { key, slot, unused: self.marks.evicted(key.index()), held, kept_for_decode })
    }

    /// Puts an evicted expert back, if its slot is still free.
    pub(super) fn restore(&mut self, eviction: &Eviction) {
        if self.residency.occupy_again(eviction.key.index(), eviction.slot) {
            self.admitted(eviction.key, eviction.kept_for_decode);
            self.marks.forgive(eviction.key.index());
            if eviction.unused {
                self.marks.restore_unused(eviction.key.index());
            }
            if eviction.held {
                self.marks.restore_held(eviction.key.index());
            }
        }
    }

    /// Tells policy and guard of an expert that now has a slot.
    pub(super) fn admitted(&mut self, key: ExpertKey, for_decode: bool) {
        self.policy.on_insert(key);
        let size = self.residency.size(key.index());
        if let Some(guard) = &mut self.guard {
            guard.admit(key.index(), size, for_decode);
        }
    }
}
