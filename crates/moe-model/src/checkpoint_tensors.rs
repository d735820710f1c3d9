//! Tensors of a checkpoint's files against those that its configuration implies.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::checkpoint::expected_file;
use crate::expert_layout::ExpertLayout;
use crate::{ModelError, OlmoeConfig, Result};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// End of the name of a table that old checkpoints hold and nothing reads.
const FREQUENCIES: &str = ".rotary_emb.inv_freq";

/// The tensors of all weight files, and what they should be.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    pub(crate) config: &'a OlmoeConfig,
    pub(crate) folder: &'a Path,
    pub(crate) files: &'a [PathBuf],
    pub(crate) parsed: &'a [SafeTensors<'a>],
}

impl Tensors<'_> {
    /// Checks that the files have every tensor of the model where it is read from, in the last file that has it, and no
    /// other tensor.
    pub(crate) fn check(&self, layout: ExpertLayout) -> Result<()> {
        let mut known = HashSet::new();
        for spec in self.config.each_tensor(layout) {
            let found = self
                .parsed
                .iter()
                .zip(self.files)
                .rev()
                .find_map(|(file, path)| Some((file.tensor(&spec.name).ok()?, path)));
            let Some((tensor, path)) = found else {
                let path = expected_file(self.folder, self.files, &spec.name)?;
                return Err(ModelError::MissingTensor { path, name: spec.name });
            };
            if tensor.shape() != spec.shape {
                return Err(ModelError::TensorShape {
                    path: path.clone(),
                    name: spec.name,
                    found: tensor.shape().to_vec(),
                    expected: spec.shape,
                });
            }
            if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let (path, dtype) = (path.clone(), tensor.dtype());
                return Err(ModelError::TensorType { path, name: spec.name, dtype });
            }
            known.insert(spec.name);
        }
        for (file, path) in self.parsed.iter().zip(self.files) {
            let mut names = file.names();
            names.sort_unstable();
            let extra = names.into_iter().find(|&name| !known.contains(name) && !self.may_have(file, name));
            if let Some(name) = extra {
                return Err(ModelError::ExtraTensor {
                    path: path.clone(),
                    name: name.to_owned(),
                    reason: self.reason(name),
                });
            }
        }
        Ok(())
    }

    /// Whether a tensor changes nothing.
    fn may_have(&self, file: &SafeTensors<'_>, name: &str) -> bool {
        let copy_of_embedding = || {
            let embedding = self.parsed.iter().rev().find_map(|file| file.tensor(EMBEDDING).ok());
            let (Some(embedding), Ok(head)) = (embedding, file.tensor(name)) else { return false };
            (embedding.dtype(), embedding.shape(), embedding.data()) == (head.dtype(), head.shape(), head.data())
        };
        name.ends_with(FREQUENCIES) || (name == HEAD && copy_of_embedding())
    }

    fn reason(&self, name: &str) -> String {
        let params = self.config.params();
        let number = |behind: &str| name.split_once(behind)?.1.split('.').next()?.parse::<usize>().ok();
        if number("model.layers.").is_some_and(|layer| layer >= params.num_hidden_layers) {
            format!("whose num_hidden_layers is {}", params.num_hidden_layers)
        } else if number(".mlp.experts.").is_some_and(|expert| expert >= params.num_experts) {
            format!("whose num_experts is {}", params.num_experts)
        } else if name == HEAD {
            format!("whose tie_word_embeddings is true, and it differs from {EMBEDDING}")
        } else {
            "which has none of this name".to_owned()
        }
    }
}
