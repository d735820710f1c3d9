//! Files as `torch.save` writes them, of dictionaries of numbers, lists and integer tensors.

use std::io::Write;

/// A value to be pickled.
#[derive(Clone)]
pub(crate) enum Value {
    None,
    Int(i32),
    List(Vec<Value>),
    Dict(Vec<(&'static str, Value)>),
    /// Elements and shape.
    Tensor(Vec<i32>, Vec<i32>),
}

impl Value {
    pub(crate) fn ints(values: &[i32]) -> Value {
        Value::List(values.iter().map(|&value| Value::Int(value)).collect())
    }

    fn pickle(&self, out: &mut Vec<u8>, storages: &mut Vec<Vec<u8>>) {
        match self {
            Value::None => out.push(b'N'),
            Value::Int(value) => {
                out.push(b'J');
                out.extend(value.to_le_bytes());
            }
            Value::List(values) => {
                out.extend(b"](");
                values.iter().for_each(|value| value.pickle(out, storages));
                out.push(b'e');
            }
            Value::Dict(entries) => {
                out.extend(b"}(");
                for (key, value) in entries {
                    text(key, out);
                    value.pickle(out, storages);
                }
                out.push(b'u');
            }
            Value::Tensor(elements, shape) => {
                out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                text("storage", out);
                out.extend(b"ctorch\nIntStorage\n");
                text(&storages.len().to_string(), out);
                text("cpu", out);
                Value::Int(i32::try_from(elements.len()).unwrap()).pickle(out, storages);
                out.extend(b"tQK\x00(");
                shape.iter().for_each(|&extent| Value::Int(extent).pickle(out, storages));
                out.extend(b"t(");
                let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
                strides.for_each(|stride| Value::Int(stride).pickle(out, storages));
                out.extend(b"ttR");
                storages.push(elements.iter().flat_map(|element| element.to_le_bytes()).collect());
            }
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b'X');
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

/// The file of a value.
pub(crate) fn dump(value: &Value) -> Vec<u8> {
    let (mut pickle, mut storages) = (b"\x80\x02".to_vec(), Vec::new());
    value.pickle(&mut pickle, &mut storages);
    pickle.push(b'.');
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("a/data.pkl", stored).unwrap();
    archive.write_all(&pickle).unwrap();
    for (number, storage) in storages.iter().enumerate() {
        archive.start_file(format!("a/data/{number}"), stored).unwrap();
        archive.write_all(storage).unwrap();
    }
    archive.finish().unwrap().into_inner()
}
