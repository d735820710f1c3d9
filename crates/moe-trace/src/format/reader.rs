//! Memory-mapped reading.

use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::column::{Column, check};
use super::damage::damage;
use super::header::{
    DOMAIN, EXPERTS, Header, LOGITS, METADATA_KEY, OFFSETS, PHASE, PREDICTIONS, TEXT, TEXT_OFFSETS, TOKEN_IDS, WEIGHTS,
    field,
};
use super::origin::Origin;
use crate::columns::{Columns, Floats, Ids, Phases, Text};
use crate::{DomainId, Geometry, ImportReport, Result, RoutingSource, Sequence, TraceError, WarningKind};

#[cfg(target_endian = "big")]
compile_error!("safetensors is little-endian, and traces are read in place");

/// A trace file, mapped into memory.
///
/// Opening checks the header and the sequence offsets; ids, weights and phases are checked when their sequence is read.
/// A file that was cut meanwhile is an error when its next sequence is read ([`TraceError::Shrunk`]). Pages of a sequence
/// that is in use when the file is cut raise SIGBUS, as in every mapped file; a process that must not end so handles that
/// signal. Writers that replace whole files, as those of this crate do, cut none.
///
/// The plain layout (`experts` `[tokens, layers, k]` and `sequence_offsets`, geometry in string metadata) is read too.
#[derive(Debug)]
pub struct TraceFile {
    origin: Origin,
    map: Mmap,
    geometry: Geometry,
    header: Header,
    offsets: Vec<usize>,
    domain_of: Option<Vec<i16>>,
    experts: ExpertColumn,
    weights: Option<FloatColumn>,
    logits: Option<FloatColumn>,
    token_ids: Option<Column<u32>>,
    predictions: Option<Column<u32>>,
    text: Option<TextColumn>,
    phases: Option<Column<u8>>,
}

#[derive(Debug)]
enum ExpertColumn {
    U8(Column<u8>),
    U16(Column<u16>),
}

#[derive(Debug)]
enum FloatColumn {
    F16(Column<f16>),
    BF16(Column<bf16>),
    F32(Column<f32>),
}

#[derive(Debug)]
struct TextColumn {
    bytes: Column<u8>,
    offsets: Column<i64>,
}

const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

impl FloatColumn {
    fn find(map: &Mmap, data_start: usize, metadata: &Metadata, name: &str) -> Option<FloatColumn> {
        Some(match metadata.info(name)?.dtype {
            Dtype::F16 => FloatColumn::F16(Column::find(map, data_start, metadata, name, Dtype::F16)?),
            Dtype::BF16 => FloatColumn::BF16(Column::find(map, data_start, metadata, name, Dtype::BF16)?),
            _ => FloatColumn::F32(Column::find(map, data_start, metadata, name, Dtype::F32)?),
        })
    }

    fn floats<'a>(&'a self, map: &'a Mmap) -> Floats<'a> {
        match self {
            FloatColumn::F16(column) => Floats::F16(column.as_slice(map)),
            FloatColumn::BF16(column) => Floats::BF16(column.as_slice(map)),
            FloatColumn::F32(column) => Floats::F32(column.as_slice(map)),
        }
    }
}

impl TextColumn {
    /// The text of a range of tokens, its offsets checked.
    fn text<'a>(&'a self, map: &'a Mmap, sequence: usize, tokens: std::ops::Range<usize>) -> Result<Text<'a>> {
        let bytes = self.bytes.as_slice(map);
        let offsets = &self.offsets.as_slice(map)[tokens.start..=tokens.end];
        let (mut last, max) = (0, bytes.len());
        for (token, &offset) in offsets.iter().enumerate() {
            if offset < last || usize::try_from(offset).is_ok_and(|offset| offset > max) {
                return Err(TraceError::TextOffset { sequence, token, offset, min: last, max });
            }
            last = offset;
        }
        let at = |index: usize| usize::try_from(offsets[index]).expect("checked above");
        Ok(Text { bytes: &bytes[at(0)..at(offsets.len() - 1)], offsets })
    }
}

