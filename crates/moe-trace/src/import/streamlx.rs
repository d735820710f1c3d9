//! Routing traces of streamlx: an npz with its description beside it.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::archive::Archive;
use super::array::IntArray;
use super::fields::{Role, role};
use super::ids::{IdsSeen, element};
use super::model_layers::moe_layers;
use super::rows::is_known;
use super::{ImportOptions, Importer, Input, Sample, io, npy};
use crate::{EMPTY_SLOT, Geometry, ImportReport, Phase, Result, SequenceBuf, SequenceStream, TraceError, WarningKind};

/// `experts` u16 `[tokens, layers, k]` with 0xFFFF for padding, `seq_id` and `pos` `[tokens]`; `NAME.meta.json` beside
/// `NAME.npz` has the number of experts and the layers' numbers in the model, where it is absent they are inferred.
pub(super) struct Streamlx;

impl Importer for Streamlx {
    fn name(&self) -> &'static str {
        "streamlx"
    }

    fn description(&self) -> &'static str {
        "streamlx trace: npz with experts [tokens, layers, k], seq_id and pos"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--token-phase", "--stack", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.is_zip() && ["experts.npy", "seq_id.npy", "pos.npy"].iter().all(|name| sample.has(name))
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut archive = Archive::open(input)?;
        let experts = archive.read("experts.npy")?;
        let (seq_id, pos) = (archive.read("seq_id.npy")?, archive.read("pos.npy")?);
        let description = Description::beside(path)?;
        let (seq_id, pos) = (npy::read(path, "seq_id", &seq_id)?, npy::read(path, "pos", &pos)?);
        let array = npy::read(path, "experts", &experts)?;
        let [tokens, layers, top_k] = array.dimensions::<3>(path, "[tokens, layers, k]")?;
        for column in [&seq_id, &pos] {
            if column.dimensions::<1>(path, "[tokens]")? != [tokens] {
                return Err(column.error(
                    path,
                    "shape",
                    &format!("{:?}", column.shape()),
                    &format!("expected [{tokens}]"),
                ));
            }
        }
        let mut report = ImportReport::default();
        let geometry = geometry(path, &array, [layers, top_k], &description, options, &mut report)?;
        let model = options.model.clone().or(description.model);
        let sequences = split(path, &seq_id, &pos)?.into_iter();
        let phases = phases(&mut archive, path, tokens, options, &mut report)?;
        if phases.is_some() {
            options.check_untold(path, false, true)?;
        }
        let phase = if phases.is_some() { Phase::Prefill } else { options.phase_or_assumed(&mut report) };
        let (path, options) = (path.to_owned(), options.clone());
        Ok(Box::new(Sequences { path, geometry, model, experts, sequences, phases, phase, options, report }))
    }
}

/// The phase of each token, if an array `[tokens]` says it; other arrays that could change what tokens mean are named.
fn phases(
    archive: &mut Archive,
    path: &Path,
    tokens: usize,
    options: &ImportOptions,
    report: &mut ImportReport,
) -> Result<Option<Vec<u8>>> {
    let mut phases: Option<(String, Vec<u8>)> = None;
    let mut not_used = Vec::new();
    for member in archive.names()? {
        let Some(name) = member.strip_suffix(".npy").filter(|name| !["experts", "seq_id", "pos"].contains(name)) else {
            continue;
        };
        let prefill = match role(name, options) {
            Some((_, Role::PrefillIf(prefill))) => i64::from(prefill),
            _ if name == "phase" => i64::from(Phase::Prefill.code()),
            found => {
                if found.is_some() || is_known(name) {
                    not_used.push(name.to_owned());
                }
                continue;
            }
        };
        let bytes = archive.read(&member)?;
        let array = npy::read_flags(path, name, &bytes)?;
        if array.dimensions::<1>(path, "[tokens]")? != [tokens] {
            return Err(array.error(path, "shape", &format!("{:?}", array.shape()), &format!("expected [{tokens}]")));
        }
        let phase = |token| match array.get(token) {
            value if value == prefill => Ok(Phase::Prefill.code()),
            0 | 1 => Ok(Phase::Decode.code()),
            other => Err(array.error(path, &format!("token {token}"), &other.to_string(), "expected 0 or 1")),
        };
        let found = (0..tokens).map(phase).collect::<Result<Vec<u8>>>()?;
        if let Some((other, phases)) = &phases
            && let Some(token) = (0..tokens).find(|&token| phases[token] != found[token])
        {
            let limit = format!("{other} says the other phase");
            return Err(array.error(path, &format!("token {token}"), &array.get(token).to_string(), &limit));
        }
        phases = Some((name.to_owned(), found));
    }
    if !not_used.is_empty() {
        let seen = format!("arrays that can change what tokens mean are not used: {}", not_used.join(", "));
        report.warn(WarningKind::COLUMN_NOT_USED, "leave out what does not count", || (None, seen));
    }
    Ok(phases.map(|(_, phases)| phases))
}

