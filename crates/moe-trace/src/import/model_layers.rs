//! Layers of a file against those of the model's configuration.

use std::path::Path;

use super::{ImportOptions, record};
use crate::{ImportReport, MoeLayer, Place, Result, Stack, WarningKind};

/// The MoE layers of a file that numbers them, checked against the configuration if there is one.
///
/// A file may number the layers of the model, or count those with experts: then they get the model's numbers, with a
/// warning. Other layers without experts are refused, and missing ones are said.
pub(super) fn moe_layers(
    path: &Path,
    options: &ImportOptions,
    found: &[(Stack, u32)],
    report: &mut ImportReport,
) -> Result<Vec<MoeLayer>> {
    let mut layers: Vec<MoeLayer> = found.iter().map(|&(stack, model_layer)| MoeLayer { model_layer, stack }).collect();
    let Some(config) = &options.config else { return Ok(layers) };
    for stack in [Stack::Encoder, Stack::Decoder] {
        let Some(known) = config.stack(stack) else { continue };
        let known: Vec<u32> = known.moe_layers.iter().filter_map(|&layer| u32::try_from(layer).ok()).collect();
        let mut of_stack: Vec<&mut MoeLayer> = layers.iter_mut().filter(|layer| layer.stack == stack).collect();
        if let Some(odd) =
            of_stack.iter().find(|layer| !known.contains(&layer.model_layer)).map(|layer| layer.model_layer)
        {
            let numbers = of_stack.iter().map(|layer| known.get(layer.model_layer as usize).copied());
            let Some(numbers) = numbers.collect::<Option<Vec<u32>>>() else {
                let limit = format!("the configuration has experts in layers {known:?}");
                return Err(record(path, Place::Entry("layers".to_owned()), "layer", &odd.to_string(), limit));
            };
            let seen =
                format!("layer {odd} has no experts by the configuration: layers are taken to count those that have");
            report.warn(WarningKind::LAYERS_RENUMBERED, "number layers as the model does", || (None, seen));
            of_stack.iter_mut().zip(numbers).for_each(|(layer, number)| layer.model_layer = number);
        }
        let is_missing = |number: &&u32| of_stack.iter().all(|layer| layer.model_layer != **number);
        if !of_stack.is_empty()
            && let Some(missing) = known.iter().find(is_missing)
        {
            let count = known.len() - of_stack.len();
            let seen = format!("{count} layers of the configuration are not in the file, the first is layer {missing}");
            report.warn(WarningKind::LAYERS_MISSING, "record all layers", || (None, seen));
        }
    }
    Ok(layers)
}