impl TraceFile {
    /// Opens a trace file.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`TraceError::Truncated`] for a file that was cut, [`TraceError::Safetensors`] for one that is
    /// not safetensors,
    /// [`TraceError::Field`] and [`TraceError::MissingField`] for a header that is not a trace's.
    pub fn open(path: impl AsRef<Path>) -> Result<TraceFile> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| TraceError::Io {
            path: path.to_owned(),
            action: "open the file",
            source,
        })?;
        TraceFile::of_file(path, &file)
    }

    /// Opens a trace file that is open; `path` is its name.
    pub(crate) fn of_file(path: &Path, file: &File) -> Result<TraceFile> {
        let io = |action| move |source| TraceError::Io { path: path.to_owned(), action, source };
        let map = map_file(file).map_err(io("map the file"))?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|source| damage(path, &map, source))?;
        let data_start = size_of::<u64>() + header_len;
        let missing = |field| TraceError::MissingField { path: path.to_owned(), field };

        let experts = metadata.info(EXPERTS).ok_or_else(|| missing("tensor experts"))?;
        let shape = <[usize; 3]>::try_from(experts.shape.as_slice()).map_err(|_| {
            field(path, EXPERTS, &format!("of shape {:?}", experts.shape), "expected [tokens, layers, top_k]")
        })?;
        let (mut header, geometry) = Header::read(path, metadata.metadata().as_ref(), shape)?;
        if metadata.metadata().as_ref().is_none_or(|texts| !texts.contains_key(METADATA_KEY)) {
            name_unread_tensors(&metadata, &mut header.import_warnings);
        }
        // A narrow 255 is an empty slot, so it cannot also be an expert.
        let narrow = geometry.experts() <= usize::from(u8::MAX);
        let id_types: &[Dtype] = if narrow { &[Dtype::U8, Dtype::U16] } else { &[Dtype::U16] };
        check(path, &metadata, EXPERTS, id_types, &shape)?;
        check(path, &metadata, WEIGHTS, &FLOATS, &shape)?;
        check(path, &metadata, LOGITS, &FLOATS, &[shape[0], shape[1], geometry.experts()])?;
        check(path, &metadata, TOKEN_IDS, &[Dtype::U32], &shape[..1])?;
        check(path, &metadata, PREDICTIONS, &[Dtype::U32], &shape[..1])?;
        check(path, &metadata, PHASE, &[Dtype::U8], &shape[..1])?;
        let offsets = read_offsets(path, &map, data_start, &metadata, shape[0])?
            .ok_or_else(|| missing("tensor sequence_offsets"))?;
        let domain_of = read_domains(path, &map, data_start, &metadata, &header, offsets.len() - 1)?;

        let experts = match Column::find(&map, data_start, &metadata, EXPERTS, Dtype::U8) {
            Some(column) => ExpertColumn::U8(column),
            None => Column::find(&map, data_start, &metadata, EXPERTS, Dtype::U16)
                .map(ExpertColumn::U16)
                .ok_or_else(|| missing("tensor experts"))?,
        };
        Ok(TraceFile {
            origin: Origin::of(path, file).map_err(io("open the file"))?,
            weights: FloatColumn::find(&map, data_start, &metadata, WEIGHTS),
            logits: FloatColumn::find(&map, data_start, &metadata, LOGITS),
            token_ids: Column::find(&map, data_start, &metadata, TOKEN_IDS, Dtype::U32),
            predictions: Column::find(&map, data_start, &metadata, PREDICTIONS, Dtype::U32),
            text: find_text(path, &map, data_start, &metadata, shape[0])?,
            phases: Column::find(&map, data_start, &metadata, PHASE, Dtype::U8),
            map,
            geometry,
            header,
            offsets,
            domain_of,
            experts,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.origin.path()
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }
}

