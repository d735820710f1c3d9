//! How many slots each layer gets.

use crate::{CacheError, Result};

/// What slots are worth to one layer, or to any other pool.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerValue {
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Entry `i` is the value of `i + 1` slots: expected hits, or minus the expected time. Need not be concave, nor even
    /// grow.
    pub values: Vec<f64>,
}

/// Slots of each layer, and what they are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Slots of each layer, at least 1.
    pub slots: Vec<usize>,
    /// Bytes of all slots.
    pub bytes: u64,
    /// Sum of the layers' values.
    pub value: f64,
    /// No allocation of these bytes is worth more; equal to `value` unless [`best_allocation`] says otherwise.
    pub bound: f64,
}

/// Cells of the table of the dynamic programme, beyond which the hulls are used.
const MOST_CELLS: u64 = 1 << 24;

/// The allocation of `bytes` over layers that is worth most; every layer gets at least one slot.
///
/// # Formula
/// Maximizes `sum of values[l][slots[l] - 1]` under `sum of slots[l] * slot_bytes[l] <= bytes`.
///
/// If all slots have one size and the values of every layer are concave in the number of slots, taking the largest gain
/// again and again is exact. Otherwise a dynamic programme over multiples of the greatest common divisor of the sizes is
/// exact, too. If its table would have more than 2^24 cells, gains are taken along the concave hulls of the values: then
/// `bound` is what the hulls, filled to the last byte, would be worth.
///
/// # Complexity
/// `O(total slots * log layers)` for concave values, `O(layers * multiples * experts)` otherwise.
///
/// # Errors
/// [`CacheError::NoLayers`]; [`CacheError::LayerValue`] for a layer without values, values that are not finite, or slots
/// of no bytes; [`CacheError::Budget`] if the bytes do not suffice for a slot a layer.
///
/// ```
/// use expert_cache::{LayerValue, best_allocation};
/// let layer = |values: [f64; 3]| LayerValue { slot_bytes: 10, values: values.to_vec() };
/// // The second slot of the first layer gains 1, the second and third of the other 5 and 4.
/// let allocation = best_allocation(&[layer([7.0, 8.0, 8.5]), layer([1.0, 6.0, 10.0])], 45)?;
/// assert_eq!((allocation.slots, allocation.bytes, allocation.value), (vec![1, 3], 40, 17.0));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
pub fn best_allocation(layers: &[LayerValue], bytes: u64) -> Result<Allocation> {
    let least = check(layers, bytes)?;
    if all_concave_of_one_size(layers) {
        return Ok(along_hulls(layers, bytes, least));
    }
    let unit = layers.iter().map(|layer| layer.slot_bytes).fold(0, greatest_common_divisor);
    let most = layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.slot_bytes.saturating_mul(layer.values.len() as u64)));
    let units = bytes.min(most) / unit;
    match usize::try_from(units) {
        Ok(units) if (units as u64 + 1).saturating_mul(layers.len() as u64) <= MOST_CELLS => {
            Ok(by_table(layers, unit, units))
        }
        _ => Ok(along_hulls(layers, bytes, least)),
    }
}

/// The same number of slots for every layer, as many as fit.
///
/// # Errors
/// As [`best_allocation`].
pub fn uniform_allocation(layers: &[LayerValue], bytes: u64) -> Result<Allocation> {
    let least = check(layers, bytes)?;
    let widest = layers.iter().map(|layer| layer.values.len()).max().unwrap_or(1);
    let each = usize::try_from(bytes / least).unwrap_or(usize::MAX).clamp(1, widest);
    Ok(allocation(layers, layers.iter().map(|layer| each.min(layer.values.len())).collect()))
}

/// Bytes of one slot a layer.
fn check(layers: &[LayerValue], bytes: u64) -> Result<u64> {
    if layers.is_empty() {
        return Err(CacheError::NoLayers);
    }
    for (layer, LayerValue { slot_bytes, values }) in layers.iter().enumerate() {
        let wrong = |problem| Err(CacheError::LayerValue { layer, problem });
        if *slot_bytes == 0 {
            return wrong("slots of 0 bytes");
        }
        if values.is_empty() {
            return wrong("no values");
        }
        if values.iter().any(|value| !value.is_finite()) {
            return wrong("a value that is not finite");
        }
    }
    let least = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.slot_bytes));
    if bytes < least { Err(CacheError::Budget { bytes, least }) } else { Ok(least) }
}

