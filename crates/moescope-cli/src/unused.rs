//! Layers that means and pools leave out.

use anyhow::Result;
use moe_trace::RoutingSource;

/// Returns the numbers of the MoE layers of which no token uses an expert. Reading stops as soon as every layer is used.
///
/// # Errors
/// A sequence that is broken.
pub fn layers_without_access(trace: &dyn RoutingSource) -> Result<Vec<usize>> {
    let mut unused: Vec<_> = trace.geometry().layer_ids().collect();
    for index in 0..trace.len() {
        if unused.is_empty() {
            break;
        }
        let sequence = trace.sequence(index)?;
        unused.retain(|&layer| (0..sequence.len()).all(|token| sequence.experts(token, layer).next().is_none()));
    }
    Ok(unused.into_iter().map(|layer| layer.index()).collect())
}

/// What follows for figures over layers.
pub const LEFT_OUT: &str = "left out of means and pools over layers";
/// What follows for predicted and measured times.
pub const NO_COST: &str = "experts of these layers take no time here";

/// Returns the line that names the layers that no token uses, and what follows; none if there are no such layers.
pub fn unused_layers(layers: &[usize], consequence: &str) -> Option<String> {
    let numbers = layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    (!layers.is_empty()).then(|| format!("no token uses an expert of MoE layer {numbers}: {consequence}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named() {
        assert_eq!(unused_layers(&[], LEFT_OUT), None);
        let line = unused_layers(&[0, 1], LEFT_OUT).unwrap();
        assert_eq!(line, "no token uses an expert of MoE layer 0, 1: left out of means and pools over layers");
    }
}
