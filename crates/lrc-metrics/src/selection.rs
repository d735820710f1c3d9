//! The layers that an accumulator looks at.

use expert_cache::CacheError;
use moe_trace::{Geometry, LayerId, Sequence};

use crate::{MetricError, Result};

/// Some layers of a trace, checked against its geometry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    layers: Vec<LayerId>,
    all_layers: usize,
    experts: usize,
}

impl Selection {
    pub(crate) fn all(geometry: &Geometry) -> Selection {
        let layers = geometry.layer_ids().collect();
        Selection { layers, all_layers: geometry.layers(), experts: geometry.experts() }
    }

    pub(crate) fn new(geometry: &Geometry, layers: &[LayerId]) -> Result<Selection> {
        let all_layers = geometry.layers();
        if layers.is_empty() {
            return Err(MetricError::NoLayers { layers: all_layers });
        }
        if let Some(layer) = layers.iter().find(|layer| layer.index() >= all_layers) {
            return Err(CacheError::LayerOutOfRange { layer: layer.index(), layers: all_layers }.into());
        }
        Ok(Selection { layers: layers.to_vec(), all_layers, experts: geometry.experts() })
    }

    pub(crate) fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    pub(crate) fn experts(&self) -> usize {
        self.experts
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
