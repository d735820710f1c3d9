//! Writing complete files.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

use super::header::{
    DOMAIN, EXPERTS, Header, LOGITS, OFFSETS, PHASE, PREDICTIONS, TEXT, TEXT_OFFSETS, TOKEN_IDS, WEIGHTS,
};
use super::narrow::narrowest;
use super::reader::NO_DOMAIN;
use crate::{
    EMPTY_SLOT, Geometry, ImportReport, Result, RoutingSource, SequenceBuf, TokenText, TraceError, write_whole,
};

/// Writes a source as one trace file. The file is complete or absent.
///
/// An optional column is written if all sequences (that have a token) have it. The columns are held in memory; for a long capture use a [`ShardedWriter`](crate::ShardedWriter).
///
/// # Errors
/// What reading the source finds; [`TraceError::DomainLimit`], [`TraceError::Io`], [`TraceError::Safetensors`].
pub fn write_trace(path: impl AsRef<Path>, source: &dyn RoutingSource) -> Result<()> {
    let mut header = Header::new(source.geometry(), source.domains(), source.model());
    header.import_warnings = ImportReport::of_copy(source);
    let mut columns = Columns::new(source.geometry());
    for index in 0..source.len() {
        columns.push(&source.sequence(index)?.to_buf())?;
    }
    columns.write(path.as_ref(), &header)?;
    Ok(())
}

/// The tensors of a file that is being made. Optional columns exist if all sequences have them.
#[derive(Debug)]
pub(crate) struct Columns {
    experts: Vec<u16>,
    weights: Option<Vec<f32>>,
    logits: Option<Vec<f32>>,
    token_ids: Option<Vec<u32>>,
    predictions: Option<Vec<u32>>,
    text: Option<TokenText>,
    phases: Vec<u8>,
    domains: Vec<i16>,
    offsets: Vec<i64>,
    geometry: Geometry,
}

impl Columns {
    pub(crate) fn new(geometry: &Geometry) -> Columns {
        Columns {
            experts: Vec::new(),
            weights: Some(Vec::new()),
            logits: Some(Vec::new()),
            token_ids: Some(Vec::new()),
            predictions: Some(Vec::new()),
            text: Some(TokenText::default()),
            phases: Vec::new(),
            domains: Vec::new(),
            offsets: vec![0],
            geometry: geometry.clone(),
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.phases.len()
    }

    pub(crate) fn sequences(&self) -> usize {
        self.domains.len()
    }

    /// Appends a checked sequence.
    pub(crate) fn push(&mut self, sequence: &SequenceBuf) -> Result<()> {
        let limit = |domain| TraceError::DomainLimit { domain: usize::from(domain), max: i16::MAX as usize };
        let domain = sequence.domain.map(|domain| i16::try_from(domain.0).map_err(|_| limit(domain.0))).transpose()?;
        self.domains.push(domain.unwrap_or(NO_DOMAIN));
        self.experts.extend_from_slice(&sequence.experts);
        self.phases.extend_from_slice(&sequence.phases);
        self.offsets.push(i64::try_from(self.phases.len()).expect("a Vec holds at most isize::MAX bytes"));
        if !sequence.phases.is_empty() {
            extend_or_drop(&mut self.weights, sequence.weights.as_deref());
            extend_or_drop(&mut self.logits, sequence.logits.as_deref());
            extend_or_drop(&mut self.token_ids, sequence.token_ids.as_deref());
            extend_or_drop(&mut self.predictions, sequence.predictions.as_deref());
            match (self.text.as_mut(), &sequence.text) {
                (Some(column), Some(text)) => column.append(text),
                _ => self.text = None,
            }
        }
        Ok(())
    }

    /// Hands the tensors of the file to `take`, which see them borrowed.
    pub(crate) fn tensors<T>(&self, take: impl FnOnce(Vec<Tensor<'_>>) -> T) -> T {
        let (tokens, sequences) = (self.phases.len(), self.domains.len());
        let ids = vec![tokens, self.geometry.layers(), self.geometry.top_k()];
        let narrow: Vec<u8>;
        let (id_dtype, id_bytes) = if self.geometry.experts() <= usize::from(u8::MAX) {
            narrow = self.experts.iter().map(|&id| narrow_id(id)).collect();
            (Dtype::U8, narrow.as_slice())
        } else {
            (Dtype::U16, bytemuck::cast_slice(&self.experts))
        };
        let mut tensors = vec![
            (EXPERTS, id_dtype, ids.clone(), id_bytes),
            (PHASE, Dtype::U8, vec![tokens], self.phases.as_slice()),
            (DOMAIN, Dtype::I16, vec![sequences], bytemuck::cast_slice(&self.domains)),
            (OFFSETS, Dtype::I64, vec![sequences + 1], bytemuck::cast_slice(&self.offsets)),
        ];
        let logits = vec![tokens, self.geometry.layers(), self.geometry.experts()];
        let weights = self.weights.as_deref().filter(|weights| !weights.is_empty()).map(narrowest);
        let scores = self.logits.as_deref().filter(|logits| !logits.is_empty()).map(narrowest);
        for (name, column, shape) in [(WEIGHTS, &weights, ids), (LOGITS, &scores, logits)] {
            if let Some((dtype, bytes)) = column {
                tensors.push((name, *dtype, shape, bytes));
            }
        }
        for (name, column) in [(TOKEN_IDS, &self.token_ids), (PREDICTIONS, &self.predictions)] {
            if let Some(column) = column.as_deref().filter(|column| !column.is_empty()) {
                tensors.push((name, Dtype::U32, vec![tokens], bytemuck::cast_slice(column)));
            }
        }
        if let Some(text) = self.text.as_ref().filter(|text| !text.is_empty()) {
            tensors.push((TEXT, Dtype::U8, vec![text.bytes().len()], text.bytes()));
            tensors.push((TEXT_OFFSETS, Dtype::I64, vec![tokens + 1], bytemuck::cast_slice(text.offsets())));
        }
        take(tensors)
    }

    /// Writes the file; returns its CRC-32.
    pub(crate) fn write(&self, path: &Path, header: &Header) -> Result<u32> {
        let bytes = self.tensors(|tensors| {
            tensors
                .into_iter()
                .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
                .collect::<Result<Vec<_>, SafeTensorError>>()
                .and_then(|views| safetensors::serialize(views, Some(header.to_metadata())))
        });
        let bytes = bytes.map_err(|source| TraceError::Safetensors { path: path.to_owned(), source })?;
        write_whole(path, &bytes).map_err(TraceError::writing(path))?;
        Ok(crc32fast::hash(&bytes))
    }
}

/// Name, type, shape and bytes.
pub(crate) type Tensor<'a> = (&'static str, Dtype, Vec<usize>, &'a [u8]);

fn narrow_id(id: u16) -> u8 {
    if id == EMPTY_SLOT { u8::MAX } else { u8::try_from(id).expect("ids are below 255 here, checked on push") }
}

fn extend_or_drop<T: Copy>(column: &mut Option<Vec<T>>, values: Option<&[T]>) {
    match (column.as_mut(), values) {
        (Some(column), Some(values)) => column.extend_from_slice(values),
        _ => *column = None,
    }
}
