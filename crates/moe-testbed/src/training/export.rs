//! A trained model as a Hugging Face folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Var};
use moe_model::PackedExperts;
use moe_trace::write_whole;
use tokenizers::Tokenizer;

use super::{Trainer, checkpoint::write_tensors};
use crate::error::{Result, TestbedError};

impl Trainer {
    /// Writes `config.json`, `model.safetensors` in bf16 and `tokenizer.json` to a folder, which is created.
    ///
    /// Names and shapes are [`OlmoeConfig::tensors`](moe_model::OlmoeConfig::tensors); the biases of routers are f32, since
    /// a step moves them by less than bf16 can tell.
    ///
    /// # Errors
    /// [`TestbedError::Io`] if the folder cannot be written.
    pub fn export(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
        fs::create_dir_all(folder).map_err(TestbedError::io(folder))?;
        let mut tensors = Vec::new();
        for (layer, experts) in self.model.config().geometry().layer_ids().zip(&self.experts) {
            let projections = PackedExperts::named(self.model.config(), layer, experts)?;
            tensors.extend(projections.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16))));
        }
        let is_packed = |var: &Var| self.experts.iter().any(|experts| experts.id() == var.id());
        let others = self.optimizer.parameters.iter().map(|parameter| (&parameter.name, &parameter.var));
        for (name, var) in
            others.chain(self.buffers.iter().map(|(name, var)| (name, var))).filter(|(_, var)| !is_packed(var))
        {
            let dtype = if self.is_bias(var) { DType::F32 } else { DType::BF16 };
            tensors.push((name.clone(), var.to_dtype(dtype)));
        }
        let tensors = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor?)));
        // Hugging Face reads no file without this entry.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&folder.join("model.safetensors"), tensors.collect::<Result<_>>()?, metadata)?;
        let json = tokenizer.to_string(false).map_err(TestbedError::Tokenizer)?;
        let config = format!("{:#}\n", self.model.config().to_json());
        for (name, text) in [("tokenizer.json", json), ("config.json", config)] {
            let path = folder.join(name);
            write_whole(&path, text.as_bytes()).map_err(TestbedError::io(&path))?;
        }
        Ok(())
    }
}
