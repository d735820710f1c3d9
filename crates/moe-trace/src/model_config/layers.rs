//! Which layers have experts.

use serde_json::Value;

use super::StackLayers;
use super::families::{LAYERS, Rule};
use super::fields::Fields;
use crate::Result;

/// The stacks of a model.
pub(super) struct Stacks {
    pub(super) decoder: StackLayers,
    pub(super) encoder: Option<StackLayers>,
}

/// Applies the rule of the family, and holds it against every key that says something about layers.
pub(super) fn stacks(fields: &Fields<'_>) -> Result<Stacks> {
    if let Some(flag) = fields.family().flag
        && fields.value(flag).and_then(Value::as_bool) != Some(true)
    {
        let value = fields.value(flag).map_or_else(|| "missing".to_owned(), Value::to_string);
        return Err(fields.error(flag, &value, "expected true: without it the model has no experts"));
    }
    let (decoder, encoder) = match fields.family().rule {
        Rule::Layers { listed, limits } => (ruled(fields, listed, limits)?, None),
        Rule::Blocks => (blocks(fields)?, None),
        Rule::SparseLayers => {
            let decoder_layers =
                if fields.value("num_decoder_layers").is_some() { "num_decoder_layers" } else { "num_layers" };
            let encoder = sparse_layers(fields, "num_layers", "num_sparse_encoder_layers", "encoder_sparse_step")?;
            (sparse_layers(fields, decoder_layers, "num_sparse_decoder_layers", "decoder_sparse_step")?, Some(encoder))
        }
        Rule::SparseSteps => {
            let encoder = sparse_step(fields, "encoder_layers", "encoder_sparse_step")?;
            (sparse_step(fields, "decoder_layers", "decoder_sparse_step")?, Some(encoder))
        }
    };
    if decoder.iter().chain(encoder.iter().flatten()).all(|&has_experts| !has_experts) {
        let layers = decoder.len() + encoder.map_or(0, |encoder| encoder.len());
        let limit = format!("none of the {layers} layers has experts by the keys of the file");
        return Err(fields.error("layers with experts", "none", &limit));
    }
    Ok(Stacks { decoder: stack(&decoder), encoder: encoder.map(|encoder| stack(&encoder)) })
}

