//! A trace as rows, one a token and layer.

use crate::{EMPTY_SLOT, LayerId, Result, RoutingSource, Sequence, Stack};

/// One token in one layer.
pub(super) struct Row<'a> {
    pub(super) sequence: usize,
    pub(super) token: usize,
    /// The layer's number in its stack.
    pub(super) layer: u32,
    pub(super) stack: &'static str,
    pub(super) phase: &'static str,
    pub(super) domain: Option<&'a str>,
    pub(super) token_id: Option<u32>,
    pub(super) prediction: Option<u32>,
    /// Experts and weights of the slots that are not empty, with the slot.
    pub(super) experts: &'a [(usize, u16)],
    pub(super) weights: Option<&'a [f32]>,
}

/// Which optional columns a trace has: those that all its sequences (that have a token) have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Has {
    pub(super) weights: bool,
    pub(super) token_ids: bool,
    pub(super) predictions: bool,
    pub(super) domains: bool,
}

impl Has {
    pub(super) fn of(source: &dyn RoutingSource) -> Result<Has> {
        let mut has = Has { weights: true, token_ids: true, predictions: true, domains: !source.domains().is_empty() };
        for index in 0..source.len() {
            if source.sequence_len(index)? > 0 {
                let sequence = source.sequence(index)?;
                has.weights &= sequence.has_weights();
                has.token_ids &= sequence.token_ids().is_some();
                has.predictions &= sequence.predictions().is_some();
            }
        }
        Ok(has)
    }
}

/// Calls `row` for every token and layer of a source.
pub(super) fn for_each(
    source: &dyn RoutingSource,
    has: Has,
    progress: &dyn Fn(usize),
    mut row: impl FnMut(&Row<'_>) -> Result<()>,
) -> Result<()> {
    let geometry = source.geometry();
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    for index in 0..source.len() {
        let sequence = source.sequence(index)?;
        let domain = sequence.domain().and_then(|domain| source.domains().get(domain.index())).map(String::as_str);
        for token in 0..sequence.len() {
            for (layer, place) in geometry.layer_ids().zip(geometry.moe_layers()) {
                slots(&sequence, token, layer, &mut experts);
                weights.clear();
                if has.weights {
                    weights.extend(
                        sequence.weighted_experts(token, layer).into_iter().flatten().map(|(_, weight)| weight),
                    );
                }
                row(&Row {
                    sequence: index,
                    token,
                    layer: place.model_layer,
                    stack: if place.stack == Stack::Encoder { "encoder" } else { "decoder" },
                    phase: sequence.phase(token).name(),
                    domain,
                    token_id: sequence.token_ids().filter(|_| has.token_ids).map(|ids| ids[token]),
                    prediction: sequence.predictions().filter(|_| has.predictions).map(|ids| ids[token]),
                    experts: &experts,
                    weights: has.weights.then_some(&weights),
                })?;
            }
        }
        progress(index);
    }
    Ok(())
}

/// The slots of a token in a layer that are not empty.
fn slots(sequence: &Sequence<'_>, token: usize, layer: LayerId, out: &mut Vec<(usize, u16)>) {
    out.clear();
    let slots = sequence.slot_ids(token, layer).enumerate();
    out.extend(slots.filter(|&(_, id)| id != EMPTY_SLOT));
}