/// `NAME.meta.json`.
#[derive(Debug, Default, Deserialize)]
struct Description {
    model: Option<String>,
    n_experts: Option<usize>,
    layer_ids: Option<Vec<u32>>,
    #[serde(default)]
    import_warnings: ImportReport,
}

impl Description {
    const LARGEST: u64 = 16 << 20;

    fn beside(trace: &Path) -> Result<Description> {
        let path = trace.with_extension("meta.json");
        if !path.exists() {
            return Ok(Description::default());
        }
        let mut json = Vec::new();
        let file = File::open(&path).map_err(io(&path, "open the file"))?;
        file.take(Self::LARGEST).read_to_end(&mut json).map_err(io(&path, "read the file"))?;
        serde_json::from_slice(&json).map_err(|source| {
            let source = Box::new(source);
            TraceError::Malformed { path: path.clone(), format: "JSON", source }
        })
    }
}

fn geometry(
    path: &Path,
    array: &IntArray<&[u8]>,
    [layers, top_k]: [usize; 2],
    description: &Description,
    options: &ImportOptions,
    report: &mut ImportReport,
) -> Result<Geometry> {
    let model_layers = match &description.layer_ids {
        Some(ids) if ids.len() != layers => {
            let limit = format!("{} layers are described", ids.len());
            return Err(array.error(path, "layers", &layers.to_string(), &limit));
        }
        Some(ids) => ids.clone(),
        None if layers > Geometry::MAX_LAYERS => {
            let limit = format!("at most {}", Geometry::MAX_LAYERS);
            return Err(array.error(path, "layers", &layers.to_string(), &limit));
        }
        None => (0..).take(layers).collect(),
    };
    let mut seen = IdsSeen::default();
    for index in 0..array.len() {
        let place = || array.place(&format!("token {}", index / (layers * top_k)));
        let id = element(path, array, index, place, options)?;
        if id != EMPTY_SLOT {
            seen.id(usize::from(id), place);
        }
    }
    options.must_have_top_k(path, top_k)?;
    let experts = options.claimed_experts(description.n_experts, &description.import_warnings);
    let experts = seen.experts(path, options, experts, report)?;
    report.merge(&options.still_open(&description.import_warnings));
    let found: Vec<_> = model_layers.into_iter().map(|model_layer| (options.stack(), model_layer)).collect();
    Geometry::new(moe_layers(path, options, &found, report)?, experts, top_k)
}

/// Tokens of each sequence: runs of equal `seq_id` whose positions count up.
fn split(path: &Path, seq_id: &IntArray<&[u8]>, pos: &IntArray<&[u8]>) -> Result<Vec<Range<usize>>> {
    let mut sequences: Vec<Range<usize>> = Vec::new();
    let mut begun = HashSet::new();
    for token in 0..seq_id.len() {
        match sequences.last_mut() {
            Some(last) if seq_id.get(token) == seq_id.get(token - 1) => {
                let (before, here) = (pos.get(token - 1), pos.get(token));
                if before.checked_add(1) != Some(here) {
                    let limit = format!("the token before it in sequence {} is at {before}", seq_id.get(token));
                    return Err(pos.error(path, &format!("position of token {token}"), &here.to_string(), &limit));
                }
                last.end = token + 1;
            }
            _ => {
                let id = seq_id.get(token);
                if !begun.insert(id) {
                    let limit = "its tokens must follow each other: sort them by sequence";
                    return Err(seq_id.error(path, &format!("sequence of token {token}"), &id.to_string(), limit));
                }
                sequences.push(token..token + 1);
            }
        }
    }
    Ok(sequences)
}

struct Sequences {
    path: PathBuf,
    geometry: Geometry,
    model: Option<String>,
    /// The member `experts.npy`.
    experts: Vec<u8>,
    sequences: std::vec::IntoIter<Range<usize>>,
    /// The phase of each token, if the file says it, and that of all if not.
    phases: Option<Vec<u8>>,
    phase: Phase,
    options: ImportOptions,
    report: ImportReport,
}

impl SequenceStream for Sequences {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        let Some(tokens) = self.sequences.next() else { return Ok(None) };
        let array = npy::read(&self.path, "experts", &self.experts)?;
        let row = self.geometry.layers() * self.geometry.top_k();
        let place = |index: usize| array.place(&format!("token {}", index / row));
        let expert = |index: usize| element(&self.path, &array, index, || place(index), &self.options);
        let experts = (tokens.start * row..tokens.end * row).map(expert).collect::<Result<_>>()?;
        let mut sequence = SequenceBuf::from_experts(&self.geometry, experts, self.phase)?;
        if let Some(phases) = &self.phases {
            sequence.phases = phases[tokens].to_vec();
        }
        Ok(Some(sequence))
    }
}
