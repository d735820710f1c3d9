//! Training runs that can be interrupted.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use moe_model::OlmoeConfig;
use moe_trace::write_whole;
use safetensors::SafeTensors;
use serde_json::Value;

use super::{TrainOptions, Trainer, adamw::Parameter, checkpoint_digest};
use crate::{
    error::{Result, TestbedError},
    text::TokenizedCorpus,
};

/// Prefixes of a parameter's value and moments in a checkpoint.
const PARTS: [&str; 3] = ["value.", "first.", "second."];
/// Prefix of what no gradient changes.
const BUFFER: &str = "buffer.";
/// The metadata entry that describes the run.
const RUN: &str = "run";

impl Trainer {
    /// Writes all that a run needs to go on: weights, moments, routers' biases, step, options, and a digest of the file. The
    /// file is complete or not there.
    ///
    /// # Errors
    /// [`TestbedError::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for parameter in &self.optimizer.parameters {
            let moment = |values: &[f32]| Tensor::from_slice(values, parameter.var.shape(), &Device::Cpu);
            let values = [parameter.var.as_tensor().clone(), moment(&parameter.first)?, moment(&parameter.second)?];
            tensors.extend(PARTS.iter().zip(values).map(|(part, value)| (format!("{part}{}", parameter.name), value)));
        }
        let buffers = self.buffers.iter().map(|(name, var)| (format!("{BUFFER}{name}"), var.as_tensor().clone()));
        tensors.extend(buffers);
        let run = serde_json::json!({
            checkpoint_digest::NAME: checkpoint_digest::ZEROS,
            "step": self.step(),
            "options": json(path, &self.options)?,
            "config": self.model.config().to_json(),
            "tokens": self.batches.stream_lengths(),
        });
        // One entry, because a map of several has no one order.
        let mut bytes = serialize(path, tensors, HashMap::from([(RUN.to_owned(), run.to_string())]))?;
        checkpoint_digest::seal(&mut bytes);
        write_whole(path, &bytes).map_err(TestbedError::io(path))
    }

    /// Goes on with a saved run; what follows is bit-identical to a run that was never interrupted.
    ///
    /// # Errors
    /// A file that cannot be read or is not a checkpoint; [`TestbedError::DamagedCheckpoint`] if its digest is not that of
    /// its bytes; [`TestbedError::OtherCheckpoint`] if it belongs to another configuration, other options or another corpus;
    /// as [`Trainer::new`].
    pub fn resume(
        config: &OlmoeConfig,
        corpus: &TokenizedCorpus,
        options: TrainOptions,
        device: &Device,
        path: &Path,
    ) -> Result<Trainer> {
        let mut trainer = Trainer::new(config, corpus, options, device)?;
        let misfit = |entry: &str| TestbedError::Checkpoint { path: path.to_owned(), entry: entry.to_owned() };
        let bytes = fs::read(path).map_err(TestbedError::io(path))?;
        let malformed = |source| TestbedError::Safetensors { path: path.to_owned(), source };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
        SafeTensors::deserialize(&bytes).map_err(malformed)?;
        checkpoint_digest::check(&bytes)
            .map_err(|problem| TestbedError::DamagedCheckpoint { path: path.to_owned(), problem })?;
        let run =
            header.metadata().as_ref().and_then(|metadata| metadata.get(RUN)).ok_or_else(|| misfit("metadata"))?;
        let run: Value =
            serde_json::from_str(run).map_err(|source| TestbedError::Json { path: path.to_owned(), source })?;
        for (entry, ours) in [("options", json(path, &trainer.options)?), ("config", config.to_json())] {
            if let Some((name, found, expected)) = difference(entry, &run[entry], &ours) {
                return Err(TestbedError::OtherCheckpoint { path: path.to_owned(), name, found, expected });
            }
        }
        let tokens = serde_json::json!(trainer.batches.stream_lengths());
        if let Some((name, found, expected)) = difference("training tokens of each domain", &run["tokens"], &tokens) {
            return Err(TestbedError::OtherCheckpoint { path: path.to_owned(), name, found, expected });
        }
        let step = run["step"].as_u64().filter(|&step| step <= trainer.options.steps).ok_or_else(|| misfit("step"))?;

        let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let mut take = |part: &str, name: &str, var: &Var| {
            let name = format!("{part}{name}");
            let fits = |tensor: &Tensor| tensor.dims() == var.dims() && tensor.dtype() == var.dtype();
            let tensor = tensors.remove(&name).filter(fits);
            Ok::<_, TestbedError>(tensor.ok_or_else(|| misfit(&name))?.to_device(device)?)
        };
        for (name, var) in &trainer.buffers {
            var.set(&take(BUFFER, name, var)?)?;
        }
        for Parameter { name, var, first, second } in &mut trainer.optimizer.parameters {
            let mut part = |part| take(part, name, var);
            let [value, mean, square] = [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?];
            *first = mean.flatten_all()?.to_vec1()?;
            *second = square.flatten_all()?.to_vec1()?;
            var.set(&value)?;
        }
        if let Some(name) = tensors.keys().min() {
            return Err(misfit(name));
        }
        trainer.optimizer.steps = step;
        Ok(trainer)
    }
}

/// Writes a safetensors file that is complete or not there.
pub(super) fn write_tensors(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    write_whole(path, &serialize(path, tensors, metadata)?).map_err(TestbedError::io(path))
}

fn serialize(path: &Path, tensors: Vec<(String, Tensor)>, metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    safetensors::serialize(tensors, Some(metadata))
        .map_err(|source| TestbedError::Safetensors { path: path.to_owned(), source })
}

fn json(path: &Path, options: &TrainOptions) -> Result<Value> {
    serde_json::to_value(options).map_err(|source| TestbedError::Json { path: path.to_owned(), source })
}

/// The first entry in which two values differ: its name, and both values.
fn difference(name: &str, found: &Value, expected: &Value) -> Option<(String, String, String)> {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected.keys().chain(found.keys()).find_map(|key| {
            let value = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or_default();
            difference(&format!("{name}.{key}"), &value(found), &value(expected))
        }),
        _ => (found != expected).then(|| (name.to_owned(), found.to_string(), expected.to_string())),
    }
}