/// A key whose number leaves layers without experts.
#[derive(Clone, Copy)]
pub(super) enum Limit {
    /// The key, and the number that it has if the file lacks it.
    Key(&'static str, usize),
    /// The first layers are dense, and no key says so.
    FirstDense(usize),
}

/// Keys that list the layers with experts.
const LISTS: [&str; 3] = ["mlp_layer_types", "moe_layers", "moe_layers_enum"];

/// Keys that leave layers without experts.
const LIMITS: [&str; 11] = [
    "first_k_dense_replace",
    "num_dense_layers",
    "dense_mlp_idx",
    "moe_layer_num_skipped",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_freq",
    "moe_layer_interval",
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "expert_layer_period",
];

/// One flag per layer: whether it has experts.
type Mask = Vec<bool>;

fn ruled(fields: &Fields<'_>, listed: &[&str], limits: &[Limit]) -> Result<Mask> {
    let keys = fields.family().layers.keys;
    let layers = fields.layers(keys, fields.family().layers.default)?;
    // 1. The family's list, or everything that its limits leave.
    let mut mask = vec![true; layers];
    let mut source = "the rule of the family".to_owned();
    match listed.iter().find_map(|&key| fields.value(key).map(|value| (key, value))) {
        Some((key, value)) => {
            mask = list(fields, key, value, layers)?;
            key.clone_into(&mut source);
        }
        None => {
            for &limit in limits {
                let limit = match limit {
                    Limit::FirstDense(first) => (0..layers).map(|layer| layer >= first).collect(),
                    Limit::Key(key, default) => limited(fields, key, Some(default), layers)?.unwrap_or_default(),
                };
                mask.iter_mut().zip(limit).for_each(|(flag, limit)| *flag &= limit);
            }
        }
    }
    // 2. What other keys say must hold for the same layers.
    for key in LISTS {
        if let Some(value) = fields.value(key)
            && list(fields, key, value, layers)? != mask
        {
            return Err(contradiction(fields, key, value, &source, &mask));
        }
    }
    for key in LIMITS.into_iter().chain(["mlp_only_layers"]) {
        let Some(limit) = limited(fields, key, None, layers)? else { continue };
        let value = fields.value(key).unwrap_or(&Value::Null);
        let wrong = if value.is_array() && key == "moe_layer_freq" && !limits.iter().any(|own| own.is(key)) {
            limit != mask
        } else {
            mask.iter().zip(&limit).any(|(&flag, &limit)| flag && !limit)
        };
        if wrong {
            return Err(contradiction(fields, key, value, &source, &mask));
        }
    }
    Ok(mask)
}

impl Limit {
    fn is(self, key: &str) -> bool {
        matches!(self, Limit::Key(own, _) if own == key)
    }
}

fn contradiction(fields: &Fields<'_>, key: &str, value: &Value, source: &str, mask: &[bool]) -> crate::TraceError {
    let layers: Vec<String> = runs(mask);
    fields.contradiction(
        key,
        &value.to_string(),
        &format!("by {source} the layers with experts are {}", layers.join(", ")),
    )
}

/// Layers with experts as ranges, the first ten.
fn runs(mask: &[bool]) -> Vec<String> {
    let mut runs = Vec::new();
    let mut layer = 0;
    for run in mask.chunk_by(|a, b| a == b) {
        if run[0] {
            runs.push(if run.len() == 1 { layer.to_string() } else { format!("{layer}..={}", layer + run.len() - 1) });
        }
        layer += run.len();
    }
    if runs.len() > 10 {
        runs.truncate(10);
        runs.push("...".to_owned());
    }
    runs
}

/// The layers that a list names.
fn list(fields: &Fields<'_>, key: &str, value: &Value, layers: usize) -> Result<Mask> {
    let mut mask = vec![false; layers];
    let numbers = match (key, value) {
        ("mlp_layer_types", _) => {
            let words = fields.words(key, value)?;
            let mask: Result<Mask> = words.iter().map(|word| has_experts(fields, key, word)).collect();
            return per_layer(fields, key, mask?, layers);
        }
        (_, Value::String(text)) => {
            let numbers = text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::parse);
            let numbers: Result<Vec<usize>, _> = numbers.collect();
            numbers.map_err(|_| fields.error(key, text, "expected whole numbers with commas between them"))?
        }
        _ => fields.list(key, value)?,
    };
    let last = layers + fields.whole("num_nextn_predict_layers")?.unwrap_or(0);
    for layer in numbers {
        match mask.get_mut(layer) {
            Some(flag) => *flag = true,
            None if layer < last => {}
            None => return Err(fields.error(key, &layer.to_string(), &format!("the model has {layers} layers"))),
        }
    }
    Ok(mask)
}

fn has_experts(fields: &Fields<'_>, key: &str, word: &str) -> Result<bool> {
    match word {
        "sparse" | "moe" | "hash_moe" => Ok(true),
        "dense" | "mlp" => Ok(false),
        _ => Err(fields.error(key, word, "expected sparse, moe, hash_moe, dense or mlp")),
    }
}

/// A list with an entry for every layer; those of layers that only predict the next tokens may follow.
fn per_layer(fields: &Fields<'_>, key: &str, mut list: Mask, layers: usize) -> Result<Mask> {
    let further = fields.whole("num_nextn_predict_layers")?.unwrap_or(0);
    if list.len() != layers && list.len() != layers + further {
        let value = format!("a list of {}", list.len());
        return Err(fields.error(key, &value, &format!("expected one entry for each of the {layers} layers")));
    }
    list.truncate(layers);
    Ok(list)
}

