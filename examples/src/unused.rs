//! Layers that means and pools leave out.

/// Returns the line under a table of means and pools that leave out layers; none if they leave out none.
pub fn unused_layers(layers: &[usize]) -> Option<String> {
    let numbers = layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    (!layers.is_empty())
        .then(|| format!("no token uses an expert of MoE layer {numbers}: left out of means and pools over layers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named() {
        assert_eq!(unused_layers(&[]), None);
        let line = unused_layers(&[0, 1]).unwrap();
        assert_eq!(line, "no token uses an expert of MoE layer 0, 1: left out of means and pools over layers");
    }
}
