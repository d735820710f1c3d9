//! How the three projections of an expert are stored.

use std::fmt;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::weights::WeightType;

/// Types of an expert's projections: quantized models often keep one of them, and that only in some layers, in more bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertTypes {
    /// Type of the gate projection.
    pub gate: WeightType,
    /// Type of the up projection.
    pub up: WeightType,
    /// Type of the down projection.
    pub down: WeightType,
}

impl ExpertTypes {
    /// The same type for all three projections.
    pub const fn alike(all: WeightType) -> ExpertTypes {
        ExpertTypes { gate: all, up: all, down: all }
    }

    /// The types in order: gate, up, down.
    pub fn each(self) -> [WeightType; 3] {
        [self.gate, self.up, self.down]
    }

    /// Type of the tokens that such an expert is at its best with: that of its projections, or f32 if they are quantized or
    /// differ.
    ///
    /// ```
    /// use candle_core::DType;
    /// use moe_offload::{ExpertTypes, WeightType};
    /// let mixed = ExpertTypes { down: WeightType::Q6K, ..WeightType::Q4K.into() };
    /// assert_eq!(mixed.activations(), DType::F32);
    /// assert_eq!(ExpertTypes::from(WeightType::BF16).activations(), DType::BF16);
    /// ```
    pub fn activations(self) -> DType {
        let [gate, up, down] = self.each().map(WeightType::activations);
        if gate == up && up == down { gate } else { DType::F32 }
    }
}

impl From<WeightType> for ExpertTypes {
    fn from(all: WeightType) -> ExpertTypes {
        ExpertTypes::alike(all)
    }
}

impl From<[WeightType; 3]> for ExpertTypes {
    fn from([gate, up, down]: [WeightType; 3]) -> ExpertTypes {
        ExpertTypes { gate, up, down }
    }
}

impl fmt::Display for ExpertTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gate == self.up && self.up == self.down {
            true => f.pad(self.gate.name()),
            false => f.pad(&self.each().map(WeightType::name).join("/")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_differs() {
        let mixed = ExpertTypes::from([WeightType::Q4K, WeightType::Q4K, WeightType::Q6K]);
        assert_eq!(format!("{mixed:>15}"), " q4_k/q4_k/q6_k");
        assert_eq!(ExpertTypes::from(WeightType::F16).to_string(), "f16");
        assert_eq!(ExpertTypes::from([WeightType::F16, WeightType::F32, WeightType::F16]).activations(), DType::F32);
    }
}
