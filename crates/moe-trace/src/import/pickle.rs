//! The part of Python's pickle notation that a dictionary of tensors needs, read without executing anything.
//!
//! A pickle is a program for a stack machine. Here its instructions build a tree of plain values; a call is allowed only
//! of the few functions by which PyTorch rebuilds tensors, and is not made but noted. NumPy's scalars become numbers. Every other instruction, function or
//! class is refused.

use super::pickle_machine::run;

/// Index of a value in the [`Pickle`].
pub(super) type Id = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// The bytes of one number.
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class by its full name.
    Global(String),
    /// A persistent id: how PyTorch refers to a storage.
    Persistent(Id),
    /// A call, noted and not made.
    Call {
        function: String,
        arguments: Id,
    },
}

/// The values that a pickle builds, and which of them is the result.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// Why a pickle cannot be read: at which byte, what was found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickleError {
    pub(super) at: usize,
    pub(super) found: String,
    pub(super) allowed: &'static str,
}

impl Pickle {
    /// Reads a pickle. Memory is proportional to its length.
    pub(super) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
        let (values, root) = run(bytes)?;
        Ok(Pickle { values, root })
    }

    pub(super) fn root(&self) -> &Value {
        &self.values[self.root]
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The value of a text key in a dictionary; the last one if there are several.
    pub(super) fn get(&self, dict: &Value, key: &str) -> Option<&Value> {
        let Value::Dict(entries) = dict else { return None };
        let entry =
            entries.iter().rev().find(|(name, _)| matches!(self.value(*name), Value::Text(text) if text == key));
        entry.map(|&(_, value)| self.value(value))
    }

    /// The elements of a list or tuple.
    pub(super) fn elements(&self, value: &Value) -> Option<impl ExactSizeIterator<Item = &Value>> {
        match value {
            Value::List(ids) | Value::Tuple(ids) => Some(ids.iter().map(|&id| self.value(id))),
            _ => None,
        }
    }

    /// A list or tuple of integers.
    pub(super) fn integers(&self, value: &Value) -> Option<Vec<i64>> {
        self.elements(value)?.map(|value| if let Value::Int(int) = value { Some(*int) } else { None }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pickle.dumps({"a": [1, -2, 300, 70000, 2**40], "b": (True, None, 1.5)}, protocol=2)`
    const PLAIN: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01eX\x01\x00\x00\x00bq\x03\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87q\x04u.";

    #[test]
    fn plain_values_are_read() {
        let pickle = Pickle::read(PLAIN).unwrap();
        let numbers = pickle.integers(pickle.get(pickle.root(), "a").unwrap()).unwrap();
        assert_eq!(numbers, [1, -2, 300, 70_000, 1 << 40]);
        let tuple: Vec<&Value> = pickle.elements(pickle.get(pickle.root(), "b").unwrap()).unwrap().collect();
        assert_eq!(tuple, [&Value::Bool(true), &Value::None, &Value::Float(1.5)]);
        assert_eq!(pickle.get(pickle.root(), "c"), None);
    }

    /// Reads the list of a pickle of scalars, each of a type and bytes that follow a call of `module.scalar`.
    fn scalars(module: &str, scalars: &[(&str, &[u8])]) -> Result<Vec<Value>, PickleError> {
        let mut bytes = b"\x80\x04](".to_vec();
        for (kind, number) in scalars {
            bytes.extend(format!("c{module}\nscalar\n(cnumpy\ndtype\n(").as_bytes());
            bytes.extend([0x8c, u8::try_from(kind.len()).unwrap()]);
            bytes.extend(kind.as_bytes());
            // As `dtype.__reduce__` writes it: not aligned, copied; then the state, with the byte order second.
            bytes.extend(b"\x89\x88tR(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
            bytes.extend([b'C', u8::try_from(number.len()).unwrap()]);
            bytes.extend(*number);
            bytes.extend(b"tR");
        }
        bytes.extend(b"e.");
        let pickle = Pickle::read(&bytes)?;
        Ok(pickle.elements(pickle.root()).unwrap().cloned().collect())
    }

    #[test]
    fn numpy_scalars_are_numbers() {
        let (long, short, single) = ((-3i64).to_le_bytes(), 300u16.to_le_bytes(), 1.5f32.to_le_bytes());
        let given: [(&str, &[u8]); 4] = [("i8", &long), ("u2", &short), ("f4", &single), ("b1", &[1])];
        for module in ["numpy.core.multiarray", "numpy._core.multiarray"] {
            let expected = [Value::Int(-3), Value::Int(300), Value::Float(1.5), Value::Bool(true)];
            assert_eq!(scalars(module, &given).unwrap(), expected);
        }
        let found = |kind: &str, bytes: &[u8]| scalars("numpy.core.multiarray", &[(kind, bytes)]).unwrap_err().found;
        assert_eq!(found("i8", &[0; 4]), "a NumPy scalar");
        assert_eq!(found("O8", &[0; 8]), "a NumPy scalar");
        assert_eq!(found("i8", &[0; 9]), "9 bytes");
        assert!(scalars("numpy.random", &given).is_err());
        // Protocol 2 writes bytes as a text in Latin-1.
        let old = b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00u2K\x00K\x01tR(K\x03X\x01\x00\x00\x00<\
            tbc_codecs\nencode\n(X\x03\x00\x00\x00\xc3\xbf\x01X\x06\x00\x00\x00latin1tRtR.";
        assert_eq!(Pickle::read(old).unwrap().root(), &Value::Int(0x01ff));
        let big = old.iter().map(|&byte| if byte == b'<' { b'>' } else { byte }).collect::<Vec<_>>();
        assert!(Pickle::read(&big).unwrap_err().found.contains("0x62"), "big-endian");
        let long = b"c_codecs\nencode\n(X\x09\x00\x00\x00aaaaaaaaaX\x06\x00\x00\x00latin1tR.";
        assert_eq!(Pickle::read(long).unwrap_err().found, "a text as bytes");
    }

    #[test]
    fn nothing_but_tensors_can_be_called() {
        let error = |bytes: &[u8]| {
            let error = Pickle::read(bytes).unwrap_err();
            format!("byte {}: {}, {}", error.at, error.found, error.allowed)
        };
        assert_eq!(
            error(b"cos\nsystem\n(X\x02\x00\x00\x00lstR."),
            "byte 0: os.system, only what PyTorch needs to rebuild tensors is allowed"
        );
        assert_eq!(
            error(b"\x8c\x02os\x8c\x06system\x93."),
            "byte 12: os.system, only what PyTorch needs to rebuild tensors is allowed"
        );
        assert_eq!(error(b"ctorch\nIntStorage\n)R."), "byte 19: a call, only calls that rebuild tensors are allowed");
        assert_eq!(
            error(b"ctorch\nload.Storage\n."),
            "byte 0: torch.load.Storage, only what PyTorch needs to rebuild tensors is allowed"
        );
        assert_eq!(
            error(b"}}b."),
            "byte 2: instruction 0x62, only those that a dictionary of tensors needs are allowed"
        );
        assert_eq!(error(b"\x80\x09."), "byte 0: protocol 9, protocols up to 5 are known");
    }

    #[test]
    fn broken_programs_are_told() {
        let error = |bytes: &[u8]| Pickle::read(bytes).unwrap_err().found;
        assert_eq!(error(b""), "the end of the pickle");
        assert_eq!(error(b"X\xff\xff\xff\xffab"), "the end of the pickle");
        assert_eq!(error(b"."), "an empty stack");
        assert_eq!(error(b"K\x01(a."), "an empty stack", "a value below a mark");
        assert_eq!(error(b"t."), "no mark");
        assert_eq!(error(b"h\x05."), "memo 5");
        assert_eq!(error(b"NNa."), "no list");
        assert_eq!(error(b"}(Nu."), "a key without a value");
        assert_eq!(error(b"\x8a\x09aaaaaaaaa."), "an integer of 9 bytes");
        assert_eq!(error(b"X\x01\x00\x00\x00\xff."), "text that is not UTF-8");
        for cut in 0..PLAIN.len() {
            assert!(Pickle::read(&PLAIN[..cut]).is_err(), "cut at {cut}");
        }
    }
}
