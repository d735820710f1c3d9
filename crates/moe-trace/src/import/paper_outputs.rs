//! Outputs of the scripts published with arXiv 2505.16056: one safetensors file a layer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::ids::{IdsSeen, not_among};
use super::{ImportOptions, Importer, Input, Sample, io, record};
use crate::format::map_file;
use crate::{
    DomainId, EMPTY_SLOT, Geometry, ImportReport, MoeLayer, Phase, Place, Result, SequenceBuf, SequenceStream,
    TraceError,
};

/// `{model}_{layer:02}.safetensors`, each with one tensor a data set, `[samples, tokens, n]`: raw logits (BF16, n experts),
/// ranks in ascending order (I8, n experts) or chosen experts (I8, n = top-k).
///
/// Give the folder or one of its files; all layers of the model are read. A data set is a domain, a sample a sequence, all
/// tokens are prefilled. From logits and ranks the top-k are taken, so top-k must be given, by itself or by a
/// configuration; equal logits are taken in the order of their experts. Logits are kept. I8 wraps above 127, which is undone
/// up to 256 experts. Encoder and decoder of one model differ in their number of tokens: import them apart, by layers.
pub(super) struct PaperOutputs;

impl Importer for PaperOutputs {
    fn name(&self) -> &'static str {
        "paper-outputs"
    }

    fn description(&self) -> &'static str {
        "outputs of arXiv 2505.16056: MODEL_LL.safetensors a layer, logits bf16, rank or topk int8"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--token-phase", "--stack", "--model-layers"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let layers = sample.names().iter().filter(|name| layer_of(name).is_some()).count();
        // A trace of our own is safetensors too, but is opened without an import.
        layers > 0 || sample.has_safetensors_of(&["BF16", "I8"])
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        input.must_be_on_disk()?;
        let path = input.path();
        let mut report = ImportReport::default();
        let (model, files) = find_layers(path, options)?;
        let layers = files.iter().map(|(_, path)| Layer::open(path)).collect::<Result<Vec<_>>>()?;
        let first = &layers[0];
        for layer in &layers[1..] {
            layer.must_equal(first)?;
        }
        let kind = first.kind()?;
        let n = first.width()?;
        let (experts, top_k) = match kind {
            Kind::TopK => {
                let mut seen = IdsSeen::default();
                for layer in &layers {
                    let place = || Place::Entry(layer.path.file_name().unwrap_or_default().to_string_lossy().into());
                    layer.bytes_of_all().for_each(|&id| seen.id(usize::from(id), place));
                }
                options.must_have_top_k(path, n)?;
                (seen.experts(path, options, None, &mut report)?, n)
            }
            Kind::Logits | Kind::Rank => {
                let missing = "the files do not say how many experts a token uses: give top_k or a configuration";
                let place = || Place::Entry("options".to_owned());
                let top_k = options.known_top_k().ok_or_else(|| record(path, place(), "top_k", "missing", missing))?;
                if let Some(experts) = options.known_experts().filter(|&experts| experts != n) {
                    let limit = format!("the tensors have {n}");
                    return Err(record(path, place(), "experts", &experts.to_string(), limit));
                }
                (n, top_k)
            }
        };
        if kind != Kind::Logits && experts > 256 {
            let limit = "an int8 cannot tell more than 256 apart";
            return Err(record(path, Place::Entry("tensors".to_owned()), "experts", &experts.to_string(), limit));
        }
        let stack = options.stack();
        let moe_layers = files.iter().map(|&(model_layer, _)| MoeLayer { model_layer, stack }).collect();
        let geometry = Geometry::new(moe_layers, experts, top_k)?;
        let names = first.tensors.keys().cloned().collect();
        let model = Some(options.model.clone().unwrap_or(model));
        Ok(Box::new(Samples {
            geometry,
            model,
            names,
            layers,
            kind,
            phase: options.phase(),
            report,
            dataset: 0,
            sample: 0,
        }))
    }
}

/// Model and layer of a file name.
fn layer_of(name: &str) -> Option<(&str, u32)> {
    let (model, layer) = name.strip_suffix(".safetensors")?.rsplit_once('_')?;
    (layer.len() >= 2 && layer.bytes().all(|byte| byte.is_ascii_digit()) && !model.is_empty())
        .then(|| layer.parse().ok().map(|layer| (model, layer)))?
}

