//! `routed_experts` arrays of vLLM, as NumPy saves them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::array::IntArray;
use super::ids::{IdsSeen, element};
use super::input::InputBytes;
use super::model_layers::moe_layers;
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
        &["--experts", "--top-k", "--config", "--token-phase", "--stack", "--column", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let archive = sample.is_zip() && sample.names().iter().any(|name| name.ends_with(".npy"));
        archive || npy::is_npy(sample.head())
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut arrays = Arrays::open(input, options)?;
        let mut seen: Option<Seen> = None;
        let mut digests: HashMap<u64, usize> = HashMap::new();
        for index in 0..arrays.names.len() {
            let bytes = arrays.read(index)?;
            let array = npy::read(path, &arrays.names[index], &bytes)?;
            let shape = array.dimensions::<3>(path, "[tokens, layers, k]")?;
            let seen = seen.get_or_insert_with(|| Seen::new(shape[1], shape[2]));
            seen.add(path, &array, shape, options, &bytes)?;
            let mut digest = DefaultHasher::new();
            (shape, &bytes[..]).hash(&mut digest);
            if let Some(other) = digests.insert(digest.finish(), index).filter(|_| shape[0] >= FEWEST_EQUAL) {
                let both = format!("{} and {}", arrays.names[other], arrays.names[index]);
                let limit = "they are equal, and each array is a request: remove one, or say which array counts by --column \
                             experts=NAME";
                return Err(record(path, Place::Entry("archive".to_owned()), "arrays", &both, limit));
            }
        }
        let seen = seen.ok_or_else(|| {
            record(path, Place::Entry("archive".to_owned()), "arrays", "0", "expected at least one member NAME.npy")
        })?;
        let mut report = ImportReport::default();
        let (layers, moe_layers) = seen.moe_layers(path, options, &mut report)?;
        let experts = seen.ids.experts(path, options, None, &mut report)?;
        let geometry = Geometry::new(moe_layers, experts, seen.top_k)?;
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
    fn open(input: &Input, options: &ImportOptions) -> Result<Arrays> {
        let input = input.clone();
        let sample = Sample::take(&input)?;
        if npy::is_npy(sample.head()) {
            return Ok(Arrays { input, archive: None, names: vec!["array".to_owned()] });
        }
        let archive = Archive::open(&input)?;
        let names = archive.names()?.into_iter().filter(|name| name.ends_with(".npy"));
        let chosen =
            options.columns.iter().find(|(column, _)| column == "experts").map(|(_, name)| format!("{name}.npy"));
        let names = names.filter(|name| chosen.as_ref().is_none_or(|chosen| chosen == name)).collect();
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

/// Requests of fewer tokens may be equal by chance.
const FEWEST_EQUAL: usize = 16;

/// What an array may be whose number of layers is odd.
const TRANSPOSED: &str = ": arrays are read as [tokens, layers, k]; transpose them if they are [layers, tokens, k]";

/// What all arrays together show.
struct Seen {
    tokens: usize,
    top_k: usize,
    ids: IdsSeen,
    /// Whether a layer has an id other than 0.
    used: Vec<bool>,
}

impl Seen {
    fn new(layers: usize, top_k: usize) -> Seen {
        // The array has as many columns, so that this is no larger than the array, or there is no token.
        Seen { tokens: 0, top_k, ids: IdsSeen::default(), used: vec![false; layers.min(Geometry::MAX_LAYERS + 1)] }
    }

    fn add(
        &mut self,
        path: &Path,
        array: &IntArray<&[u8]>,
        [tokens, layers, top_k]: [usize; 3],
        options: &ImportOptions,
        bytes: &Bytes,
    ) -> Result<()> {
        if (layers, top_k) != (self.used.len(), self.top_k) || top_k == 0 || layers == 0 {
            let limit = format!("expected [tokens, {}, {}], none of them 0", self.used.len(), self.top_k);
            return Err(array.error(path, "shape", &format!("{:?}", array.shape()), &limit));
        }
        self.tokens += tokens;
        self.refuse_one_hot(path, array)?;
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

    /// Refuses marks of all experts in place of the ids of a few: of more than two slots all are 0 or 1.
    fn refuse_one_hot(&self, path: &Path, array: &IntArray<&[u8]>) -> Result<()> {
        let mut rows = (0..array.len()).step_by(self.top_k).map(|row| row..row + self.top_k);
        let are_marks = |row: std::ops::Range<usize>| row.clone().all(|index| matches!(array.get(index), 0 | 1));
        let has_mark = |row: std::ops::Range<usize>| row.clone().any(|index| array.get(index) == 1);
        if self.top_k > 2 && rows.clone().all(are_marks) && rows.any(has_mark) {
            let limit = format!(
                "expected ids: the last extent, {}, may be the experts and not the k; if 1 marks an expert that is used, save \
                 the ids, with numpy.argsort(-array, axis=-1, kind='stable')[..., :k]",
                self.top_k
            );
            return Err(array.error(path, "ids", "0 and 1 only", &limit));
        }
        Ok(())
    }

    /// The columns of the arrays that are MoE layers, and these layers.
    fn moe_layers(
        &self,
        path: &Path,
        options: &ImportOptions,
        report: &mut ImportReport,
    ) -> Result<(Vec<usize>, Vec<MoeLayer>)> {
        let stack = options.stack();
        let error =
            |field, value: &str, limit: &str| record(path, Place::Entry("array".to_owned()), field, value, limit);
        let known = options.config.as_ref().map(|config| config.stack(stack));
        let columns = match known {
            Some(Some(known)) if known.layers == self.used.len() => {
                let is_odd = |&layer: &usize| self.used[layer] && !known.moe_layers.contains(&layer);
                let odd: Vec<usize> = (0..known.layers).filter(is_odd).collect();
                if !odd.is_empty() {
                    let limit =
                        format!("they have ids above 0, and the configuration has experts in {:?}", known.moe_layers);
                    return Err(error("layers", &format!("{odd:?}"), &limit));
                }
                known.moe_layers.clone()
            }
            Some(Some(known)) if known.moe_layers.len() == self.used.len() => (0..self.used.len()).collect(),
            Some(known) => {
                let (layers, moe) = known.map_or((0, 0), |known| (known.layers, known.moe_layers.len()));
                let limit = format!("the configuration has {layers} layers, {moe} of them MoE{}", TRANSPOSED);
                return Err(error("layers", &self.used.len().to_string(), &limit));
            }
            None if self.top_k == 1 => (0..self.used.len()).collect(),
            None => {
                let (used, dense): (Vec<usize>, Vec<usize>) = (0..self.used.len()).partition(|&layer| self.used[layer]);
                if used.is_empty() && !self.ids.is_empty() {
                    let limit = "expected an id above 0 in some layer, or a configuration that says which have experts";
                    return Err(error("ids", "0 everywhere", limit));
                }
                if !dense.is_empty() {
                    let seen = format!("layers {dense:?} of the arrays have no id but 0: taken as dense");
                    report.warn(WarningKind::IDLE_LAYERS, "--config says which layers have experts", || (None, seen));
                }
                used
            }
        };
        if known.is_none() && self.tokens > 0 && self.tokens < self.used.len() {
            let seen = format!("the arrays have {} layers and {} tokens{}", self.used.len(), self.tokens, TRANSPOSED);
            let remedy = "--config says how many layers there are";
            report.warn(WarningKind::LAYOUT_SUSPECTED, remedy, || (None, seen));
        }
        let numbers = columns.iter().map(|&layer| (stack, u32::try_from(layer).unwrap_or(u32::MAX)));
        let layers = moe_layers(path, options, &numbers.collect::<Vec<_>>(), report)?;
        Ok((columns, layers))
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
