//! How the weights of an expert are stored.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

use crate::error::{OffloadError, Result};

/// Type of expert weights: floating point numbers, or blocks of quantized ones as in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of the formats")]
pub enum WeightType {
    F32,
    F16,
    BF16,
    #[serde(rename = "q4_0")]
    Q4_0,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "q5_0")]
    Q5_0,
    #[serde(rename = "q5_1")]
    Q5_1,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q2_k")]
    Q2K,
    #[serde(rename = "q3_k")]
    Q3K,
    #[serde(rename = "q4_k")]
    Q4K,
    #[serde(rename = "q5_k")]
    Q5K,
    #[serde(rename = "q6_k")]
    Q6K,
}

impl WeightType {
    /// Every type, the widest first.
    pub const ALL: [WeightType; 13] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q8_0,
        WeightType::Q6K,
        WeightType::Q5_1,
        WeightType::Q5_0,
        WeightType::Q5K,
        WeightType::Q4_1,
        WeightType::Q4_0,
        WeightType::Q4K,
        WeightType::Q3K,
        WeightType::Q2K,
    ];

    /// The block format, `None` for floating point numbers.
    pub fn ggml(self) -> Option<GgmlDType> {
        Some(match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => return None,
            WeightType::Q4_0 => GgmlDType::Q4_0,
            WeightType::Q4_1 => GgmlDType::Q4_1,
            WeightType::Q5_0 => GgmlDType::Q5_0,
            WeightType::Q5_1 => GgmlDType::Q5_1,
            WeightType::Q8_0 => GgmlDType::Q8_0,
            WeightType::Q2K => GgmlDType::Q2K,
            WeightType::Q3K => GgmlDType::Q3K,
            WeightType::Q4K => GgmlDType::Q4K,
            WeightType::Q5K => GgmlDType::Q5K,
            WeightType::Q6K => GgmlDType::Q6K,
        })
    }

    /// The number type, `None` for quantized blocks.
    pub fn dense(self) -> Option<DType> {
        match self {
            WeightType::F32 => Some(DType::F32),
            WeightType::F16 => Some(DType::F16),
            WeightType::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// Type of the tokens that are multiplied with such weights: their own, or f32 for quantized ones.
    pub fn activations(self) -> DType {
        self.dense().unwrap_or(DType::F32)
    }

    /// Weights of a block: a row's length must be a multiple of it.
    pub fn block_weights(self) -> usize {
        self.ggml().map_or(1, |ggml| ggml.block_size())
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match (self.ggml(), self.dense()) {
            (Some(ggml), _) => ggml.type_size(),
            (None, Some(dense)) => dense.size_in_bytes(),
            (None, None) => unreachable!("a type is dense or quantized"),
        }
    }

    /// Bytes of a matrix `[rows, columns]`.
    ///
    /// ```
    /// use moe_offload::WeightType;
    /// assert_eq!(WeightType::BF16.bytes(4, 64), 512);
    /// assert_eq!(WeightType::Q8_0.bytes(4, 64), 4 * 2 * 34);
    /// ```
    ///
    /// # Panics
    /// If the matrix does not fit the address space.
    pub fn bytes(self, rows: usize, columns: usize) -> usize {
        let blocks = columns.div_ceil(self.block_weights());
        rows.checked_mul(blocks).and_then(|blocks| blocks.checked_mul(self.block_bytes())).expect("fits memory")
    }

    /// Number of the type in GGUF files.
    pub(crate) fn gguf_id(self) -> u32 {
        match self {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Q4_0 => 2,
            WeightType::Q4_1 => 3,
            WeightType::Q5_0 => 6,
            WeightType::Q5_1 => 7,
            WeightType::Q8_0 => 8,
            WeightType::Q2K => 10,
            WeightType::Q3K => 11,
            WeightType::Q4K => 12,
            WeightType::Q5K => 13,
            WeightType::Q6K => 14,
            WeightType::BF16 => 30,
        }
    }

    /// Name, as in GGUF: `f32`, `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::BF16 => "bf16",
            WeightType::Q4_0 => "q4_0",
            WeightType::Q4_1 => "q4_1",
            WeightType::Q5_0 => "q5_0",
            WeightType::Q5_1 => "q5_1",
            WeightType::Q8_0 => "q8_0",
            WeightType::Q2K => "q2_k",
            WeightType::Q3K => "q3_k",
            WeightType::Q4K => "q4_k",
            WeightType::Q5K => "q5_k",
            WeightType::Q6K => "q6_k",
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WeightType {
    type Err = OffloadError;

    /// Reads a [name](WeightType::name) in any case.
    fn from_str(name: &str) -> Result<WeightType> {
        let found = WeightType::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| OffloadError::WeightTypeName { name: name.to_owned() })
    }
}

impl TryFrom<DType> for WeightType {
    type Error = OffloadError;

    fn try_from(dtype: DType) -> Result<WeightType> {
        let known = WeightType::ALL.into_iter().find(|known| known.dense() == Some(dtype));
        known.ok_or_else(|| OffloadError::WeightTypeName { name: dtype.as_str().to_owned() })
    }
}

impl TryFrom<GgmlDType> for WeightType {
    type Error = OffloadError;

    fn try_from(dtype: GgmlDType) -> Result<WeightType> {
        match dtype {
            GgmlDType::F32 => Ok(WeightType::F32),
            GgmlDType::F16 => Ok(WeightType::F16),
            GgmlDType::BF16 => Ok(WeightType::BF16),
            dtype => {
                let known = WeightType::ALL.into_iter().find(|known| known.ggml() == Some(dtype));
                known.ok_or_else(|| OffloadError::WeightTypeName { name: format!("{dtype:?}") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_lead_back() {
        for known in WeightType::ALL {
            assert_eq!(known.name().parse::<WeightType>().unwrap(), known);
            assert_eq!(serde_json::to_string(&known).unwrap(), format!("\"{known}\""));
            match (known.dense(), known.ggml()) {
                (Some(dense), None) => assert_eq!(WeightType::try_from(dense).unwrap(), known),
                (None, Some(ggml)) => assert_eq!(WeightType::try_from(ggml).unwrap(), known),
                both => panic!("{known}: {both:?}"),
            }
        }
        assert!(
            "q9".parse::<WeightType>().unwrap_err().to_string().starts_with("q9 is no weight type, known are f32,")
        );
        assert!(WeightType::try_from(DType::F64).is_err() && WeightType::try_from(GgmlDType::Q8_1).is_err());
    }
}