/// The model's name and its layers' files, in the order of the layers.
fn find_layers(path: &Path, options: &ImportOptions) -> Result<(String, Vec<(u32, PathBuf)>)> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let wanted = path.file_name().filter(|_| !path.is_dir()).map(|name| name.to_string_lossy().into_owned());
    let wanted = wanted.as_deref().and_then(layer_of).map(|(model, _)| model.to_owned());
    let mut models: BTreeMap<String, Vec<(u32, PathBuf)>> = BTreeMap::new();
    for entry in fs::read_dir(listed).map_err(io(listed, "list the directory"))? {
        let entry = entry.map_err(io(listed, "list the directory"))?;
        if let Some((model, layer)) = layer_of(&entry.file_name().to_string_lossy()) {
            let taken = options.layers.as_ref().is_none_or(|layers| layers.contains(&(layer as usize)));
            if taken && wanted.as_ref().is_none_or(|wanted| wanted == model) {
                models.entry(model.to_owned()).or_default().push((layer, entry.path()));
            }
        }
    }
    let found = models.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut models = models.into_iter();
    match (models.next(), models.next()) {
        (Some((model, mut files)), None) => {
            files.sort_unstable();
            Ok((model, files))
        }
        (None, _) => Err(record(path, Place::Entry("files".into()), "layers", "0", "expected MODEL_LL.safetensors")),
        _ => Err(record(path, Place::Entry("files".into()), "models", &found, "give a file of the one wanted")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Logits,
    Rank,
    TopK,
}

/// The mapped file of a layer.
struct Layer {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug, PartialEq)]
struct Tensor {
    dtype: Dtype,
    shape: [usize; 3],
    /// Offset in the tensor data; layers may differ in it.
    start: usize,
}

impl Layer {
    fn open(path: &Path) -> Result<Layer> {
        let file = File::open(path).map_err(io(path, "open the file"))?;
        let map = map_file(&file).map_err(io(path, "map the file"))?;
        let safetensors = |source| TraceError::Safetensors { path: path.to_owned(), source };
        let (header, metadata): (usize, Metadata) = SafeTensors::read_metadata(&map).map_err(safetensors)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let place = || Place::Entry(format!("tensor {name:?}"));
            // Without tokens a claim of samples would cost nothing and make sequences without end.
            let shape = <[usize; 3]>::try_from(info.shape.as_slice()).ok().filter(|shape| !shape.contains(&0));
            let shape = shape.ok_or_else(|| {
                let limit = "expected [samples, tokens, n], none of them 0";
                record(path, place(), "shape", &format!("{:?}", info.shape), limit)
            })?;
            if !matches!(info.dtype, Dtype::BF16 | Dtype::I8) {
                return Err(record(path, place(), "type", &format!("{:?}", info.dtype), "expected BF16 or I8"));
            }
            tensors.insert(name, Tensor { dtype: info.dtype, shape, start: info.data_offsets.0 });
        }
        if tensors.is_empty() {
            return Err(record(path, Place::Entry("header".into()), "tensors", "0", "expected one a data set"));
        }
        Ok(Layer { path: path.to_owned(), map, data_start: size_of::<u64>() + header, tensors })
    }

    fn must_equal(&self, first: &Layer) -> Result<()> {
        let shapes = |layer: &Layer| -> Vec<(String, Dtype, [usize; 3])> {
            layer.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype, tensor.shape)).collect()
        };
        let (ours, theirs) = (shapes(self), shapes(first));
        if ours == theirs {
            return Ok(());
        }
        let different =
            ours.iter().find(|tensor| !theirs.contains(tensor)).or(theirs.iter().find(|t| !ours.contains(t)));
        let limit = format!("expected the tensors of {}; import layers that agree, by --layers", first.path.display());
        Err(record(&self.path, Place::Entry("header".into()), "tensors", &format!("{different:?}"), limit))
    }

    /// Whether these are logits, ranks or chosen experts: ranks are a permutation in every row.
    fn kind(&self) -> Result<Kind> {
        /// Rows that are looked at.
        const ROWS: usize = 4096;
        let width = self.width()?;
        if self.tensors.values().any(|tensor| tensor.dtype == Dtype::BF16) {
            return Ok(Kind::Logits);
        }
        let is_permutation = |row: &[u8]| {
            let mut seen = [false; 256];
            row.iter().for_each(|&value| seen[usize::from(value)] = true);
            row.len() <= 256 && seen[..row.len()].iter().all(|&seen| seen)
        };
        let mut rows = self.tensors.values().flat_map(|tensor| self.bytes(tensor).chunks_exact(width)).take(ROWS);
        Ok(if rows.all(is_permutation) { Kind::Rank } else { Kind::TopK })
    }

    /// The extent that is experts or top-k, equal for all tensors.
    fn width(&self) -> Result<usize> {
        let mut widths = self.tensors.iter().map(|(name, tensor)| (name, tensor.shape[2], tensor.dtype));
        let (_, width, dtype) = widths.next().expect("checked in open");
        let different = widths.find(|&(_, other, kind)| (other, kind) != (width, dtype));
        match different {
            None if (1..=Geometry::MAX_EXPERTS).contains(&width) => Ok(width),
            None => Err(record(
                &self.path,
                Place::Entry("tensors".into()),
                "last extent",
                &width.to_string(),
                "allowed are 1..=65535",
            )),
            Some((name, other, kind)) => {
                let place = Place::Entry(format!("tensor {name:?}"));
                Err(record(
                    &self.path,
                    place,
                    "last extent",
                    &format!("{other} of {kind:?}"),
                    format!("expected {width} of {dtype:?}"),
                ))
            }
        }
    }

    fn bytes(&self, tensor: &Tensor) -> &[u8] {
        let start = self.data_start + tensor.start;
        let len: usize = tensor.shape.iter().product::<usize>() * if tensor.dtype == Dtype::BF16 { 2 } else { 1 };
        &self.map[start..start + len]
    }

    fn bytes_of_all(&self) -> impl Iterator<Item = &u8> {
        self.tensors.values().flat_map(|tensor| self.bytes(tensor))
    }
}

