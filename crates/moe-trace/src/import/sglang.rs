//! Files of SGLang's expert distribution recorder in per-token mode.

mod records;
mod requests;

use std::path::Path;

use super::array::IntArray;
use super::ids::IdsSeen;
use super::torch_file::TorchFile;
use super::{ImportOptions, Importer, Input, Sample};
use crate::{EMPTY_SLOT, Geometry, ImportReport, MoeLayer, Place, Result, SequenceBuf, SequenceStream, WarningKind};
use records::{EXPANSION, Mode, Pass};
use requests::{Counts, Request, Requests, Token};

/// `{"records": [{"forward_pass_id", "input_ids", "positions", "extend_seq_lens", "forward_mode", "topk_ids_of_layer"}],
/// "last_physical_to_logical_map"}`, saved by PyTorch and read without executing it.
///
/// `topk_ids_of_layer` is `[layers, tokens, 8]` with -1 for unused slots; its ids are places of experts, which the map,
/// `[layers, places]`, turns into experts. Layers without any id are dense. The file does not name requests, so sequences
/// are put together by position: a prefilled part that begins at 0 begins a sequence; another part or a decoded token
/// continues the oldest sequence that has come as far as its position and is not continued by this pass already, and
/// begins a sequence if there is none. A sequence that has decoded and is missing from a decode pass has ended.
///
/// A verify pass holds guesses of a draft model: as many for every request, in the order of the requests. Verified tokens
/// are decoded; a position that comes again counts with the experts of its last pass. Of the guesses of a request's last
/// pass only the first token is kept. Passes without any id (of the draft model) and tokens that fill up idle passes are
/// left out. Records of several ranks count once if they are equal.
pub(super) struct SgLang;

impl Importer for SgLang {
    fn name(&self) -> &'static str {
        "sglang"
    }

    fn description(&self) -> &'static str {
        "SGLang expert distribution recorder, per-token mode: torch.save of records"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--stack"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.is_zip() && sample.names().iter().any(|name| name.ends_with("/data.pkl"))
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut file = TorchFile::open(input)?;
        let passes = records::read(&file)?;
        let mut report = ImportReport::default();
        let places = Places::read(&mut file, path, options, &mut report)?;
        let mut collected = Collected::new(places.layers, &passes);
        // Records of a pickle can share a tensor, so that a small file could stand for any number of tokens.
        let mut budget = file.bytes().saturating_mul(EXPANSION);
        let mut last: Option<(&Pass, IntArray<Vec<u8>>)> = None;
        for pass in &passes {
            let ids = file.read(&pass.name(), &pass.ids)?;
            budget = budget.checked_sub(ids.len() as u64).ok_or_else(|| {
                let limit = format!("at most {EXPANSION} ids for each byte of the file");
                ids.error(path, "ids", "more", &limit)
            })?;
            places.check_shape(path, pass, &ids, collected.width)?;
            let routed = (0..ids.len()).any(|index| ids.get(index) != -1);
            match pass.mode {
                Mode::Idle => collected.idle += pass.positions.len(),
                Mode::DraftExtend => collected.unrouted += 1,
                _ if !routed => collected.unrouted += 1,
                _ => {
                    match &last {
                        Some((before, seen)) if before.pass == pass.pass => {
                            same_pass(&file, before, seen, pass, &ids)?;
                            collected.repeated += 1;
                        }
                        _ => collected.take(&file, path, pass, &ids, &places)?,
                    }
                    last = Some((pass, ids));
                }
            }
        }
        collected.finish(&file, path, &places, options, report)
    }
}

/// Which expert lies at each place.
struct Places {
    map: IntArray<Vec<u8>>,
    layers: usize,
    places: usize,
    experts: usize,
}

impl Places {
    const NAME: &str = "last_physical_to_logical_map";

    fn read(file: &mut TorchFile, path: &Path, options: &ImportOptions, report: &mut ImportReport) -> Result<Places> {
        let map = match file.pickle().get(file.pickle().root(), Self::NAME) {
            Some(map) => file.tensor(Self::NAME, map)?,
            None => return Err(file.error("root", Self::NAME, "missing", "expected a tensor")),
        };
        let map = file.read(Self::NAME, &map)?;
        let [layers, places] = map.dimensions::<2>(path, "[layers, places]")?;
        let largest = (0..map.len()).filter_map(|index| usize::try_from(map.get(index)).ok()).max();
        // The map has every expert at one place at least.
        let experts =
            IdsSeen::default().experts(path, options, largest.map(|largest| largest.saturating_add(1)), report)?;
        Ok(Places { map, layers, places, experts })
    }

