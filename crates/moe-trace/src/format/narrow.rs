//! The narrowest type that holds values exactly.

use std::borrow::Cow;

use half::{bf16, f16};
use safetensors::Dtype;

/// The bytes of `values` as F16 or BF16 if every value is exactly one of these (what a model computed in half precision
/// is), and as F32 otherwise.
pub(super) fn narrowest(values: &[f32]) -> (Dtype, Cow<'_, [u8]>) {
    // Bit patterns are compared, so that a NaN stays the NaN it was and -0 stays -0.
    if values.iter().all(|value| f16::from_f32(*value).to_f32().to_bits() == value.to_bits()) {
        let narrow: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        (Dtype::F16, Cow::Owned(narrow))
    } else if values.iter().all(|value| bf16::from_f32(*value).to_f32().to_bits() == value.to_bits()) {
        let narrow: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        (Dtype::BF16, Cow::Owned(narrow))
    } else {
        (Dtype::F32, Cow::Borrowed(bytemuck::cast_slice(values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_narrowed_only_where_nothing_is_lost() {
        assert_eq!(narrowest(&[0.5, -0.0, f32::NEG_INFINITY]).0, Dtype::F16);
        assert_eq!(narrowest(&[1e20f32, 0.5]).0, Dtype::F32);
        assert_eq!(narrowest(&[bf16::from_f32(1e20).to_f32(), 0.5]).0, Dtype::BF16);
        assert_eq!(narrowest(&[0.1, 0.5]).0, Dtype::F32);
        let (_, bytes) = narrowest(&[0.1f32]);
        assert_eq!(bytes.as_ref(), 0.1f32.to_le_bytes());
    }
}
