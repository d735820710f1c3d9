//! The layers that an accumulator looks at.

use expert_cache::CacheError;
use moe_trace::{Geometry, LayerId, Sequence, Stack};

use serde::{Deserialize, Serialize};

use super::serialized::{Restore, checked_serde, intact, within};
use crate::error::{MetricError, Result, same};

/// Some layers of a trace, checked against its geometry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub(crate) struct Selection {
    #[serde(with = "layer_numbers")]
    layers: Vec<LayerId>,
    /// The stack of each layer, `[layers]`.
    stacks: Vec<Stack>,
    all_layers: usize,
    experts: usize,
}

impl Selection {
    pub(crate) fn all(geometry: &Geometry) -> Selection {
        Selection::checked(geometry, geometry.layer_ids().collect())
    }

    pub(crate) fn new(geometry: &Geometry, layers: &[LayerId]) -> Result<Selection> {
        let all_layers = geometry.layers();
        if layers.is_empty() {
            return Err(MetricError::NoLayers { layers: all_layers });
        }
        if let Some(layer) = layers.iter().find(|layer| layer.index() >= all_layers) {
            return Err(CacheError::LayerOutOfRange { layer: layer.index(), layers: all_layers }.into());
        }
        check_distinct(layers, all_layers)?;
        Ok(Selection::checked(geometry, layers.to_vec()))
    }

    fn checked(geometry: &Geometry, layers: Vec<LayerId>) -> Selection {
        let stacks = layers.iter().map(|layer| geometry.moe_layers()[layer.index()].stack).collect();
        Selection { layers, stacks, all_layers: geometry.layers(), experts: geometry.experts() }
    }

    pub(crate) fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The stack of each layer, `[layers]`.
    pub(crate) fn stacks(&self) -> &[Stack] {
        &self.stacks
    }

    pub(crate) fn experts(&self) -> usize {
        self.experts
    }

    /// A geometry that has the selected layers.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        Ok(Geometry::decoder(self.all_layers, self.experts, 1)?)
    }

    /// Checks that another accumulator looks at the same layers.
    pub(crate) fn same(&self, other: &Selection) -> Result<()> {
        same("number of MoE layers", &self.all_layers, &other.all_layers)?;
        same("number of experts a layer", &self.experts, &other.experts)?;
        same("list of layers", &self.layers, &other.layers)?;
        same("list of stacks", &self.stacks, &other.stacks)
    }

    /// Checks that the sequence belongs to a trace of this geometry.
    pub(crate) fn check(&self, sequence: &Sequence<'_>) -> Result<()> {
        let (layers, experts) = (self.all_layers, self.experts);
        let (found_layers, found_experts) = (sequence.geometry().layers(), sequence.geometry().experts());
        if (found_layers, found_experts) == (layers, experts) {
            Ok(())
        } else {
            Err(MetricError::Geometry { found_layers, found_experts, layers, experts })
        }
    }
}

/// Checks that no layer of a list of layers that exist is in it twice.
fn check_distinct(layers: &[LayerId], all_layers: usize) -> Result<()> {
    let mut seen = vec![false; all_layers];
    match layers.iter().find(|layer| std::mem::replace(&mut seen[layer.index()], true)) {
        Some(layer) => Err(MetricError::DuplicateLayer { layer: layer.index() }),
        None => Ok(()),
    }
}

checked_serde!(Selection);

impl Restore for Selection {
    fn restore(&mut self) -> Result<()> {
        within("number of experts", 1, Geometry::MAX_EXPERTS as u128, self.experts as u128)?;
        within("number of MoE layers", 1, Geometry::MAX_LAYERS as u128, self.all_layers as u128)?;
        within("number of layers", 1, u128::MAX, self.layers.len() as u128)?;
        intact("number of stacks", &self.layers.len(), &self.stacks.len())?;
        let limit = self.all_layers as u128 - 1;
        self.layers.iter().try_for_each(|layer| within("layer", 0, limit, layer.0.into()))?;
        check_distinct(&self.layers, self.all_layers)
    }
}

/// Layers by number.
mod layer_numbers {
    use moe_trace::LayerId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(layers: &[LayerId], serializer: S) -> Result<S::Ok, S::Error> {
        layers.iter().map(|layer| layer.0).collect::<Vec<u16>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LayerId>, D::Error> {
        Ok(Vec::<u16>::deserialize(deserializer)?.into_iter().map(LayerId).collect())
    }
}