#[expect(unsafe_code, reason = "mapping a file is what makes reading zero-copy")]
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read only. As with every mapped file, somebody who truncates it while it is open makes reads
    // fault; writers of this crate never change a file in place, they rename complete files.
    unsafe { Mmap::map(file) }
}

fn read_offsets(
    path: &Path,
    map: &Mmap,
    data_start: usize,
    metadata: &Metadata,
    tokens: usize,
) -> Result<Option<Vec<usize>>> {
    let Some(info) = metadata.info(OFFSETS) else { return Ok(None) };
    let sequences = info.shape.first().copied().unwrap_or(0);
    if sequences == 0 {
        return Err(field(path, OFFSETS, &format!("of shape {:?}", info.shape), "expected [sequences + 1]"));
    }
    check(path, metadata, OFFSETS, &[Dtype::I64], &[sequences])?;
    let column = Column::<i64>::find(map, data_start, metadata, OFFSETS, Dtype::I64);
    let mut offsets = Vec::with_capacity(sequences);
    for &offset in column.as_ref().map_or(&[][..], |column| column.as_slice(map)) {
        let last = offsets.last().copied().unwrap_or(0);
        let value = usize::try_from(offset).ok().filter(|value| (last..=tokens).contains(value));
        let name = || format!("{OFFSETS}[{}]", offsets.len());
        offsets.push(value.ok_or_else(|| {
            field(path, &name(), &offset.to_string(), &format!("expected {last}..={tokens}, in ascending order"))
        })?);
    }
    if offsets.first() != Some(&0) || offsets.last() != Some(&tokens) {
        let value = first_and_last(&offsets);
        return Err(field(path, OFFSETS, &value, &format!("expected 0 first and {tokens} last")));
    }
    Ok(Some(offsets))
}

/// Warns of tensors that the plain layout does not have: another program wrote them, and they may change what tokens mean.
fn name_unread_tensors(metadata: &Metadata, report: &mut ImportReport) {
    let known = [EXPERTS, OFFSETS, PHASE, DOMAIN, WEIGHTS, LOGITS, TOKEN_IDS, PREDICTIONS, TEXT, TEXT_OFFSETS]
        .map(str::to_owned);
    let mut names: Vec<String> = metadata.tensors().into_keys().filter(|name| !known.contains(name)).collect();
    names.sort_unstable();
    if !names.is_empty() {
        let seen = || (None, format!("tensors that the layout does not have are not used: {}", names.join(", ")));
        let remedy = "call them as the layout does: weights, phase (0 prefill, 1 decode)";
        report.warn(WarningKind::COLUMN_NOT_USED, remedy, seen);
    }
}

/// The first and the last of some offsets, for a message.
fn first_and_last<T: std::fmt::Display>(offsets: &[T]) -> String {
    match offsets {
        [] => "empty".to_owned(),
        [only] => only.to_string(),
        [first, .., last] => format!("{first}..{last}"),
    }
}

/// The two tensors of the text; both or none must be there.
fn find_text(
    path: &Path,
    map: &Mmap,
    data_start: usize,
    metadata: &Metadata,
    tokens: usize,
) -> Result<Option<TextColumn>> {
    let Some(info) = metadata.info(TEXT) else {
        return match metadata.info(TEXT_OFFSETS) {
            Some(_) => Err(TraceError::MissingField { path: path.to_owned(), field: "tensor text" }),
            None => Ok(None),
        };
    };
    let bytes = info.shape.iter().product();
    check(path, metadata, TEXT, &[Dtype::U8], &[bytes])?;
    let missing = || TraceError::MissingField { path: path.to_owned(), field: "tensor text_offsets" };
    if !check(path, metadata, TEXT_OFFSETS, &[Dtype::I64], &[tokens + 1])? {
        return Err(missing());
    }
    let offsets = Column::find(map, data_start, metadata, TEXT_OFFSETS, Dtype::I64).ok_or_else(missing)?;
    let text = Column::find(map, data_start, metadata, TEXT, Dtype::U8).ok_or_else(missing)?;
    let ends: &[i64] = offsets.as_slice(map);
    if ends.first() != Some(&0) || ends.last().and_then(|&last| usize::try_from(last).ok()) != Some(bytes) {
        let value = first_and_last(ends);
        return Err(field(path, TEXT_OFFSETS, &value, &format!("expected 0 first and {bytes} last")));
    }
    Ok(Some(TextColumn { bytes: text, offsets }))
}

