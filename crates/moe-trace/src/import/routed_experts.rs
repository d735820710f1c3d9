//! `routed_experts` arrays of vLLM, as NumPy saves them.

use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::array::IntArray;
use super::ids::{IdsSeen, element};
use super::input::InputBytes;
use super::{ImportOptions, Importer, Input, Sample, npy, record};
use crate::{
    EMPTY_SLOT, Geometry, ImportReport, MoeLayer, Phase, Place, Result, SequenceBuf, SequenceStream, WarningKind,
};

/// What vLLM returns with `enable_return_routed_experts`: for each request an array `[tokens, layers, k]` of ids, saved
/// by `np.save` (one request) or `np.savez` (one array a request).
///
/// The array has all layers of the model, and 0 in every slot of a dense one. The model's configuration says which layers
/// are dense; without it they are those that are 0 everywhere, which is certain where k is at least 2. A row of zeros in
/// another layer is a token that was not routed, -1 and the largest unsigned 16-bit number are empty slots.
pub(super) struct RoutedExperts;

impl Importer for RoutedExperts {
    fn name(&self) -> &'static str {
        "routed-experts"
    }

    fn description(&self) -> &'static str {
        "vLLM routed_experts: npy or npz of integer arrays [tokens, layers, k]"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--token-phase", "--stack", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let archive = sample.is_zip() && sample.names().iter().any(|name| name.ends_with(".npy"));
        archive || npy::is_npy(sample.head())
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut arrays = Arrays::open(input)?;
        let mut seen: Option<Seen> = None;
        for index in 0..arrays.names.len() {
            let bytes = arrays.read(index)?;
            let array = npy::read(path, &arrays.names[index], &bytes)?;
            let shape = array.dimensions::<3>(path, "[tokens, layers, k]")?;
            let seen = seen.get_or_insert_with(|| Seen::new(shape[1], shape[2]));
            seen.add(path, &array, shape, options, &bytes)?;
        }
        let seen = seen.ok_or_else(|| {
            record(path, Place::Entry("archive".to_owned()), "arrays", "0", "expected at least one member NAME.npy")
        })?;
        let mut report = ImportReport::default();
        let layers = seen.moe_layers(path, options, &mut report)?;
        let moe_layer = |layer: &usize| {
            let model_layer = u32::try_from(*layer).unwrap_or(u32::MAX);
            MoeLayer { model_layer, stack: options.stack() }
        };
        let experts = seen.ids.experts(path, options, None, &mut report)?;
        let geometry = Geometry::new(layers.iter().map(moe_layer).collect(), experts, seen.top_k)?;
        options.must_have_top_k(path, seen.top_k)?;
        let phase = options.phase_or_assumed(&mut report);
        Ok(Box::new(Requests {
            geometry,
            layers,
            arrays,
            next: 0,
            phase,
            report,
            options: options.clone(),
            path: path.to_owned(),
        }))
    }
}

/// The arrays of a file, read one at a time.
struct Arrays {
    input: Input,
    archive: Option<Archive>,
    names: Vec<String>,
}

impl Arrays {
    fn open(input: &Input) -> Result<Arrays> {
        let input = input.clone();
        let sample = Sample::take(&input)?;
        if npy::is_npy(sample.head()) {
            return Ok(Arrays { input, archive: None, names: vec!["array".to_owned()] });
        }
        let archive = Archive::open(&input)?;
        let names = archive.names()?.into_iter().filter(|name| name.ends_with(".npy")).collect();
        Ok(Arrays { input, archive: Some(archive), names })
    }

    fn read(&mut self, index: usize) -> Result<Bytes> {
        match &mut self.archive {
            Some(archive) => archive.read(&self.names[index]).map(Bytes::Read),
            None => self.input.bytes().map(Bytes::Whole),
        }
    }
}

enum Bytes {
    Whole(InputBytes),
    Read(Vec<u8>),
}

