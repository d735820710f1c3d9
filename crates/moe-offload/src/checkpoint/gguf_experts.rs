//! The experts of a GGUF file, as llama.cpp names them.
//!
//! In block `N`: `blk.N.ffn_gate_exps.weight`, `ffn_up_exps` `[experts, intermediate, hidden]` and `ffn_down_exps`
//! `[experts, hidden, intermediate]`; or gate and up fused as `ffn_gate_up_exps` `[experts, 2 * intermediate, hidden]`; or,
//! in older files, a matrix an expert: `blk.N.ffn_gate.E.weight`, `ffn_up.E`, `ffn_down.E`.
//!
//! Blocks that only predict the token after the next (`blk.N.nextn.*`, or the last `nextn_predict_layers` blocks) are no
//! layers of the model: no token of a text passes through them.

use std::collections::{BTreeMap, BTreeSet};

use moe_trace::{ExpertId, LayerId};

use super::tensor_table::TensorTable;
use super::weight_location::WeightLocation;
use crate::error::{OffloadError, Result};
use crate::expert::ExpertShape;

/// The experts of the blocks that have some.
#[derive(Debug)]
pub(crate) struct GgufExperts {
    pub(crate) shape: ExpertShape,
    layers: Vec<(usize, Layout)>,
    /// Blocks with experts that only predict the token after the next.
    pub(crate) skipped_blocks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Stacked,
    Fused,
    Single,
}

impl GgufExperts {
    /// Finds out which blocks have experts, and how many of which size.
    pub(crate) fn find(table: &TensorTable) -> Result<GgufExperts> {
        let Blocks { mut layouts, ups, nextn } = Blocks::of(table)?;
        if let Some((_, name)) = ups.into_iter().find(|(block, _)| !layouts.contains_key(block)) {
            return Err(OffloadError::Gateless { name });
        }
        let last = layouts.keys().last().map_or(0, |&block| block + 1);
        table.check_number("block_count", last, |told| told >= last as u64)?;
        let all = layouts.len();
        let first_nextn = table.number("block_count").zip(table.number("nextn_predict_layers"));
        let first_nextn = first_nextn.map_or(u64::MAX, |(blocks, nextn)| blocks.saturating_sub(nextn));
        layouts.retain(|block, _| !nextn.contains(block) && (*block as u64) < first_nextn);
        let skipped_blocks = all - layouts.len();
        let layers: Vec<(usize, Layout)> = layouts.into_iter().map(|(block, (layout, _))| (block, layout)).collect();
        let Some(&(block, layout)) = layers.first() else {
            return Err(OffloadError::MissingTensor {
                name: "blk.N.ffn_gate_exps.weight".to_owned(),
                files: table.files.len(),
            });
        };
        let name = gate_name(block, layout, 0);
        let dims = table.dims(&name).unwrap_or_default();
        let (experts, intermediate, hidden) = match (layout, dims) {
            (Layout::Stacked, &[experts, intermediate, hidden]) => (experts, intermediate, hidden),
            (Layout::Fused, &[experts, both, hidden]) if both % 2 == 0 => (experts, both / 2, hidden),
            (Layout::Single, &[intermediate, hidden]) => {
                let experts = (0..).take_while(|&expert| table.dims(&gate_name(block, layout, expert)).is_some());
                (experts.count(), intermediate, hidden)
            }
            (layout, found) => {
                let rank = if layout == Layout::Single { 2 } else { 3 };
                return Err(OffloadError::Rank { name, found: found.to_vec(), rank });
            }
        };
        let shape = ExpertShape { layers: layers.len(), experts, hidden, intermediate };
        shape.check()?;
        for (key, found) in
            [("expert_count", experts), ("embedding_length", hidden), ("expert_feed_forward_length", intermediate)]
        {
            table.check_number(key, found, |told| told == found as u64)?;
        }
        Ok(GgufExperts { shape, layers, skipped_blocks })
    }

    /// Where the gate, up and down projection of an expert are.
    pub(crate) fn locations(&self, layer: LayerId, expert: ExpertId) -> [WeightLocation; 3] {
        let ((block, layout), experts) = (self.layers[layer.index()], self.shape.experts);
        let stacked = |which: &str| WeightLocation::part(stacked_name(block, which), expert.index(), experts);
        match layout {
            Layout::Stacked => ["gate", "up", "down"].map(stacked),
            Layout::Fused => {
                WeightLocation::fused(stacked_name(block, "gate_up"), stacked_name(block, "down"), expert, experts)
            }
            Layout::Single => ["gate", "up", "down"]
                .map(|which| WeightLocation::whole(format!("blk.{block}.ffn_{which}.{}.weight", expert.0))),
        }
    }
}

/// What the names of the tensors say of the blocks.
#[derive(Default)]
struct Blocks {
    /// Layout of the experts of each block that has some, and the tensor that tells it.
    layouts: BTreeMap<usize, (Layout, String)>,
    /// Blocks that have the up projection of experts, and its name.
    ups: BTreeMap<usize, String>,
    /// Blocks that only predict the token after the next.
    nextn: BTreeSet<usize>,
}

impl Blocks {
    fn of(table: &TensorTable) -> Result<Blocks> {
        let mut blocks = Blocks::default();
        for name in table.names() {
            let Some((number, rest)) = name.strip_prefix("blk.").and_then(|name| name.split_once('.')) else {
                continue;
            };
            // `blk.00` is no block that could be named again.
            let Some(block) = number.parse().ok().filter(|block: &usize| block.to_string() == number) else { continue };
            let layout = match rest {
                "ffn_gate_exps.weight" => Layout::Stacked,
                "ffn_gate_up_exps.weight" => Layout::Fused,
                "ffn_gate.0.weight" => Layout::Single,
                "ffn_up_exps.weight" | "ffn_up.0.weight" => {
                    blocks.ups.insert(block, name.to_owned());
                    continue;
                }
                _ if rest.starts_with("nextn.") => {
                    blocks.nextn.insert(block);
                    continue;
                }
                _ if rest.contains("_exps.") && !rest.ends_with(".weight") => {
                    return Err(OffloadError::ExtraTensor { name: name.to_owned() });
                }
                _ => continue,
            };
            if let Some((_, other)) = blocks.layouts.insert(block, (layout, name.to_owned())) {
                return Err(OffloadError::TwoLayouts { name: name.to_owned(), other });
            }
        }
        Ok(blocks)
    }
}

fn gate_name(block: usize, layout: Layout, expert: usize) -> String {
    match layout {
        Layout::Stacked => stacked_name(block, "gate"),
        Layout::Fused => stacked_name(block, "gate_up"),
        Layout::Single => format!("blk.{block}.ffn_gate.{expert}.weight"),
    }
}

/// Name of the tensor that stacks a projection of all experts of a block.
pub(crate) fn stacked_name(block: usize, which: &str) -> String {
    format!("blk.{block}.ffn_{which}_exps.weight")
}