    /// Checks that a pass has ids of every layer and token, in as many slots as the passes before it.
    fn check_shape(&self, path: &Path, pass: &Pass, ids: &IntArray<Vec<u8>>, width: Option<usize>) -> Result<()> {
        let shape = ids.dimensions::<3>(path, "[layers, tokens, k]")?;
        let k = width.unwrap_or(shape[2]);
        if shape == [self.layers, pass.positions.len(), k] {
            return Ok(());
        }
        let limit = format!("expected [{}, {}, {k}]", self.layers, pass.positions.len());
        Err(ids.error(path, "topk_ids_of_layer", &format!("of shape {shape:?}"), &limit))
    }

    /// The expert at a place of a layer.
    fn expert(&self, path: &Path, ids: &IntArray<Vec<u8>>, layer: usize, place: i64) -> Result<u16> {
        if place == -1 {
            return Ok(EMPTY_SLOT);
        }
        let known = usize::try_from(place).ok().filter(|&place| place < self.places).ok_or_else(|| {
            let limit = format!("there are {} places, and -1 for an empty slot", self.places);
            ids.error(path, &format!("id in layer {layer}"), &place.to_string(), &limit)
        })?;
        let expert = self.map.get(layer * self.places + known);
        u16::try_from(expert).ok().filter(|&expert| usize::from(expert) < self.experts).ok_or_else(|| {
            let field = format!("expert at place {place} of layer {layer}");
            self.map.error(path, &field, &expert.to_string(), "expected an expert")
        })
    }
}

/// Checks that two records of one pass say the same.
fn same_pass(
    file: &TorchFile,
    before: &Pass,
    seen: &IntArray<Vec<u8>>,
    pass: &Pass,
    ids: &IntArray<Vec<u8>>,
) -> Result<()> {
    let equal = before.positions == pass.positions
        && before.input_ids == pass.input_ids
        && seen.shape() == ids.shape()
        && (0..ids.len()).all(|index| seen.get(index) == ids.get(index));
    if equal {
        return Ok(());
    }
    let rank = |pass: &Pass| pass.rank.map_or_else(|| "none".to_owned(), |rank| rank.to_string());
    let limit =
        format!("rank {} has other tokens or experts in this pass: import the records of one rank", rank(before));
    Err(file.error(&pass.name(), "rank", &rank(pass), &limit))
}

/// What the passes say, put together.
struct Collected {
    requests: Requests,
    /// Whether a layer has any id.
    used: Vec<bool>,
    top_k: usize,
    /// Slots of a layer in the file.
    width: Option<usize>,
    /// Tokens of idle passes.
    idle: usize,
    /// Passes without any id, or of the draft model.
    unrouted: usize,
    /// Records that say what one before them said.
    repeated: usize,
}

impl Collected {
    fn new(layers: usize, passes: &[Pass]) -> Collected {
        let (requests, used) = (Requests::new(passes), vec![false; layers]);
        Collected { requests, used, top_k: 0, width: None, idle: 0, unrouted: 0, repeated: 0 }
    }

    fn take(
        &mut self,
        file: &TorchFile,
        path: &Path,
        pass: &Pass,
        ids: &IntArray<Vec<u8>>,
        places: &Places,
    ) -> Result<()> {
        let [layers, tokens, k] = ids.dimensions::<3>(path, "[layers, tokens, k]")?;
        self.width = Some(k);
        let parts = self.requests.assign(pass).ok_or_else(|| {
            let limit = "the guesses of this verify pass cannot be told apart by request: record with one chain of \
                         guesses (--speculative-eagle-topk 1) from before the first request on, or without speculation";
            file.error(&pass.name(), "forward_mode", "5", limit)
        })?;
        for part in parts {
            for token in part.tokens {
                let mut row = Vec::with_capacity(layers * k);
                for (layer, used) in self.used.iter_mut().enumerate() {
                    for slot in 0..k {
                        let id = places.expert(path, ids, layer, ids.get((layer * tokens + token) * k + slot))?;
                        row.push(id);
                        if id != EMPTY_SLOT {
                            *used = true;
                            self.top_k = self.top_k.max(slot + 1);
                        }
                    }
                }
                let id = pass.input_ids.get(token).copied().flatten();
                self.requests.push(part.request, Token { row, phase: part.phase, id });
            }
        }
        Ok(())
    }

