//! The experts of a GGUF file, as llama.cpp names them.
//!
//! In block `N`: `blk.N.ffn_gate_exps.weight`, `ffn_up_exps` `[experts, intermediate, hidden]` and `ffn_down_exps`
//! `[experts, hidden, intermediate]`; or gate and up fused as `ffn_gate_up_exps` `[experts, 2 * intermediate, hidden]`; or,
//! in older files, a matrix an expert: `blk.N.ffn_gate.E.weight`, `ffn_up.E`, `ffn_down.E`.

use moe_trace::{ExpertId, LayerId};

use crate::tensor_table::TensorTable;
use crate::{ExpertShape, OffloadError, Result, WeightLocation};

/// Bytes of the smallest expert, three numbers of 16 bits. Tensors that lie in one another could claim more experts than the
/// file has room for.
const EXPERT_BYTES: usize = 6;

/// The experts of the blocks that have some.
#[derive(Debug)]
pub(crate) struct GgufExperts {
    pub(crate) shape: ExpertShape,
    layers: Vec<(usize, Layout)>,
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
        let mut layers = Vec::new();
        for name in table.names() {
            let Some((block, rest)) = name.strip_prefix("blk.").and_then(|name| name.split_once('.')) else { continue };
            let Ok(block) = block.parse() else { continue };
            match rest {
                "ffn_gate_exps.weight" => layers.push((block, Layout::Stacked)),
                "ffn_gate_up_exps.weight" => layers.push((block, Layout::Fused)),
                "ffn_gate.0.weight" => layers.push((block, Layout::Single)),
                _ if rest.contains("_exps.") && !rest.ends_with(".weight") => {
                    return Err(OffloadError::ExtraTensor { name: name.to_owned() });
                }
                _ => {}
            }
        }
        layers.sort_unstable_by_key(|&(block, _)| block);
        if let Some(twice) = layers.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(OffloadError::ExtraTensor { name: format!("blk.{}.ffn_gate_up_exps.weight", twice[0].0) });
        }
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
        let bytes = table.files.iter().map(|file| file.map.len()).fold(0, usize::saturating_add);
        let (all, max) = (shape.layers.saturating_mul(shape.experts), bytes / EXPERT_BYTES);
        if all > max {
            return Err(OffloadError::Size { field: "experts of all layers", value: all, max });
        }
        Ok(GgufExperts { shape, layers })
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
