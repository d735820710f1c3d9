//! Parquet files with named columns.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};

use super::rows::{Claims, Row, RowSource, are_enough, names, open, phase};
use super::{ImportOptions, Importer, Sample, io, record};
use crate::{EMPTY_SLOT, Geometry, Place, Result, SequenceStream, TraceError};

/// One row a token and layer, with the columns of delimited text: `token`, `layer` and `experts` (a list) or `expert`.
pub(super) struct Parquet;

impl Importer for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn description(&self) -> &'static str {
        "Parquet with named columns: token, layer, experts (a list) or expert, ..."
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.head().starts_with(b"PAR1")
    }

    fn open(&self, path: &Path, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        open(options, || Rows::open(path, options))
    }
}

struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    options: ImportOptions,
    claims: Claims,
    number: u64,
}

fn malformed(path: &Path, source: ParquetError) -> TraceError {
    TraceError::Malformed { path: path.to_owned(), format: "Parquet", source: Box::new(source) }
}

/// Runs the decoder. It panics on some files that are broken; that is an error of the file like any other.
fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    // After a panic the error goes up and nothing of the decoder is used again.
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    let decoded = decoded.unwrap_or_else(|_| Err(ParquetError::General("the decoder gave up".to_owned())));
    decoded.map_err(|source| malformed(path, source))
}

/// Checks that every column of every row group lies within the file.
fn check_ranges(path: &Path, metadata: &ParquetMetaData, bytes: u64) -> Result<()> {
    for (number, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            let len = column.compressed_size();
            let end = start.checked_add(len).and_then(|end| u64::try_from(end).ok());
            if start < 0 || len < 0 || end.is_none_or(|end| end > bytes) {
                let place = Place::Entry(format!("row group {number}, column {}", column.column_path().string()));
                return Err(record(
                    path,
                    place,
                    "bytes",
                    &format!("{len} from {start}"),
                    format!("the file has {bytes}"),
                ));
            }
        }
    }
    Ok(())
}

impl Rows {
    fn open(path: &Path, options: &ImportOptions) -> Result<Rows> {
        let file = File::open(path).map_err(io(path, "open the file"))?;
        let bytes = file.metadata().map_err(io(path, "read the size"))?.len();
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        check_ranges(path, reader.metadata(), bytes)?;
        let metadata = reader.metadata().file_metadata();
        let columns: Vec<&str> = metadata.schema().get_fields().iter().map(|field| field.name()).collect();
        if options.columns.is_empty() && !are_enough(columns.iter().copied()) {
            let limit = "expected token, layer and experts or expert; name others by options";
            return Err(record(path, Place::Entry("schema".into()), "columns", &columns.join(","), limit));
        }
        let claim = |key: &str| {
            let pairs = metadata.key_value_metadata().map(Vec::as_slice).unwrap_or_default();
            pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone())
        };
        let number = |key: &str| match claim(key) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| record(path, Place::Entry("metadata".into()), key, &text, "expected a whole number")),
        };
        let claims = Claims {
            model: claim("moe_trace_model"),
            experts: number("moe_trace_experts")?,
            top_k: number("moe_trace_top_k")?,
        };
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Rows { path: path.to_owned(), rows, options: options.clone(), claims, number: 0 })
    }

    fn find<'a>(&self, record: &'a Record, column: &str) -> Option<&'a Field> {
        let names = names(column, &self.options);
        let found = names.iter().find_map(|name| record.get_column_iter().find(|(found, _)| *found == name));
        found.map(|(_, field)| field).filter(|field| !matches!(field, Field::Null))
    }

    fn number<T: TryFrom<i64>>(&self, record: &Record, column: &str) -> Result<Option<T>> {
        let Some(field) = self.find(record, column) else { return Ok(None) };
        let number = integer(field).and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.error(column, &field.to_string(), "expected a whole number in range"))
    }

    fn must<T: TryFrom<i64>>(&self, record: &Record, column: &str) -> Result<T> {
        self.number(record, column)?.ok_or_else(|| self.error(column, "missing", "expected a number"))
    }

    /// A string, or a number as text.
    fn text(&self, record: &Record, column: &str) -> Option<String> {
        self.find(record, column).map(|field| match field {
            Field::Str(text) => text.clone(),
            Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned(),
            other => other.to_string(),
        })
    }

    /// A list, or one value as a list of one.
    fn list<'a>(&self, record: &'a Record, list: &str, one: &str) -> Option<&'a [Field]> {
        match self.find(record, list) {
            Some(Field::ListInternal(values)) => Some(values.elements()),
            Some(_) => None,
            None => self.find(record, one).map(std::slice::from_ref),
        }
    }
}