fn allocation(layers: &[LayerValue], slots: Vec<usize>) -> Allocation {
    let bytes = layers.iter().zip(&slots).map(|(layer, &slots)| layer.slot_bytes * slots as u64).sum();
    let value = layers.iter().zip(&slots).map(|(layer, &slots)| layer.values[slots - 1]).sum();
    Allocation { slots, bytes, value, bound: value }
}

fn all_concave_of_one_size(layers: &[LayerValue]) -> bool {
    let is_concave = |values: &[f64]| values.windows(3).all(|v| v[2] - v[1] <= v[1] - v[0]);
    layers.iter().all(|layer| layer.slot_bytes == layers[0].slot_bytes && is_concave(&layer.values))
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if a == 0 { b } else { greatest_common_divisor(b % a, a) }
}

/// A step along the concave hull of a layer's values.
#[derive(Clone, Copy)]
struct Step {
    layer: usize,
    to_slots: usize,
    bytes: u64,
    gain: f64,
}

/// Corners of the concave hull, from one slot up to the highest value.
fn hull(layer: usize, LayerValue { slot_bytes, values }: &LayerValue) -> Vec<Step> {
    let mut corners = vec![0];
    let slope = |from: usize, to: usize| (values[to] - values[from]) / (to - from) as f64;
    for point in 1..values.len() {
        while let [.., before, last] = corners[..]
            && slope(before, last) < slope(last, point)
        {
            corners.pop();
        }
        corners.push(point);
    }
    let step = |pair: &[usize]| Step {
        layer,
        to_slots: pair[1] + 1,
        bytes: slot_bytes * (pair[1] - pair[0]) as u64,
        gain: values[pair[1]] - values[pair[0]],
    };
    corners.windows(2).map(step).take_while(|step| step.gain > 0.0).collect()
}

/// Takes the steps of largest gain a byte as long as they fit.
fn along_hulls(layers: &[LayerValue], bytes: u64, least: u64) -> Allocation {
    let mut steps: Vec<Step> = layers.iter().enumerate().flat_map(|(index, layer)| hull(index, layer)).collect();
    // Slopes of a layer fall along its hull, and the sort is stable: a layer's steps stay in order.
    steps.sort_by(|a, b| (b.gain / b.bytes as f64).total_cmp(&(a.gain / a.bytes as f64)));
    let (mut slots, mut left) = (vec![1; layers.len()], bytes - least);
    let mut value: f64 = layers.iter().map(|layer| layer.values[0]).sum();
    let mut full = vec![false; layers.len()];
    // The hulls filled to the last byte: the first step that does not fit, in part.
    let mut bound = None;
    for step in steps {
        full[step.layer] |= step.bytes > left;
        if full[step.layer] {
            bound.get_or_insert(value + left as f64 * step.gain / step.bytes as f64);
            continue;
        }
        slots[step.layer] = step.to_slots;
        value += step.gain;
        left -= step.bytes;
    }
    let mut found = allocation(layers, slots);
    if !all_concave_of_one_size(layers) {
        found.bound = bound.map_or(found.value, |bound| bound.max(found.value));
    }
    found
}

