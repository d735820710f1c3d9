//! Where checkpoints keep a projection.

/// A projection within a checkpoint: a whole tensor, or one of the equal parts of a tensor that stacks several.
///
/// Layouts whose projections are not contiguous (gpt-oss as `[experts, hidden, 2 * intermediate]`, interleaved) have no
/// location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightLocation {
    pub(crate) tensor: String,
    pub(crate) part: usize,
    pub(crate) parts: usize,
}

impl WeightLocation {
    /// A tensor `[out, in]`.
    pub fn whole(tensor: impl Into<String>) -> WeightLocation {
        WeightLocation::part(tensor, 0, 1)
    }

    /// Part `part` of `parts` of a tensor whose first dimensions together are `parts * out`, and whose last one is `in`.
    ///
    /// ```
    /// use moe_offload::WeightLocation;
    /// // Granite: `input_linear` is [experts, 2 * intermediate, hidden], and expert 3's gate comes before its up.
    /// let experts = 32;
    /// let gate = WeightLocation::part("block_sparse_moe.input_linear.weight", 2 * 3, 2 * experts);
    /// let up = WeightLocation::part("block_sparse_moe.input_linear.weight", 2 * 3 + 1, 2 * experts);
    /// let down = WeightLocation::part("block_sparse_moe.output_linear.weight", 3, experts);
    /// # assert_ne!((&gate, &gate), (&up, &down));
    /// ```
    pub fn part(tensor: impl Into<String>, part: usize, parts: usize) -> WeightLocation {
        WeightLocation { tensor: tensor.into(), part, parts }
    }
}

impl From<String> for WeightLocation {
    fn from(tensor: String) -> WeightLocation {
        WeightLocation::whole(tensor)
    }
}

impl From<&str> for WeightLocation {
    fn from(tensor: &str) -> WeightLocation {
        WeightLocation::whole(tensor)
    }
}
