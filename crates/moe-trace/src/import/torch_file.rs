//! Files of `torch.save`: a zip archive of a pickle and storages.

use std::path::PathBuf;

use super::archive::Archive;
use super::array::{IntArray, IntType};
use super::pickle::{Pickle, Value};
use super::{Input, record};
use crate::{Place, Result, TraceError};

/// Tensors of a pickle can share what describes them, so that a description has to be small.
const LONGEST_KEY: usize = 20;
const MAX_RANK: usize = 8;

/// A file of `torch.save`.
pub(super) struct TorchFile {
    path: PathBuf,
    /// Length of the file.
    bytes: u64,
    archive: Archive,
    /// The folder in the archive.
    prefix: String,
    pickle: Pickle,
}

impl TorchFile {
    pub(super) fn open(input: &Input) -> Result<TorchFile> {
        let path = input.path();
        let mut archive = Archive::open(input)?;
        let names = archive.names()?;
        let Some(prefix) = names.iter().find_map(|name| name.strip_suffix("/data.pkl")) else {
            return Err(record(
                path,
                Place::Entry("archive".into()),
                "members",
                &names.join(","),
                "expected NAME/data.pkl",
            ));
        };
        let prefix = prefix.to_owned();
        if names.contains(&format!("{prefix}/byteorder")) && archive.read(&format!("{prefix}/byteorder"))? != b"little"
        {
            return Err(record(path, Place::Entry("byteorder".into()), "byte order", "another", "expected little"));
        }
        let name = format!("{prefix}/data.pkl");
        let bytes = archive.read_within(&name, input.max_pickle()?)?;
        let pickle = Pickle::read(&bytes).map_err(|error| {
            let place = Place::Entry(format!("{name}, byte {}", error.at));
            record(path, place, "pickle", &error.found, error.allowed)
        })?;
        Ok(TorchFile { path: path.to_owned(), bytes: input.len()?, archive, prefix, pickle })
    }

    /// The length of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    pub(super) fn error(&self, place: &str, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, Place::Entry(place.to_owned()), field, value, limit)
    }

    /// What a value of the pickle says about an integer tensor; `name` is for messages.
    pub(super) fn tensor(&self, name: &str, value: &Value) -> Result<TensorRef> {
        self.find_tensor(value).map_err(|(found, limit)| self.error(name, "tensor", &found, limit))
    }

    fn find_tensor(&self, value: &Value) -> std::result::Result<TensorRef, (String, &'static str)> {
        let fail = |found: &str, limit| Err((found.to_owned(), limit));
        let pickle = &self.pickle;
        let Value::Call { function, arguments } = value else { return fail("no tensor", "expected a tensor") };
        let arguments: Vec<&Value> = match pickle.elements(pickle.value(*arguments)) {
            Some(arguments) if function == "torch._utils._rebuild_tensor_v2" => arguments.take(4).collect(),
            _ => return fail(function, "expected a tensor"),
        };
        let &[Value::Persistent(storage), Value::Int(offset), size, stride] = arguments.as_slice() else {
            return fail("unknown arguments", "expected storage, offset, size, stride");
        };
        let storage = pickle.elements(pickle.value(*storage)).into_iter().flatten().take(3).collect::<Vec<_>>();
        let (Some(Value::Global(class)), Some(Value::Text(key))) = (storage.get(1), storage.get(2)) else {
            return fail("an unknown storage", "expected ('storage', class, key, ...)");
        };
        let kind = match class.as_str() {
            "torch.CharStorage" => IntType::I8,
            "torch.ByteStorage" => IntType::U8,
            "torch.ShortStorage" => IntType::I16,
            "torch.IntStorage" => IntType::I32,
            "torch.LongStorage" => IntType::I64,
            other => return fail(other, "expected integers"),
        };
        // Keys are numbers; anything else would be a path of its own choice.
        if key.len() > LONGEST_KEY || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return fail(key, "expected a storage's key of at most 20 letters and digits");
        }
        let extents = |value| -> Option<Vec<usize>> {
            let extents = pickle.elements(value).filter(|extents| extents.len() <= MAX_RANK)?;
            let extent =
                |value: &Value| if let Value::Int(extent) = value { usize::try_from(*extent).ok() } else { None };
            extents.map(extent).collect()
        };
        match (usize::try_from(*offset), extents(size), extents(stride)) {
            (Ok(offset), Some(shape), Some(stride)) if shape.len() == stride.len() => {
                Ok(TensorRef { key: key.clone(), kind, offset, shape, stride })
            }
            _ => fail("a strange shape", "expected offset, size and stride of whole numbers"),
        }
    }

    /// Reads a tensor in row-major order.
    pub(super) fn read(&mut self, name: &str, tensor: &TensorRef) -> Result<IntArray<Vec<u8>>> {
        let storage = self.archive.read(&format!("{}/data/{}", self.prefix, tensor.key))?;
        let bytes = tensor.gather(&storage).ok_or_else(|| {
            let shape = format!("{:?} at {} with strides {:?}", tensor.shape, tensor.offset, tensor.stride);
            self.error(name, "shape", &shape, &format!("the storage has {} bytes", storage.len()))
        })?;
        IntArray::new(&self.path, name, tensor.kind, tensor.shape.clone(), bytes)
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorRef {
    key: String,
    kind: IntType,
    /// In elements.
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl TensorRef {
    /// The elements in row-major order; `None` if some are not in the storage, or more are claimed than it has (a stride
    /// of 0 repeats elements without end).
    fn gather(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let width = self.kind.bytes();
        let len = self.shape.iter().try_fold(1usize, |len, &extent| len.checked_mul(extent))?;
        if len == 0 {
            return Some(Vec::new());
        }
        let last =
            self.shape.iter().zip(&self.stride).try_fold(self.offset, |last, (&extent, &stride)| {
                last.checked_add((extent - 1).checked_mul(stride)?)
            })?;
        if last >= storage.len() / width || len > storage.len() / width {
            return None;
        }
        let mut bytes = Vec::with_capacity(len * width);
        let mut index = vec![0usize; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..len {
            bytes.extend_from_slice(&storage[at * width..][..width]);
            // The next index, the last extent first.
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.stride[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.stride[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_tensors_become_row_major() {
        let tensor = |offset, shape: &[usize], stride: &[usize]| TensorRef {
            key: "0".to_owned(),
            kind: IntType::U8,
            offset,
            shape: shape.to_vec(),
            stride: stride.to_vec(),
        };
        let storage: Vec<u8> = (0..6).collect();
        assert_eq!(tensor(0, &[2, 3], &[3, 1]).gather(&storage).unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(tensor(0, &[3, 2], &[1, 3]).gather(&storage).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(tensor(1, &[2, 2], &[3, 1]).gather(&storage).unwrap(), [1, 2, 4, 5]);
        assert_eq!(tensor(5, &[], &[]).gather(&storage).unwrap(), [5]);
        assert_eq!(tensor(9, &[0, 7], &[1, 1]).gather(&storage), Some(Vec::new()));
        assert_eq!(tensor(2, &[2, 3], &[3, 1]).gather(&storage), None);
        assert_eq!(tensor(0, &[7], &[0]).gather(&storage), None);
        assert_eq!(tensor(usize::MAX, &[2], &[1]).gather(&storage), None);
        assert_eq!(tensor(0, &[usize::MAX, 2], &[0, 0]).gather(&storage), None);
    }
}
