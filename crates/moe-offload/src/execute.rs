//! Execution of one plan.

use std::time::Instant;

use candle_core::{Device, Tensor};
use expert_cache::{ExpertKey, Load, Plan, SlotId};
use moe_trace::{ExpertId, LayerId};

use crate::counters::PhaseCounters;
use crate::dispatch::Dispatch;
use crate::{ExpertSlots, ExpertStore, Result, SlotGroup};

/// A plan, where it is executed, and how far it got.
pub(crate) struct Execution<'a> {
    layer: LayerId,
    plan: &'a Plan,
    slots: &'a dyn ExpertSlots,
    store: &'a dyn ExpertStore,
    dispatch: &'a Dispatch,
    /// Tokens, `[tokens, hidden]`.
    hidden: &'a Tensor,
    /// Output of each group.
    outputs: Vec<Option<Tensor>>,
    /// Loads executed so far.
    loaded: usize,
    counters: PhaseCounters,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(
        layer: LayerId,
        plan: &'a Plan,
        slots: &'a dyn ExpertSlots,
        store: &'a dyn ExpertStore,
        dispatch: &'a Dispatch,
        hidden: &'a Tensor,
    ) -> Execution<'a> {
        let outputs = dispatch.groups().iter().map(|_| None).collect();
        Execution {
            layer,
            plan,
            slots,
            store,
            dispatch,
            hidden,
            outputs,
            loaded: 0,
            counters: PhaseCounters::default(),
        }
    }

    /// Executes the plan: wave by wave loads, then computes; bypassed experts last.
    pub(crate) fn run(&mut self) -> Result<()> {
        let mut hits = self.plan.hits();
        for wave in self.plan.waves() {
            let started = Instant::now();
            for load in wave {
                self.load(load)?;
            }
            self.counters.load_seconds += started.elapsed().as_secs_f64();
            let started = Instant::now();
            let hits = std::mem::take(&mut hits).iter().map(|hit| (hit.key, hit.slot));
            self.compute(hits.chain(wave.iter().map(|load| (load.key, load.slot))))?;
            self.counters.compute_seconds += started.elapsed().as_secs_f64();
        }
        let started = Instant::now();
        for key in self.plan.bypasses() {
            self.bypass(key.index())?;
        }
        self.counters.bypass_seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Number of loads that were executed.
    pub(crate) fn loaded(&self) -> usize {
        self.loaded
    }

    /// Outputs of the groups in order, as far as the execution came, and the bytes and seconds that it took.
    pub(crate) fn finish(self) -> (Vec<Tensor>, PhaseCounters) {
        (self.outputs.into_iter().flatten().collect(), self.counters)
    }

    fn load(&mut self, load: &Load) -> Result<()> {
        let (slots, slot) = (self.slots, load.slot);
        self.store.with_bytes(self.layer, expert_id(load.key.index()), &mut |expert| slots.load(slot, expert))?;
        self.loaded += 1;
        self.counters.loaded_bytes +=
            self.store.shape().expert_bytes(self.store.weight_types()[self.layer.index()]) as u64;
        Ok(())
    }

    /// Serves experts from their slots.
    fn compute(&mut self, experts: impl Iterator<Item = (ExpertKey, SlotId)>) -> Result<()> {
        let dispatch = self.dispatch;
        let (indices, groups): (Vec<usize>, Vec<SlotGroup<'_>>) = experts
            .map(|(key, slot)| {
                let index = dispatch.group_of(key.index());
                (index, SlotGroup { slot, rows: dispatch.groups()[index].rows() })
            })
            .unzip();
        for (index, output) in indices.into_iter().zip(self.slots.forward(self.hidden, &groups)?) {
            self.outputs[index] = Some(output);
        }
        Ok(())
    }

    /// Serves an expert from the store, in host memory.
    fn bypass(&mut self, expert: usize) -> Result<()> {
        let group = self.dispatch.group_of(expert);
        let tokens = self.dispatch.groups()[group].gather(self.hidden)?.to_device(&Device::Cpu)?;
        let output = self.store.fetch(self.layer, expert_id(expert))?.forward(&tokens)?;
        self.outputs[group] = Some(output.to_device(self.hidden.device())?);
        Ok(())
    }
}

fn expert_id(index: usize) -> ExpertId {
    ExpertId(u16::try_from(index).expect("routes are u16"))
}