/// Dynamic programme: the highest value of the layers so far in at most so many units.
fn by_table(layers: &[LayerValue], unit: u64, units: usize) -> Allocation {
    let mut best = vec![0.0; units + 1];
    let mut choices = Vec::with_capacity(layers.len());
    for layer in layers {
        let size = usize::try_from(layer.slot_bytes / unit).expect("a slot fits into the budget");
        let mut next = vec![f64::NEG_INFINITY; units + 1];
        let mut choice = vec![0u32; units + 1];
        for room in size..=units {
            for (slots, &value) in (1u32..).zip(layer.values.iter().take(room / size)) {
                let total = best[room - slots as usize * size] + value;
                if total > next[room] {
                    (next[room], choice[room]) = (total, slots);
                }
            }
        }
        (best, choices) = (next, {
            choices.push((size, choice));
            choices
        });
    }
    let mut room = units;
    let mut slots: Vec<usize> = Vec::with_capacity(layers.len());
    for (size, choice) in choices.iter().rev() {
        let chosen = choice[room] as usize;
        slots.push(chosen);
        room -= chosen * size;
    }
    slots.reverse();
    allocation(layers, slots)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every allocation is tried.
    fn exhaustive(layers: &[LayerValue], bytes: u64) -> f64 {
        let Some((first, rest)) = layers.split_first() else { return 0.0 };
        let fits = (1..=first.values.len()).filter(|&slots| slots as u64 * first.slot_bytes <= bytes);
        fits.map(|slots| first.values[slots - 1] + exhaustive(rest, bytes - slots as u64 * first.slot_bytes))
            .fold(f64::NEG_INFINITY, f64::max)
    }

    fn layers(sizes: std::ops::Range<u64>) -> impl Strategy<Value = Vec<LayerValue>> {
        let layer = (sizes, proptest::collection::vec(-20i32..20, 1..6)).prop_map(|(slot_bytes, values)| LayerValue {
            slot_bytes,
            values: values.into_iter().map(f64::from).collect(),
        });
        proptest::collection::vec(layer, 1..5)
    }

    proptest! {
        #[test]
        fn the_best_is_the_exhaustive_best(layers in layers(1..7), bytes in 1u64..60) {
            let least: u64 = layers.iter().map(|layer| layer.slot_bytes).sum();
            if bytes < least {
                prop_assert!(best_allocation(&layers, bytes).is_err());
                return Ok(());
            }
            let found = best_allocation(&layers, bytes).unwrap();
            prop_assert_eq!(found.value, exhaustive(&layers, bytes));
            prop_assert_eq!(found.bound, found.value);
            prop_assert!(found.bytes <= bytes);
            prop_assert!(uniform_allocation(&layers, bytes).unwrap().value <= found.value);
        }

        #[test]
        fn gains_are_exact_where_values_are_concave(mut layers in layers(3..4), bytes in 12u64..60) {
            for layer in &mut layers {
                let mut gains: Vec<f64> = layer.values.clone();
                gains.sort_by(|a, b| b.total_cmp(a));
                layer.values = gains.iter().scan(0.0, |sum, gain| { *sum += gain; Some(*sum) }).collect();
            }
            let least = 3 * layers.len() as u64;
            prop_assert_eq!(along_hulls(&layers, bytes, least).value, exhaustive(&layers, bytes));
        }

        #[test]
        fn hulls_are_valid_and_bounded(layers in layers(1..7), bytes in 28u64..80) {
            let least: u64 = layers.iter().map(|layer| layer.slot_bytes).sum();
            let found = along_hulls(&layers, bytes, least);
            let best = exhaustive(&layers, bytes);
            prop_assert!(found.bytes <= bytes && found.value <= best && best <= found.bound + 1e-9);
        }
    }

    #[test]
    fn bad_budgets_say_why() {
        let layer = |slot_bytes, values: &[f64]| LayerValue { slot_bytes, values: values.to_vec() };
        let message = |layers: &[LayerValue], bytes| best_allocation(layers, bytes).unwrap_err().to_string();
        assert_eq!(message(&[], 1), "there are no layers");
        assert_eq!(message(&[layer(4, &[1.0]), layer(4, &[])], 9), "value of layer 1: no values");
        assert_eq!(message(&[layer(0, &[1.0])], 9), "value of layer 0: slots of 0 bytes");
        assert_eq!(message(&[layer(4, &[f64::NAN])], 9), "value of layer 0: a value that is not finite");
        assert_eq!(message(&[layer(4, &[1.0]), layer(6, &[1.0])], 9), "9 bytes are too few, one slot a layer takes 10");
    }
}