/// The samples, data set by data set.
struct Samples {
    geometry: Geometry,
    model: Option<String>,
    names: Vec<String>,
    layers: Vec<Layer>,
    kind: Kind,
    phase: Phase,
    report: ImportReport,
    dataset: usize,
    sample: usize,
}

impl SequenceStream for Samples {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn domains(&self) -> &[String] {
        &self.names
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        let [samples, tokens, width] = loop {
            let Some(name) = self.names.get(self.dataset) else { return Ok(None) };
            let shape = self.layers[0].tensors[name].shape;
            if self.sample < shape[0] {
                break shape;
            }
            (self.dataset, self.sample) = (self.dataset + 1, 0);
        };
        debug_assert!(self.sample < samples);
        let name = &self.names[self.dataset];
        let (layers, k) = (self.layers.len(), self.geometry.top_k());
        let mut experts = vec![EMPTY_SLOT; tokens * layers * k];
        let mut logits = (self.kind == Kind::Logits).then(|| vec![0.0; tokens * layers * width]);
        for (layer, file) in self.layers.iter().enumerate() {
            let tensor = &file.tensors[name];
            let element = if tensor.dtype == Dtype::BF16 { 2 } else { 1 };
            let rows = &file.bytes(tensor)[self.sample * tokens * width * element..][..tokens * width * element];
            for (token, row) in rows.chunks_exact(width * element).enumerate() {
                let out = &mut experts[(token * layers + layer) * k..][..k];
                let at = || format!("tensor {name:?}, sample {}, token {token}", self.sample);
                let wrong =
                    |field, value: &str, limit: &str| record(&file.path, Place::Entry(at()), field, value, limit);
                match (&mut logits, self.kind) {
                    (Some(logits), _) => {
                        let to = &mut logits[(token * layers + layer) * width..][..width];
                        for (to, bytes) in to.iter_mut().zip(row.chunks_exact(2)) {
                            *to = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                        }
                        if let Some(nan) = to.iter().position(|value| value.is_nan()) {
                            return Err(wrong("logit", "NaN", &format!("expert {nan} cannot be ranked")));
                        }
                        top(to, out);
                    }
                    (None, Kind::Rank) => {
                        for (expert, &rank) in row.iter().enumerate() {
                            let from_best = (width - 1).wrapping_sub(usize::from(rank));
                            if let Some(slot) = out.get_mut(from_best) {
                                *slot = u16::try_from(expert).expect("at most 256 experts");
                            }
                        }
                        if out.contains(&EMPTY_SLOT) {
                            return Err(wrong(
                                "ranks",
                                "no permutation",
                                &format!("expected each of {width} ranks once"),
                            ));
                        }
                    }
                    (None, _) => {
                        for (slot, &id) in out.iter_mut().zip(row) {
                            if usize::from(id) >= self.geometry.experts() {
                                return Err(wrong(
                                    "expert",
                                    &id.to_string(),
                                    &not_among(id.into(), self.geometry.experts()),
                                ));
                            }
                            *slot = u16::from(id);
                        }
                    }
                }
            }
        }
        self.sample += 1;
        let domain = u16::try_from(self.dataset).ok().map(DomainId);
        let sequence = SequenceBuf::from_experts(&self.geometry, experts, self.phase)?;
        Ok(Some(SequenceBuf { logits, domain, ..sequence }))
    }
}

/// The experts of the largest logits, the largest first; equal ones in the order of their ids.
fn top(logits: &[f32], out: &mut [u16]) {
    let mut order: Vec<u16> = (0..).take(logits.len()).collect();
    order.sort_by(|&a, &b| logits[usize::from(b)].total_cmp(&logits[usize::from(a)]).then(a.cmp(&b)));
    out.copy_from_slice(&order[..out.len()]);
}
