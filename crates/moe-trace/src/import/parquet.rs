//! Parquet files with named columns.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as ParquetRow};

use super::numbers::{self, whole, whole_float};
use super::records::{Record, Value};
use super::row_sequences::open;
use super::rows::{self, Claims, Row, RowSource, are_enough, names, spare};
use super::value_columns::refuse_doubles;
use super::{ImportOptions, Importer, Input, Sample, record};
use crate::{Place, Result, SequenceStream, TraceError};

/// One row a token and layer, with the columns of delimited text: `token`, `layer` and `experts` (a list) or `expert`.
pub(super) struct Parquet;

impl Importer for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn description(&self) -> &'static str {
        "Parquet with named columns: token, layer, experts (a list) or expert, ..."
    }

    fn options(&self) -> &'static [&'static str] {
        rows::OPTIONS
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.head().starts_with(b"PAR1")
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        open(input, options, || Rows::open(input, options))
    }
}

struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    columns: Vec<String>,
    options: ImportOptions,
    claims: Claims,
    /// Columns that may stand for another one, which is there under another name.
    spare: Vec<&'static str>,
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
    fn open(input: &Input, options: &ImportOptions) -> Result<Rows> {
        let path = input.path();
        let bytes = input.len()?;
        let whole = Bytes::from_owner(input.bytes()?);
        let reader = guarded(path, || SerializedFileReader::new(whole))?;
        check_ranges(path, reader.metadata(), bytes)?;
        let metadata = reader.metadata().file_metadata();
        let columns: Vec<&str> = metadata.schema().get_fields().iter().map(|field| field.name()).collect();
        if options.columns.is_empty() && !are_enough(columns.iter().copied()) {
            let limit = "expected token, layer and experts or expert; name others by options";
            return Err(record(path, Place::Entry("schema".into()), "columns", &columns.join(","), limit));
        }
        refuse_doubles(&columns, options)
            .map_err(|(field, value, limit)| record(path, Place::Entry("schema".into()), field, &value, limit))?;
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
            ..Claims::default()
        };
        let spare = spare(&columns, options);
        let columns = columns.into_iter().map(str::to_owned).collect();
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Rows { path: path.to_owned(), rows, columns, options: options.clone(), claims, spare, number: 0 })
    }

    fn find<'a>(&self, record: &'a ParquetRow, column: &str) -> Option<&'a Field> {
        let names = names(column, &self.options);
        let found = names.iter().find_map(|name| record.get_column_iter().find(|(found, _)| *found == name));
        found.map(|(_, field)| field).filter(|field| !matches!(field, Field::Null))
    }
}

impl Value for Field {
    fn is_null(&self) -> bool {
        matches!(self, Field::Null)
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Field::Byte(value) => Some(i64::from(*value)),
            Field::Short(value) => Some(i64::from(*value)),
            Field::Int(value) => Some(i64::from(*value)),
            Field::Long(value) => Some(*value),
            Field::UByte(value) => Some(i64::from(*value)),
            Field::UShort(value) => Some(i64::from(*value)),
            Field::UInt(value) => Some(i64::from(*value)),
            Field::ULong(value) => i64::try_from(*value).ok(),
            Field::Str(text) => whole(text),
            _ => self.float().and_then(whole_float),
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Field::Float16(value) => Some(value.to_f64()),
            Field::Float(value) => Some(f64::from(*value)),
            Field::Double(value) => Some(*value),
            Field::Str(text) => numbers::fields(text).first().and_then(|number| number.parse().ok()),
            _ => None,
        }
    }

    fn text(&self) -> Option<String> {
        Some(match self {
            Field::Str(text) => text.clone(),
            Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned(),
            other => other.to_string(),
        })
    }

    fn list(&self) -> Option<Cow<'_, [Field]>> {
        match self {
            Field::ListInternal(values) => Some(Cow::Borrowed(values.elements())),
            Field::Str(text) => {
                Some(numbers::fields(text).into_iter().map(|field| Field::Str(field.to_owned())).collect())
            }
            _ => None,
        }
    }

    fn boolean(&self) -> Option<bool> {
        if let Field::Bool(value) = self { Some(*value) } else { None }
    }
}

impl RowSource for Rows {
    fn next(&mut self, row: &mut Row) -> Result<bool> {
        let rows = &mut self.rows;
        let Some(record) = guarded(&self.path, || rows.next().transpose())? else { return Ok(false) };
        self.number += 1;
        let find = |column: &str| self.find(&record, column);
        let error = |field: &str, value: &str, limit: &str| self.error(field, value, limit);
        let fields = record.get_column_iter().map(|(name, value)| (name.as_str(), value));
        Record { options: &self.options, find, error }.read(row, fields)?;
        row.said.not_used.extend(&self.spare);
        Ok(true)
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }

    fn fields(&self) -> Vec<&str> {
        self.columns.iter().map(String::as_str).collect()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn place_of(&self, number: u64) -> Place {
        Place::Entry(format!("row {number}"))
    }

    fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, place, field, value, limit)
    }
}