fn integer(field: &Field) -> Option<i64> {
    match field {
        Field::Byte(value) => Some(i64::from(*value)),
        Field::Short(value) => Some(i64::from(*value)),
        Field::Int(value) => Some(i64::from(*value)),
        Field::Long(value) => Some(*value),
        Field::UByte(value) => Some(i64::from(*value)),
        Field::UShort(value) => Some(i64::from(*value)),
        Field::UInt(value) => Some(i64::from(*value)),
        Field::ULong(value) => i64::try_from(*value).ok(),
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a trace has single precision, and the range is checked by who calls"
)]
fn float(field: &Field) -> Option<f32> {
    match field {
        Field::Float16(value) => Some(value.to_f32()),
        Field::Float(value) => Some(*value),
        Field::Double(value) => Some(*value as f32),
        Field::Null => Some(0.0),
        _ => None,
    }
}

impl RowSource for Rows {
    fn next(&mut self, row: &mut Row) -> Result<bool> {
        let rows = &mut self.rows;
        let Some(record) = guarded(&self.path, || rows.next().transpose())? else { return Ok(false) };
        self.number += 1;
        row.sequence = self.text(&record, "sequence").unwrap_or_default();
        row.token = self.must(&record, "token")?;
        row.layer = self.must(&record, "layer")?;
        row.encoder = match self.text(&record, "stack").as_deref() {
            None => None,
            Some("encoder") => Some(true),
            Some("decoder") => Some(false),
            Some(other) => return Err(self.error("stack", other, "expected encoder or decoder")),
        };
        row.slot = self.number::<i64>(&record, "slot")?.and_then(|slot| usize::try_from(slot).ok());
        row.phase = match self.text(&record, "phase").as_deref() {
            None => None,
            Some(text) => {
                Some(phase(text).ok_or_else(|| self.error("phase", text, "expected prefill, decode, 0 or 1"))?)
            }
        };
        row.domain = self.text(&record, "domain");
        row.token_id = self.number(&record, "token_id")?;
        row.prediction = self.number(&record, "prediction")?;
        let Some(experts) = self.list(&record, "experts", "expert") else {
            return Err(self.error("experts", "missing or no list", "expected a list of experts"));
        };
        row.experts.clear();
        for field in experts {
            let id = integer(field).and_then(|id| u16::try_from(id).ok());
            row.experts.push(match id.filter(|&id| usize::from(id) < Geometry::MAX_EXPERTS) {
                Some(id) => id,
                None if matches!(field, Field::Null) || integer(field) == Some(-1) => EMPTY_SLOT,
                None => {
                    let limit = format!("expected an expert below {}", Geometry::MAX_EXPERTS);
                    return Err(self.error("expert", &field.to_string(), &limit));
                }
            });
        }
        row.weights.clear();
        for field in self.list(&record, "weights", "weight").unwrap_or_default() {
            let weight = float(field).filter(|weight| weight.is_finite());
            row.weights
                .push(weight.ok_or_else(|| self.error("weight", &field.to_string(), "expected a finite number"))?);
        }
        if !row.weights.is_empty() && row.weights.len() != row.experts.len() {
            let limit = format!("there are {} experts", row.experts.len());
            return Err(self.error("weights", &format!("{} numbers", row.weights.len()), &limit));
        }
        Ok(true)
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }

    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, Place::Entry(format!("row {}", self.number)), field, value, limit)
    }
}
