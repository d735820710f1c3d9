//! The part of Python's pickle notation that a dictionary of tensors needs, read without executing anything.
//!
//! A pickle is a program for a stack machine. Here its instructions build a tree of plain values; a call is allowed only
//! of the few functions by which PyTorch rebuilds tensors, and is not made but noted. Every other instruction, function or
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
