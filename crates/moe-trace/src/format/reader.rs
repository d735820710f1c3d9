//! Memory-mapped reading.

use std::fs::File;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::column::{Column, check};
use super::header::{DOMAIN, EXPERTS, Header, OFFSETS, PHASE, TOKEN_IDS, WEIGHTS, field};
use crate::sequence::{Columns, Ids, PhaseColumn, Weights};
use crate::{DomainId, Geometry, Result, RoutingSource, Sequence, TraceError};

#[cfg(target_endian = "big")]
compile_error!("safetensors is little-endian, and traces are read in place");

/// A trace file, mapped into memory.
///
/// Opening checks the header and the sequence offsets; ids, weights and phases are checked when their sequence is read.
/// The plain layout (`experts` `[tokens, layers, k]` and `sequence_offsets`, geometry in string metadata) is read too.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    map: Mmap,
    geometry: Geometry,
    header: Header,
    offsets: Vec<usize>,
    domain_of: Option<Vec<i16>>,
    experts: ExpertColumn,
    weights: Option<WeightColumn>,
    token_ids: Option<Column<u32>>,
    phases: Option<Column<u8>>,
}

#[derive(Debug)]
enum ExpertColumn {
    U8(Column<u8>),
    U16(Column<u16>),
}

#[derive(Debug)]
enum WeightColumn {
    F16(Column<f16>),
    F32(Column<f32>),
}

impl TraceFile {
    /// Opens a trace file.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`TraceError::Safetensors`] for a file that is truncated or not safetensors,
    /// [`TraceError::Field`] and [`TraceError::MissingField`] for a header that is not a trace's.
    pub fn open(path: impl AsRef<Path>) -> Result<TraceFile> {
        let path = path.as_ref();
        let io = |action| move |source| TraceError::Io { path: path.to_owned(), action, source };
        let file = File::open(path).map_err(io("open the file"))?;
        let map = map_file(&file).map_err(io("map the file"))?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| TraceError::Safetensors { path: path.to_owned(), source })?;
        let data_start = size_of::<u64>() + header_len;
        let missing = |field| TraceError::MissingField { path: path.to_owned(), field };

        let experts = metadata.info(EXPERTS).ok_or_else(|| missing("tensor experts"))?;
        let shape = <[usize; 3]>::try_from(experts.shape.as_slice()).map_err(|_| {
            field(path, EXPERTS, &format!("of shape {:?}", experts.shape), "expected [tokens, layers, top_k]")
        })?;
        let (header, geometry) = Header::read(path, metadata.metadata().as_ref(), shape)?;
        // A narrow 255 is an empty slot, so it cannot also be an expert.
        let narrow = geometry.experts() <= usize::from(u8::MAX);
        let id_types: &[Dtype] = if narrow { &[Dtype::U8, Dtype::U16] } else { &[Dtype::U16] };
        check(path, &metadata, EXPERTS, id_types, &shape)?;
        check(path, &metadata, WEIGHTS, &[Dtype::F16, Dtype::F32], &shape)?;
        check(path, &metadata, TOKEN_IDS, &[Dtype::U32], &shape[..1])?;
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
        let weights = Column::find(&map, data_start, &metadata, WEIGHTS, Dtype::F16)
            .map(WeightColumn::F16)
            .or_else(|| Column::find(&map, data_start, &metadata, WEIGHTS, Dtype::F32).map(WeightColumn::F32));
        let token_ids = Column::find(&map, data_start, &metadata, TOKEN_IDS, Dtype::U32);
        let phases = Column::find(&map, data_start, &metadata, PHASE, Dtype::U8);
        let path = path.to_owned();
        Ok(TraceFile { path, map, geometry, header, offsets, domain_of, experts, weights, token_ids, phases })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
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
        let value = format!("{:?}..{:?}", offsets.first(), offsets.last());
        return Err(field(path, OFFSETS, &value, &format!("expected 0 first and {tokens} last")));
    }
    Ok(Some(offsets))
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
        let tokens = self.offsets[index]..self.offsets[index + 1];
        let row = self.geometry.layers() * self.geometry.top_k();
        let slots = tokens.start * row..tokens.end * row;
        let columns = Columns {
            experts: match &self.experts {
                ExpertColumn::U8(column) => Ids::U8(&column.as_slice(&self.map)[slots.clone()]),
                ExpertColumn::U16(column) => Ids::U16(&column.as_slice(&self.map)[slots.clone()]),
            },
            weights: self.weights.as_ref().map(|weights| match weights {
                WeightColumn::F16(column) => Weights::F16(&column.as_slice(&self.map)[slots.clone()]),
                WeightColumn::F32(column) => Weights::F32(&column.as_slice(&self.map)[slots.clone()]),
            }),
            token_ids: self.token_ids.as_ref().map(|column| &column.as_slice(&self.map)[tokens.clone()]),
            phases: match &self.phases {
                Some(column) => PhaseColumn::Codes(&column.as_slice(&self.map)[tokens.clone()]),
                None => PhaseColumn::All(self.header.phase),
            },
            domain: self.domain_of.as_ref().and_then(|domains| u16::try_from(domains[index]).ok()).map(DomainId),
        };
        let source = |source| TraceError::InvalidSequence { path: self.path.clone(), source: Box::new(source) };
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
}
