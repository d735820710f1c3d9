//! Cache sizes as multiples of the experts of a token.

use anyhow::{Result, ensure};
use moe_trace::Geometry;

use crate::{each_once, outln};

/// Returns the slots per layer of a cache of `rho` times the experts of a token, at least one.
///
/// # Errors
/// A cache of more slots than a layer has experts.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 1 to experts")]
#[expect(clippy::cast_precision_loss, reason = "both are at most 65535")]
pub fn slots_of(rho: f64, geometry: &Geometry) -> Result<usize> {
    let (experts, top_k) = (geometry.experts(), geometry.top_k());
    let slots = (rho * top_k as f64).round().max(1.0);
    ensure!(
        slots <= experts as f64,
        "--rho is {rho}, with {experts} experts per layer and {top_k} per token it must be at most {:.2}",
        experts as f64 / top_k as f64
    );
    Ok(slots as usize)
}

/// Returns the cache sizes to try, each with its slots per layer: those that were given, or the usual ones that a layer has
/// experts for.
///
/// # Errors
/// A given size that is too large, or is there twice.
pub fn cache_sizes(given: Option<&[f64]>, usual: &[f64], geometry: &Geometry) -> Result<Vec<(f64, usize)>> {
    let with_slots = |&rho: &f64| Ok((rho, slots_of(rho, geometry)?));
    if let Some(given) = given {
        each_once("--rho", given)?;
        return given.iter().map(with_slots).collect();
    }
    let fitting: Vec<(f64, usize)> = usual.iter().filter_map(|rho| with_slots(rho).ok()).collect();
    if fitting.len() < usual.len() {
        outln!("cache sizes of more slots than the {} experts of a layer are left out", geometry.experts());
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_at_least_one_slot_and_at_most_a_layer() {
        let geometry = Geometry::decoder(1, 30, 4).unwrap();
        assert_eq!([0.01, 1.0, 1.5, 7.5].map(|rho| slots_of(rho, &geometry).unwrap()), [1, 4, 6, 30]);
        let error = slots_of(1e9, &geometry).unwrap_err().to_string();
        assert_eq!(error, "--rho is 1000000000, with 30 experts per layer and 4 per token it must be at most 7.50");
    }

    #[test]
    fn usual_sizes_that_are_too_large_are_left_out_and_given_ones_refused() {
        let geometry = Geometry::decoder(1, 8, 4).unwrap();
        assert_eq!(cache_sizes(None, &[1.0, 2.0, 3.0], &geometry).unwrap(), [(1.0, 4), (2.0, 8)]);
        assert_eq!(cache_sizes(Some(&[1.5]), &[1.0], &geometry).unwrap(), [(1.5, 6)]);
        assert!(cache_sizes(Some(&[1.0, 3.0]), &[1.0], &geometry).is_err());
        assert!(cache_sizes(Some(&[1.0, 1.0]), &[1.0], &geometry).is_err());
    }
}