impl Bytes {
    /// Checks that a mapped file was not cut.
    fn check(&self) -> Result<()> {
        match self {
            Bytes::Whole(bytes) => bytes.check(),
            Bytes::Read(_) => Ok(()),
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Whole(bytes) => bytes.as_ref(),
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// What all arrays together show.
struct Seen {
    top_k: usize,
    ids: IdsSeen,
    /// Whether a layer has an id other than 0.
    used: Vec<bool>,
}

impl Seen {
    fn new(layers: usize, top_k: usize) -> Seen {
        // The array has as many columns, so that this is no larger than the array, or there is no token.
        Seen { top_k, ids: IdsSeen::default(), used: vec![false; layers.min(Geometry::MAX_LAYERS + 1)] }
    }

    fn add(
        &mut self,
        path: &Path,
        array: &IntArray<&[u8]>,
        [_, layers, top_k]: [usize; 3],
        options: &ImportOptions,
        bytes: &Bytes,
    ) -> Result<()> {
        if (layers, top_k) != (self.used.len(), self.top_k) || top_k == 0 || layers == 0 {
            let limit = format!("expected [tokens, {}, {}], none of them 0", self.used.len(), self.top_k);
            return Err(array.error(path, "shape", &format!("{:?}", array.shape()), &limit));
        }
        for index in 0..array.len() {
            let (token, layer) = (index / top_k / layers, index / top_k % layers);
            if index % (layers * top_k) == 0 {
                bytes.check()?;
            }
            let place = || array.place(&format!("token {token}, layer {layer}"));
            let id = element(path, array, index, place, options)?;
            if id != EMPTY_SLOT {
                self.ids.id(usize::from(id), place);
                self.used[layer] |= id != 0;
            }
        }
        Ok(())
    }

    fn moe_layers(&self, path: &Path, options: &ImportOptions, report: &mut ImportReport) -> Result<Vec<usize>> {
        let all = 0..self.used.len();
        let stack = options.config.as_ref().map(|config| config.stack(options.stack()));
        match stack {
            Some(Some(stack)) if stack.layers == self.used.len() => Ok(stack.moe_layers.clone()),
            Some(Some(stack)) if stack.moe_layers.len() == self.used.len() => Ok(all.collect()),
            Some(stack) => {
                let (layers, moe) = stack.map_or((0, 0), |stack| (stack.layers, stack.moe_layers.len()));
                let limit = format!("the configuration has {layers} layers, {moe} of them MoE");
                Err(record(path, Place::Entry("array".to_owned()), "layers", &self.used.len().to_string(), limit))
            }
            None if self.top_k == 1 => Ok(all.collect()),
            None => {
                let (used, dense): (Vec<usize>, Vec<usize>) = all.partition(|&layer| self.used[layer]);
                if used.is_empty() && !self.ids.is_empty() {
                    let limit = "expected an id above 0 in some layer, or a configuration that says which have experts";
                    return Err(record(path, Place::Entry("array".to_owned()), "ids", "0 everywhere", limit));
                }
                if !dense.is_empty() {
                    let seen = format!("layers {dense:?} of the arrays have no id but 0: taken as dense");
                    report.warn(WarningKind::IDLE_LAYERS, "--config says which layers have experts", || (None, seen));
                }
                Ok(used)
            }
        }
    }
}

struct Requests {
    path: PathBuf,
    geometry: Geometry,
    /// Columns of the arrays that are MoE layers.
    layers: Vec<usize>,
    arrays: Arrays,
    next: usize,
    phase: Phase,
    options: ImportOptions,
    report: ImportReport,
}

impl SequenceStream for Requests {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn model(&self) -> Option<&str> {
        self.options.model.as_deref()
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        if self.next == self.arrays.names.len() {
            return Ok(None);
        }
        let bytes = self.arrays.read(self.next)?;
        let array = npy::read(&self.path, &self.arrays.names[self.next], &bytes)?;
        let [tokens, width, k] = array.dimensions::<3>(&self.path, "[tokens, layers, k]")?;
        self.next += 1;
        let mut experts = Vec::new();
        for (token, &layer) in (0..tokens).flat_map(|token| self.layers.iter().map(move |layer| (token, layer))) {
            let row = (token * width + layer) * k;
            bytes.check()?;
            let unrouted = k > 1 && (row..row + k).all(|index| array.get(index) == 0);
            let place = || array.place(&format!("token {token}, layer {layer}"));
            if unrouted {
                let seen = "all slots of a token in a layer are 0: taken as a token that was not routed there";
                self.report
                    .warn(WarningKind::UNROUTED_TOKENS, "record -1 in empty slots", || (Some(place()), seen.into()));
                experts.resize(experts.len() + k, EMPTY_SLOT);
                continue;
            }
            for index in row..row + k {
                experts.push(element(&self.path, &array, index, place, &self.options)?);
            }
        }
        SequenceBuf::from_experts(&self.geometry, experts, self.phase).map(Some)
    }
}
