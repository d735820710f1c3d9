//! The range of ids in each layer.

use crate::EMPTY_SLOT;

/// The smallest and the largest id of each layer.
pub(super) struct LayerRanges {
    ranges: Vec<Option<(u16, u16)>>,
    /// Whether no two layers in succession can be disjoint any more.
    overlap: bool,
}

impl LayerRanges {
    pub(super) fn new(layers: usize) -> LayerRanges {
        LayerRanges { ranges: vec![None; layers], overlap: layers < 2 }
    }

    /// Takes the experts of a token in all layers.
    pub(super) fn token(&mut self, row: &[u16], slots: usize) {
        if self.overlap {
            return;
        }
        for (range, cell) in self.ranges.iter_mut().zip(row.chunks_exact(slots)) {
            for &id in cell.iter().filter(|&&id| id != EMPTY_SLOT) {
                let (low, high) = range.unwrap_or((id, id));
                *range = Some((low.min(id), high.max(id)));
            }
        }
        self.overlap =
            self.ranges.windows(2).any(|pair| matches!(pair, [Some((_, high)), Some((low, _))] if low <= high));
    }

    /// Says what was seen if the ids of every layer lie above those of the layer before, and layers have several ids.
    pub(super) fn numbered_over_all_layers(&self) -> Option<String> {
        let several = self.ranges.iter().all(|range| range.is_some_and(|(low, high)| low < high));
        let [Some(first), Some(second), ..] = self.ranges.as_slice() else { return None };
        (!self.overlap && several).then(|| {
            format!(
                "the ids of each layer lie above those of the layer before ({} to {}, {} to {}, ...), as if experts were \
                 numbered over all layers: no layer uses those of another",
                first.0, first.1, second.0, second.1
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_ascend_from_layer_to_layer_are_told() {
        let told = |rows: &[&[u16]]| {
            let mut ranges = LayerRanges::new(2);
            rows.iter().for_each(|row| ranges.token(row, 2));
            ranges.numbered_over_all_layers().is_some()
        };
        assert!(told(&[&[0, 3, 4, 6], &[1, 2, 5, 7], &[3, EMPTY_SLOT, 7, 4]]));
        assert!(!told(&[&[0, 3, 4, 6], &[1, 4, 5, 7]]));
        assert!(!told(&[&[4, 6, 0, 3]]));
        assert!(!told(&[&[0, EMPTY_SLOT, 4, EMPTY_SLOT]]), "a layer of one id shows nothing");
        assert!(!told(&[]));
    }
}