fn read_domains(
    path: &Path,
    map: &Mmap,
    data_start: usize,
    metadata: &Metadata,
    header: &Header,
    sequences: usize,
) -> Result<Option<Vec<i16>>> {
    if !check(path, metadata, DOMAIN, &[Dtype::I16], &[sequences])? {
        return Ok(None);
    }
    let Some(column) = Column::<i16>::find(map, data_start, metadata, DOMAIN, Dtype::I16) else { return Ok(None) };
    let domains = column.as_slice(map).to_vec();
    let named = |domain: i16| usize::try_from(domain).is_ok_and(|domain| domain < header.domains.len());
    match domains.iter().position(|&domain| domain != NO_DOMAIN && !named(domain)) {
        Some(index) => {
            let limit = format!("expected -1 or one of the {} named domains", header.domains.len());
            Err(field(path, &format!("{DOMAIN}[{index}]"), &domains[index].to_string(), &limit))
        }
        None => Ok(Some(domains)),
    }
}

/// Marks a sequence without a domain.
pub(super) const NO_DOMAIN: i16 = -1;

impl RoutingSource for TraceFile {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let len = self.len();
        if index >= len {
            return Err(TraceError::NoSuchSequence { index, len });
        }
        self.origin.check()?;
        let tokens = self.offsets[index]..self.offsets[index + 1];
        let row = self.geometry.layers() * self.geometry.top_k();
        let slots = tokens.start * row..tokens.end * row;
        let source = |source| TraceError::InvalidSequence { path: self.path().to_owned(), source: Box::new(source) };
        let map = &self.map;
        let logits = self.geometry.layers() * self.geometry.experts();
        let logits = tokens.start * logits..tokens.end * logits;
        let columns = Columns {
            experts: match &self.experts {
                ExpertColumn::U8(column) => Ids::U8(&column.as_slice(map)[slots.clone()]),
                ExpertColumn::U16(column) => Ids::U16(&column.as_slice(map)[slots.clone()]),
            },
            weights: self.weights.as_ref().map(|column| column.floats(map).slice(slots.clone())),
            logits: self.logits.as_ref().map(|column| column.floats(map).slice(logits)),
            token_ids: self.token_ids.as_ref().map(|column| &column.as_slice(map)[tokens.clone()]),
            predictions: self.predictions.as_ref().map(|column| &column.as_slice(map)[tokens.clone()]),
            text: match &self.text {
                Some(text) => Some(text.text(map, index, tokens.clone()).map_err(source)?),
                None => None,
            },
            phases: match &self.phases {
                Some(column) => Phases::Codes(&column.as_slice(map)[tokens.clone()]),
                None => Phases::All(self.header.phase),
            },
            domain: self.domain_of.as_ref().and_then(|domains| u16::try_from(domains[index]).ok()).map(DomainId),
        };
        Sequence::checked(&self.geometry, index, columns).map_err(source)
    }

    fn sequence_len(&self, index: usize) -> Result<usize> {
        let len = self.len();
        match self.offsets.get(index..).and_then(|offsets| offsets.get(..2)) {
            Some(offsets) => Ok(offsets[1] - offsets[0]),
            None => Err(TraceError::NoSuchSequence { index, len }),
        }
    }

    fn domains(&self) -> &[String] {
        &self.header.domains
    }

    fn model(&self) -> Option<&str> {
        self.header.model.as_deref()
    }

    fn import_report(&self) -> &ImportReport {
        &self.header.import_warnings
    }
}
