//! A Hugging Face model folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use memmap2::Mmap;
use moe_offload::{ResidentExperts, WeightLocation};
use moe_trace::{ExpertId, LayerId};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::checkpoint_tensors::Tensors;
use crate::expert_layout::{ExpertLayout, StackedFiles};
use crate::{ModelError, Olmoe, OlmoeConfig, Result, Tokenizer, resident_experts};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";

/// A model folder whose files were found and whose tensors all have the right shape.
///
/// ```
/// use moe_model::Checkpoint;
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/olmoe-gqa");
/// let checkpoint = Checkpoint::open(folder)?;
/// assert_eq!(checkpoint.files().len(), 5);
/// assert_eq!(checkpoint.config().geometry().top_k(), 3);
/// # Ok::<(), moe_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: OlmoeConfig,
    files: Vec<PathBuf>,
    layout: ExpertLayout,
}

/// The part of the index that matters: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.
    ///
    /// Reads the headers of the weight files, not the weights. The experts of a layer may be separate tensors or stacked
    /// in `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`, as transformers 5 saves them with
    /// `save_original_format=False`.
    ///
    /// # Errors
    /// As [`OlmoeConfig::from_file`]; [`ModelError::NoWeights`], [`ModelError::ShardName`], [`ModelError::MissingShard`],
    /// [`ModelError::Safetensors`], [`ModelError::MissingTensor`], [`ModelError::TensorShape`],
    /// [`ModelError::TensorType`] for what the weight files lack; [`ModelError::ExtraTensor`] for a tensor that the
    /// configuration leaves out.
    pub fn open(folder: impl AsRef<Path>) -> Result<Checkpoint> {
        let folder = folder.as_ref().to_owned();
        let config = OlmoeConfig::from_file(folder.join(CONFIG))?;
        let files = find_weights(&folder)?;
        let maps = files.iter().map(|file| map(file)).collect::<Result<Vec<_>>>()?;
        let parsed = files.iter().zip(&maps).map(|(file, map)| {
            let source = |source| ModelError::Safetensors { path: file.clone(), source };
            SafeTensors::deserialize(map).map_err(source)
        });
        let parsed = parsed.collect::<Result<Vec<_>>>()?;
        let layout = ExpertLayout::of(parsed.iter().flat_map(|file| file.names()));
        let tensors = Tensors { config: &config, folder: &folder, files: &files, parsed: &parsed };
        tensors.check(layout)?;
        Ok(Checkpoint { folder, config, files, layout })
    }

    /// The configuration.
    pub fn config(&self) -> &OlmoeConfig {
        &self.config
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tokenizer of the folder's `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::TokenizerFile`]; [`ModelError::TokenizerVocab`] if it makes ids that the model does not have.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.folder.join(TOKENIZER);
        let tokenizer = Tokenizer::from_file(&path)?;
        match tokenizer.largest_id() {
            Some(id) if id as usize >= self.config.params().vocab_size => {
                Err(ModelError::TokenizerVocab { path, id, vocab: self.config.params().vocab_size })
            }
            _ => Ok(tokenizer),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Places of an expert's gate, up and down projection in the weight files.
    ///
    /// # Panics
    /// Panics if the model does not have the layer.
    pub fn expert_locations(&self, layer: LayerId, expert: ExpertId) -> [WeightLocation; 3] {
        self.layout.locations(&self.config, layer, expert)
    }

    /// Maps the weight files; tensors are copied to `device` as `dtype` when they are taken. Experts have the names of
    /// [`OlmoeConfig::expert_names`] also where the files stack them.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] if a file cannot be mapped any more.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
        // SAFETY: a map is undefined behaviour if the file is changed under it. Weight files are written once and then
        // only read; this is the assumption of every reader of such folders.
        #[expect(unsafe_code, reason = "maps files")]
        let files = unsafe { MmapedSafetensors::multi(&self.files)? };
        let backend: Box<dyn SimpleBackend> = match self.layout {
            ExpertLayout::Separate => Box::new(files),
            ExpertLayout::Stacked => Box::new(StackedFiles(files)),
        };
        Ok(VarBuilder::from_backend(backend, dtype, device.clone()))
    }

    /// Loads every expert to `device`.
    ///
    /// # Errors
    /// As [`resident_experts`].
    pub fn resident_experts(&self, dtype: DType, device: &Device) -> Result<ResidentExperts> {
        resident_experts(&self.config, &self.var_builder(dtype, device)?)
    }

    /// Loads the whole model to `device`.
    ///
    /// # Errors
    /// As [`Olmoe::new`].
    pub fn load_resident(&self, dtype: DType, device: &Device) -> Result<Olmoe> {
        let vb = self.var_builder(dtype, device)?;
        Olmoe::new(&self.config, &vb, Arc::new(resident_experts(&self.config, &vb)?))
    }
}

fn find_weights(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(WEIGHTS);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let path = folder.join(INDEX);
    if !path.is_file() {
        return Err(ModelError::NoWeights { path: folder.to_owned() });
    }
    let mut shards: Vec<String> = read_index(&path)?.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    // An index may come from anywhere; it must not make us read files outside of the folder.
    let is_name = |shard: &str| Path::new(shard).components().eq([Component::Normal(OsStr::new(shard))]);
    if let Some(shard) = shards.iter().find(|shard| !is_name(shard)) {
        return Err(ModelError::ShardName { path, shard: shard.clone() });
    }
    match shards.iter().find(|shard| !folder.join(shard).is_file()) {
        Some(shard) => Err(ModelError::MissingShard { path, shard: shard.clone() }),
        None => Ok(shards.iter().map(|shard| folder.join(shard)).collect()),
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let text = std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}

fn map(path: &Path) -> Result<Mmap> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: as in `Checkpoint::var_builder`; this map is read only for the header and dropped with `open`.
    #[expect(unsafe_code, reason = "maps a file")]
    let map = unsafe { Mmap::map(&file) };
    map.map_err(io)
}

/// The file that should have a tensor: the shard that the index names, else the index; or the single file.
pub(crate) fn expected_file(folder: &Path, files: &[PathBuf], name: &str) -> Result<PathBuf> {
    match files {
        [single] if *single == folder.join(WEIGHTS) => Ok(single.clone()),
        _ => {
            let index = folder.join(INDEX);
            let shard = read_index(&index)?.weight_map.remove(name);
            Ok(shard.map_or(index, |shard| folder.join(shard)))
        }
    }
}