    fn finish(
        self,
        file: &TorchFile,
        path: &Path,
        places: &Places,
        options: &ImportOptions,
        mut report: ImportReport,
    ) -> Result<Box<dyn SequenceStream>> {
        if self.top_k == 0 {
            let limit = "no pass has an expert of any token: was the model's routing recorded?";
            return Err(file.error("root", "records", "without experts", limit));
        }
        let mut seen = IdsSeen::default();
        seen.experts_of_a_token(self.top_k, || Place::Entry("records".to_owned()));
        let top_k = seen.top_k(path, options, None, &mut report)?;
        let layers: Vec<usize> = (0..places.layers).filter(|&layer| self.used[layer]).collect();
        let moe_layer =
            |&layer: &usize| MoeLayer { model_layer: u32::try_from(layer).unwrap_or(u32::MAX), stack: options.stack() };
        let geometry = Geometry::new(layers.iter().map(moe_layer).collect(), places.experts, top_k)?;
        self.left_out(&mut report);
        let (requests, counts) = self.requests.finish();
        say(&counts, &mut report);
        let (model, width) = (options.model.clone(), self.width.unwrap_or(0));
        Ok(Box::new(Sequences { geometry, layers, width, model, report, requests: requests.into_iter() }))
    }

    /// Says what was left out.
    fn left_out(&self, report: &mut ImportReport) {
        let mut warn = |kind, remedy, seen: String| report.warn(kind, remedy, || (None, seen));
        if self.unrouted > 0 {
            let passes = self.unrouted;
            let seen =
                format!("{passes} passes have no expert of the model (passes of a draft model have none): left out");
            warn(WarningKind::PASSES_LEFT_OUT, "record without speculative decoding if they are the model's", seen);
        }
        if self.idle > 0 {
            let seen = format!("{} tokens of idle passes fill up batches: left out", self.idle);
            warn(WarningKind::ROWS_LEFT_OUT, "record without data parallel attention if they are requests'", seen);
        }
        if self.repeated > 0 {
            let seen = format!(
                "{} passes were recorded by several ranks, with equal experts: each counts once",
                self.repeated
            );
            warn(WarningKind::RANK_COPIES, "import the file of one rank", seen);
        }
    }
}

/// Says how passes were understood.
fn say(counts: &Counts, report: &mut ImportReport) {
    let Counts { rejected, uncertain, ambiguous, without_start, mixed } = *counts;
    let mut warn = |kind, remedy, seen: String| report.warn(kind, remedy, || (None, seen));
    if rejected + uncertain > 0 {
        let seen = format!(
            "guesses of a draft model: {rejected} that a later pass computed again count as in that pass, {uncertain} in \
             the last passes of requests are left out, because no later pass shows whether they were accepted"
        );
        warn(WarningKind::POSITIONS_AGAIN, "record without speculative decoding", seen);
    }
    if ambiguous > 0 {
        let seen = format!("{ambiguous} tokens could continue several requests: the oldest request was taken");
        warn(WarningKind::REQUESTS_UNCLEAR, "record one request at a time", seen);
    }
    if without_start > 0 {
        let seen = format!("{without_start} sequences do not begin at position 0: a cached prefix, or a late start");
        warn(WarningKind::START_MISSING, "record from the beginning, without a prefix cache", seen);
    }
    if mixed > 0 {
        let seen = format!("{mixed} tokens stand alone in passes of mode mixed: taken as decoded");
        warn(WarningKind::PHASE_ASSUMED, "record without --enable-mixed-chunk", seen);
    }
}

struct Sequences {
    geometry: Geometry,
    /// The model's layer of each MoE layer.
    layers: Vec<usize>,
    /// Slots of a layer in the file.
    width: usize,
    model: Option<String>,
    report: ImportReport,
    requests: std::vec::IntoIter<Request>,
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
        let Some(Request { tokens, .. }) = self.requests.next() else { return Ok(None) };
        let k = self.geometry.top_k();
        let mut experts = Vec::new();
        for token in &tokens {
            for layer in &self.layers {
                let cell = &token.row[layer * self.width..][..self.width.min(k)];
                experts.extend_from_slice(cell);
                experts.resize(experts.len() + k - cell.len(), EMPTY_SLOT);
            }
        }
        Ok(Some(SequenceBuf {
            experts,
            token_ids: tokens.iter().map(|token| token.id).collect(),
            phases: tokens.iter().map(|token| token.phase.code()).collect(),
            ..SequenceBuf::default()
        }))
    }
}
