//! The shape of a model's routing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ExpertId, LayerId, Result, TraceError};

/// The stack that a layer belongs to in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// A decoder, or the only stack of a decoder-only model.
    Decoder,
    /// The encoder of an encoder-decoder model.
    Encoder,
}

/// Where an MoE layer stands in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoeLayer {
    /// The layer's number in its stack, dense layers counted.
    pub model_layer: u32,
    /// The stack it belongs to.
    pub stack: Stack,
}

/// MoE layers, experts a layer and experts a token of one model. Its text tells all of it, so that geometries that differ
/// have different texts.
///
/// ```
/// use moe_trace::Geometry;
/// let geometry = Geometry::decoder(24, 32, 4)?;
/// assert_eq!((geometry.layers(), geometry.experts(), geometry.top_k()), (24, 32, 4));
/// assert_eq!(geometry.to_string(), "24 MoE layers (decoder 0..=23) of 32 experts, top-4");
/// assert!(Geometry::decoder(24, 32, 33).is_err());
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedGeometry")]
pub struct Geometry {
    layers: Vec<MoeLayer>,
    experts: u16,
    top_k: u16,
}

/// A geometry as somebody wrote it.
#[derive(Deserialize)]
struct UncheckedGeometry {
    layers: Vec<MoeLayer>,
    experts: usize,
    top_k: usize,
}

impl TryFrom<UncheckedGeometry> for Geometry {
    type Error = TraceError;

    fn try_from(unchecked: UncheckedGeometry) -> Result<Geometry> {
        Geometry::new(unchecked.layers, unchecked.experts, unchecked.top_k)
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MoE layers (", self.layers.len())?;
        let follows =
            |a: &MoeLayer, b: &MoeLayer| a.stack == b.stack && a.model_layer.checked_add(1) == Some(b.model_layer);
        let mut stack = None;
        for (number, run) in self.layers.chunk_by(follows).enumerate() {
            let (first, last) = (run[0], run[run.len() - 1].model_layer);
            let comma = if number == 0 { "" } else { ", " };
            let name = match first.stack {
                _ if stack == Some(first.stack) => "",
                Stack::Decoder => "decoder ",
                Stack::Encoder => "encoder ",
            };
            stack = Some(first.stack);
            write!(f, "{comma}{name}{}", first.model_layer)?;
            if run.len() > 1 {
                write!(f, "..={last}")?;
            }
        }
        write!(f, ") of {} experts, top-{}", self.experts, self.top_k)
    }
}

impl Geometry {
    /// The largest number of experts a layer; `u16::MAX` itself marks an empty slot.
    pub const MAX_EXPERTS: usize = u16::MAX as usize;
    /// The largest number of MoE layers.
    pub const MAX_LAYERS: usize = u16::MAX as usize;
    /// The largest number of experts in all layers together, so that no claim of a file makes a cache or a histogram
    /// over all of them unaffordable.
    pub const MAX_POOL: usize = 1 << 24;