/// The layers that a key leaves; `None` if neither the file nor the caller has a value for it.
fn limited(fields: &Fields<'_>, key: &str, default: Option<usize>, layers: usize) -> Result<Option<Mask>> {
    let value = fields.value(key);
    if key == "mlp_only_layers" {
        let dense = value.map(|value| fields.list(key, value)).transpose()?;
        let dense = dense.or_else(|| default.map(|first| (0..first).collect()));
        return Ok(dense.map(|dense| {
            let mut mask = vec![true; layers];
            dense.iter().filter(|&&layer| layer < layers).for_each(|&layer| mask[layer] = false);
            mask
        }));
    }
    if let Some(value) = value.filter(|value| key == "moe_layer_freq" && value.is_array()) {
        let flags = fields.list(key, value)?;
        return per_layer(fields, key, flags.iter().map(|&flag| flag != 0).collect(), layers).map(Some);
    }
    // The last layer; what `-1` stands for.
    if key == "moe_layer_end_index" && value.is_none_or(|value| value.as_i64() == Some(-1)) {
        return Ok(default.or(value.map(|_| 0)).map(|_| vec![true; layers]));
    }
    let at_least = usize::from(is_step(key));
    let number = match (value, default) {
        (Some(_), _) => fields.one_of(&[key], 0, at_least, usize::MAX)?,
        (None, Some(default)) => default,
        (None, None) => return Ok(None),
    };
    let offset = if key == "expert_layer_period" { fields.whole("expert_layer_offset")?.unwrap_or(1) } else { 0 };
    let keeps = |layer: usize| match key {
        "moe_layer_end_index" => layer <= number,
        "moe_layer_freq" => layer.is_multiple_of(number),
        "moe_layer_interval" | "decoder_sparse_step" | "interleave_moe_layer_step" => {
            (layer + 1).is_multiple_of(number)
        }
        "expert_layer_period" => layer % number == offset,
        _ => layer >= number,
    };
    Ok(Some((0..layers).map(keeps).collect()))
}

fn is_step(key: &str) -> bool {
    key.ends_with("_freq") || key.ends_with("_interval") || key.ends_with("_step") || key.ends_with("_period")
}

/// Layers of one block each, of which some are MoE blocks: a list of words, or a letter per layer.
fn blocks(fields: &Fields<'_>) -> Result<Mask> {
    const KEY: &str = "layers_block_type";
    const PATTERN: &str = "hybrid_override_pattern";
    let words = fields.value(KEY).map(|value| fields.words(KEY, value)).transpose()?;
    let words: Option<Mask> = words.map(|words| words.iter().map(|&word| word == "moe").collect());
    let letters = fields.value(PATTERN).map(|value| {
        let letters = value.as_str().filter(|text| text.chars().all(|letter| "ME*-".contains(letter)));
        let letters =
            letters.ok_or_else(|| fields.error(PATTERN, &value.to_string(), "expected letters of M, E, * and -"));
        letters.map(|letters| letters.chars().map(|letter| letter == 'E').collect::<Mask>())
    });
    let letters = letters.transpose()?;
    let (key, mask) = match (words, letters) {
        (Some(words), Some(letters)) if words != letters => {
            let value = fields.value(PATTERN).unwrap_or(&Value::Null);
            return Err(contradiction(fields, PATTERN, value, KEY, &words));
        }
        (Some(mask), _) => (KEY, mask),
        (None, Some(mask)) => (PATTERN, mask),
        (None, None) => return Err(fields.error(KEY, "missing", &format!("expected it, or {PATTERN}"))),
    };
    let layers = fields.layers(LAYERS, mask.len())?;
    if layers != mask.len() {
        return Err(fields.contradiction(LAYERS[0], &layers.to_string(), &format!("{key} has {} entries", mask.len())));
    }
    Ok(mask)
}

/// So many sparse layers, spread evenly: the second of every step. The step itself may be given.
fn sparse_layers(fields: &Fields<'_>, layers: &str, sparse: &str, step: &str) -> Result<Mask> {
    let layers = fields.layers(&[layers], 12)?;
    let counted = match fields.whole(sparse)?.unwrap_or(3) {
        0 => layers,
        sparse => layers / sparse,
    };
    let written = fields.whole(step)?;
    if let Some(written) = written.filter(|&written| fields.value(sparse).is_some() && written != counted) {
        return Err(fields.contradiction(step, &written.to_string(), &format!("by {sparse} it is {counted}")));
    }
    let step = written.unwrap_or(counted);
    Ok((0..layers).map(|layer| step == 1 || step > 0 && layer % step == 1).collect())
}

/// The last layer of every step is sparse.
fn sparse_step(fields: &Fields<'_>, layers: &str, step: &str) -> Result<Mask> {
    let layers = fields.layers(&[layers], 12)?;
    let step = fields.whole(step)?.unwrap_or(4);
    Ok((0..layers).map(|layer| step > 0 && (layer + 1).is_multiple_of(step)).collect())
}

fn stack(mask: &[bool]) -> StackLayers {
    StackLayers { layers: mask.len(), moe_layers: (0..mask.len()).filter(|&layer| mask[layer]).collect() }
}
