//! Parquet.

use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::Exporter;
use super::rows::{Has, Row, for_each};
use crate::{Result, RoutingSource, TraceError, WholeFile};

/// One row a token and layer, experts and weights as lists; empty slots are nulls.
pub(super) struct Parquet;

/// Rows of a row group: they are held in memory.
const GROUP: usize = 1 << 16;

impl Exporter for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn description(&self) -> &'static str {
        "Parquet, a row a token and layer; without logits, text, empty sequences"
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        let has = Has::of(source)?;
        let geometry = source.geometry();
        let failed =
            |source| TraceError::Malformed { path: path.to_owned(), format: "Parquet", source: Box::new(source) };
        let optional = |present: bool, text: &'static str| if present { text } else { "" };
        let schema = format!(
            "message routing {{ required int64 sequence; required int64 token; required int64 layer;
             required binary stack (UTF8); required binary phase (UTF8); {} {} {}
             required group experts (LIST) {{ repeated group list {{ optional int32 element; }} }} {} }}",
            optional(has.domains, "optional binary domain (UTF8);"),
            optional(has.token_ids, "required int64 token_id;"),
            optional(has.predictions, "required int64 prediction;"),
            optional(has.weights, "required group weights (LIST) { repeated group list { optional float element; } }"),
        );
        let schema = Arc::new(parse_message_type(&schema).map_err(failed)?);
        let mut claims = vec![
            KeyValue::new("moe_trace_experts".to_owned(), geometry.experts().to_string()),
            KeyValue::new("moe_trace_top_k".to_owned(), geometry.top_k().to_string()),
        ];
        claims.extend(source.model().map(|model| KeyValue::new("moe_trace_model".to_owned(), model.to_owned())));
        let properties = Arc::new(WriterProperties::builder().set_key_value_metadata(Some(claims)).build());
        let file = WholeFile::create(path).map_err(TraceError::writing(path))?;
        let mut writer = SerializedFileWriter::new(file, schema, properties).map_err(failed)?;

        let mut group = Group::default();
        for_each(source, has, progress, |row| {
            group.push(row, geometry.top_k());
            if group.token.len() < GROUP { Ok(()) } else { group.write(&mut writer, has).map_err(failed) }
        })?;
        if !group.token.is_empty() {
            group.write(&mut writer, has).map_err(failed)?;
        }
        writer.into_inner().map_err(failed)?.commit().map_err(TraceError::writing(path))
    }
}

/// The columns of a row group.
#[derive(Default)]
struct Group {
    sequence: Vec<i64>,
    token: Vec<i64>,
    layer: Vec<i64>,
    stack: Vec<ByteArray>,
    phase: Vec<ByteArray>,
    domain: Vec<ByteArray>,
    /// 1 where there is a domain.
    domain_levels: Vec<i16>,
    token_id: Vec<i64>,
    prediction: Vec<i64>,
    experts: Vec<i32>,
    weights: Vec<f32>,
    /// For each slot 2 where there is an expert, 1 where it is empty; and 0 at the first slot of a row, 1 at the others.
    slot_levels: Vec<i16>,
    repetition: Vec<i16>,
}

impl Group {
    fn push(&mut self, row: &Row<'_>, top_k: usize) {
        let wide = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.sequence.push(wide(row.sequence));
        self.token.push(wide(row.token));
        self.layer.push(i64::from(row.layer));
        self.stack.push(row.stack.into());
        self.phase.push(row.phase.into());
        self.domain_levels.push(i16::from(row.domain.is_some()));
        self.domain.extend(row.domain.map(ByteArray::from));
        self.token_id.extend(row.token_id.map(i64::from));
        self.prediction.extend(row.prediction.map(i64::from));
        self.experts.extend(row.experts.iter().map(|&(_, expert)| i32::from(expert)));
        self.weights.extend(row.weights.unwrap_or_default());
        let start = self.slot_levels.len();
        self.slot_levels.resize(start + top_k, 1);
        row.experts.iter().for_each(|&(slot, _)| self.slot_levels[start + slot] = 2);
        self.repetition.extend((0..top_k).map(|slot| i16::from(slot > 0)));
    }

    /// Writes the rows as a row group, and forgets them.
    fn write(&mut self, writer: &mut SerializedFileWriter<WholeFile>, has: Has) -> Result<(), ParquetError> {
        let mut group = writer.next_row_group()?;
        for column in [&self.sequence, &self.token, &self.layer] {
            write_numbers(&mut group, column)?;
        }
        for column in [&self.stack, &self.phase] {
            if let Some(mut writer) = group.next_column()? {
                writer.typed::<ByteArrayType>().write_batch(column, None, None)?;
                writer.close()?;
            }
        }
        if has.domains
            && let Some(mut writer) = group.next_column()?
        {
            writer.typed::<ByteArrayType>().write_batch(&self.domain, Some(&self.domain_levels), None)?;
            writer.close()?;
        }
        for (column, present) in [(&self.token_id, has.token_ids), (&self.prediction, has.predictions)] {
            if present {
                write_numbers(&mut group, column)?;
            }
        }
        let (levels, repetition) = (Some(self.slot_levels.as_slice()), Some(self.repetition.as_slice()));
        if let Some(mut writer) = group.next_column()? {
            writer.typed::<Int32Type>().write_batch(&self.experts, levels, repetition)?;
            writer.close()?;
        }
        if has.weights
            && let Some(mut writer) = group.next_column()?
        {
            writer.typed::<FloatType>().write_batch(&self.weights, levels, repetition)?;
            writer.close()?;
        }
        group.close()?;
        *self = Group::default();
        Ok(())
    }
}

fn write_numbers(
    group: &mut SerializedRowGroupWriter<'_, WholeFile>,
    column: &[i64],
) -> std::result::Result<(), ParquetError> {
    if let Some(mut writer) = group.next_column()? {
        writer.typed::<Int64Type>().write_batch(column, None, None)?;
        writer.close()?;
    }
    Ok(())
}