    /// Creates the geometry of the given MoE layers, each of `experts` experts of which a token uses at most `top_k`.
    ///
    /// # Errors
    /// [`TraceError::Geometry`] if there is no layer, no expert, `top_k` is 0 or above `experts`, or a count is above
    /// its limit.
    pub fn new(layers: Vec<MoeLayer>, experts: usize, top_k: usize) -> Result<Geometry> {
        let check = |field, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(TraceError::Geometry { field, value, min, max }) }
        };
        check("layers", layers.len(), 1, Self::MAX_LAYERS)?;
        check("experts", experts, 1, Self::MAX_EXPERTS)?;
        check("top_k", top_k, 1, experts)?;
        check("layers x experts", layers.len() * experts, 1, Self::MAX_POOL)?;
        let narrow = |value: usize| u16::try_from(value).expect("checked above");
        Ok(Geometry { layers, experts: narrow(experts), top_k: narrow(top_k) })
    }

    /// Creates the geometry of a decoder-only model whose layers are all MoE layers.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn decoder(layers: usize, experts: usize, top_k: usize) -> Result<Geometry> {
        if layers > Self::MAX_LAYERS {
            return Err(TraceError::Geometry { field: "layers", value: layers, min: 1, max: Self::MAX_LAYERS });
        }
        let layers = (0u32..).take(layers).map(|model_layer| MoeLayer { model_layer, stack: Stack::Decoder });
        Geometry::new(layers.collect(), experts, top_k)
    }

    /// The geometry of some of the layers.
    ///
    /// # Errors
    /// [`TraceError::NoSuchLayer`]; [`TraceError::Geometry`] if there is none.
    pub fn select(&self, layers: &[LayerId]) -> Result<Geometry> {
        let layer = |layer: &LayerId| {
            let no_such = TraceError::NoSuchLayer { layer: layer.index(), layers: self.layers.len() };
            self.layers.get(layer.index()).copied().ok_or(no_such)
        };
        Geometry::new(layers.iter().map(layer).collect::<Result<_>>()?, self.experts(), self.top_k())
    }

    /// Number of MoE layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of experts in each layer.
    pub fn experts(&self) -> usize {
        usize::from(self.experts)
    }

    /// Largest number of experts that a token uses in a layer.
    pub fn top_k(&self) -> usize {
        usize::from(self.top_k)
    }

    /// The layer ids in order.
    pub fn layer_ids(&self) -> impl ExactSizeIterator<Item = LayerId> + use<> {
        let layers = u16::try_from(self.layers.len()).expect("checked in new");
        (0..layers).map(LayerId)
    }

    /// The expert ids of a layer in order.
    pub fn expert_ids(&self) -> impl ExactSizeIterator<Item = ExpertId> + use<> {
        (0..self.experts).map(ExpertId)
    }

    /// Where the layers stand in their model.
    pub fn moe_layers(&self) -> &[MoeLayer] {
        &self.layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_geometries_name_field_value_and_limit() {
        let message = |layers, experts, top_k| Geometry::decoder(layers, experts, top_k).unwrap_err().to_string();
        assert_eq!(message(0, 4, 2), "layers is 0, allowed are 1..=65535");
        assert_eq!(message(1, 0, 1), "experts is 0, allowed are 1..=65535");
        assert_eq!(message(1, 4, 0), "top_k is 0, allowed are 1..=4");
        assert_eq!(message(1, 4, 5), "top_k is 5, allowed are 1..=4");
        assert_eq!(message(1, 65536, 5), "experts is 65536, allowed are 1..=65535");
        assert_eq!(message(70000, 4, 2), "layers is 70000, allowed are 1..=65535");
        assert_eq!(message(65535, 257, 2), "layers x experts is 16842495, allowed are 1..=16777216");
    }

    #[test]
    fn the_text_tells_every_layer() {
        let layer = |(stack, model_layer)| MoeLayer { model_layer, stack };
        let (encoder, decoder) = (Stack::Encoder, Stack::Decoder);
        let layers = [(encoder, 1), (encoder, 3), (decoder, 3), (decoder, 4), (decoder, 5), (decoder, 9)].map(layer);
        let geometry = Geometry::new(layers.to_vec(), 8, 1).unwrap();
        assert_eq!(geometry.to_string(), "6 MoE layers (encoder 1, 3, decoder 3..=5, 9) of 8 experts, top-1");
    }

    #[test]
    fn geometries_are_checked_when_they_are_deserialized() {
        let geometry = Geometry::decoder(2, 4, 2).unwrap();
        let json = serde_json::to_string(&geometry).unwrap();
        assert_eq!(serde_json::from_str::<Geometry>(&json).unwrap(), geometry);
        let message =
            serde_json::from_str::<Geometry>(r#"{"layers":[],"experts":4,"top_k":2}"#).unwrap_err().to_string();
        assert!(message.contains("layers is 0, allowed are 1..=65535"), "{message}");
    }
}
