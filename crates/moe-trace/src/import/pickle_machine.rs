//! The stack machine whose programs pickles are, without its calls.

use std::collections::HashMap;

use super::pickle::{Id, PickleError, Value};
use super::pickle_numpy::{LONGEST_NUMBER, is_little_endian, is_scalar, latin1, scalar};

/// Functions whose calls may be noted.
fn is_allowed(name: &str) -> bool {
    is_scalar(name)
        || matches!(
            name,
            "torch._utils._rebuild_tensor_v2"
                | "collections.OrderedDict"
                | "torch.Size"
                | "torch.serialization._get_layout"
                | "numpy.dtype"
                | "_codecs.encode"
        )
}

/// Classes that may be named.
fn is_known(name: &str) -> bool {
    is_allowed(name)
        || name
            .strip_prefix("torch.")
            .is_some_and(|class| class.ends_with("Storage") && class.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Runs a pickle; gives the values that it builds and which of them is the result.
pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Value>, Id), PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        start: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        machine.start = machine.at;
        let instruction = machine.byte()?;
        if instruction == b'.' {
            let root = machine.pop()?;
            return Ok((machine.values, root));
        }
        machine.step(instruction)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the running instruction begins.
    start: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn fail<T>(&self, found: impl Into<String>, allowed: &'static str) -> Result<T, PickleError> {
        Err(PickleError { at: self.start, found: found.into(), allowed })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..len)) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => self.fail("the end of the pickle", "expected an operand of the instruction"),
        }
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A little-endian unsigned number of `len` bytes.
    fn unsigned(&mut self, len: usize) -> Result<u64, PickleError> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        match rest.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                self.at += end + 1;
                self.string(&rest[..end])
            }
            None => self.fail("the end of the pickle", "expected the end of a line"),
        }
    }

    fn text(&mut self, length_bytes: usize) -> Result<String, PickleError> {
        let length = usize::try_from(self.unsigned(length_bytes)?).unwrap_or(usize::MAX);
        let bytes = self.take(length)?;
        self.string(bytes)
    }

    fn string(&self, bytes: &[u8]) -> Result<String, PickleError> {
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => self.fail("text that is not UTF-8", "expected UTF-8"),
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        // Values below a mark belong to whoever set the mark.
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return self.fail("an empty stack", "expected a value for the instruction");
        }
        self.stack.pop().map_or_else(|| self.fail("an empty stack", "expected a value"), Ok)
    }

    fn top(&self) -> Result<Id, PickleError> {
        match self.stack.last() {
            Some(&id) => Ok(id),
            None => self.fail("an empty stack", "expected a value for the instruction"),
        }
    }

    /// The values above the last mark, which is removed.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.fail("no mark", "expected a mark for the instruction"),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleError> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => self.fail(format!("memo {key}"), "expected one that was stored"),
        }
    }

    fn append(&mut self, more: &[Id]) -> Result<(), PickleError> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(elements) => elements.extend_from_slice(more),
            _ => return self.fail("no list", "elements are appended to lists"),
        }
        Ok(())
    }

    fn set_items(&mut self, more: &[Id]) -> Result<(), PickleError> {
        if !more.len().is_multiple_of(2) {
            return self.fail("a key without a value", "expected pairs");
        }
        let dict = self.top()?;
        match &mut self.values[dict] {
            Value::Dict(entries) => entries.extend(more.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return self.fail("no dictionary", "items are set in dictionaries"),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let name = format!("{module}.{name}");
        if !is_known(&name) {
            return self.fail(name, "only what PyTorch needs to rebuild tensors is allowed");
        }
        self.push(Value::Global(name));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let name = match &self.values[function] {
            Value::Global(name) if is_allowed(name) => name.clone(),
            _ => return self.fail("a call", "only calls that rebuild tensors are allowed"),
        };
        match (name.as_str(), &self.values[arguments]) {
            ("collections.OrderedDict", Value::Tuple(items)) if items.is_empty() => self.push(Value::Dict(Vec::new())),
            // The value itself: copies of it could take more memory than the pickle.
            ("torch.Size", Value::Tuple(sizes)) if sizes.len() == 1 => self.stack.push(sizes[0]),
            ("_codecs.encode", Value::Tuple(arguments)) => match latin1(&self.values, arguments) {
                Some(bytes) => self.push(bytes),
                None => return self.fail("a text as bytes", "allowed are the bytes of one number"),
            },
            (name, Value::Tuple(arguments)) if is_scalar(name) => match scalar(&self.values, arguments) {
                Some(number) => self.push(number),
                None => {
                    return self
                        .fail("a NumPy scalar", "allowed are booleans, integers and floats in little-endian order");
                }
            },
            _ => self.push(Value::Call { function: name, arguments }),
        }
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "one arm an instruction")]
    fn step(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return self.fail(format!("protocol {version}"), "protocols up to 5 are known");
                }
            }
            0x95 => drop(self.take(8)?),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let number = self.byte()?;
                self.push(Value::Int(i64::from(number)));
            }
            b'M' => {
                let bytes = self.take(2)?;
                self.push(Value::Int(i64::from(u16::from_le_bytes([bytes[0], bytes[1]]))));
            }
            b'J' => {
                let bytes = self.take(4)?;
                self.push(Value::Int(i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))));
            }
            0x8a => {
                let len = usize::from(self.byte()?);
                let bytes = self.take(len)?;
                let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
                let mut wide = if negative { [0xff; 8] } else { [0; 8] };
                match wide.get_mut(..len) {
                    Some(low) => low.copy_from_slice(bytes),
                    None => return self.fail(format!("an integer of {len} bytes"), "at most 8"),
                }
                self.push(Value::Int(i64::from_le_bytes(wide)));
            }
            b'G' => {
                let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
                self.push(Value::Float(f64::from_be_bytes(bytes)));
            }
            b'X' | 0x8c | 0x8d => {
                let text = self.text(match instruction {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                })?;
                self.push(Value::Text(text));
            }
            b'C' | b'B' | 0x8e => {
                let len = self.unsigned(match instruction {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                match usize::try_from(len).ok().filter(|&len| len <= LONGEST_NUMBER) {
                    Some(len) => {
                        let bytes = self.take(len)?;
                        self.push(Value::Bytes(bytes.to_vec()));
                    }
                    None => return self.fail(format!("{len} bytes"), "at most 8, those of a number"),
                }
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let elements = self.pop_to_mark()?;
                self.push(Value::Tuple(elements));
            }
            0x85..=0x87 => {
                let mut elements = Vec::new();
                for _ in 0x85..=instruction {
                    elements.push(self.pop()?);
                }
                elements.reverse();
                self.push(Value::Tuple(elements));
            }
            b'a' => {
                let element = self.pop()?;
                self.append(&[element])?;
            }
            b'e' => {
                let elements = self.pop_to_mark()?;
                self.append(&elements)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            b'0' => drop(self.pop()?),
            b'q' => {
                let key = self.byte()?;
                self.remember(u32::from(key))?;
            }
            b'r' => {
                let key = self.unsigned(4)?;
                self.remember(u32::try_from(key).expect("four bytes"))?;
            }
            0x94 => self.remember(u32::try_from(self.memo.len()).unwrap_or(u32::MAX))?,
            b'h' => {
                let key = self.byte()?;
                self.recall(u32::from(key))?;
            }
            b'j' => {
                let key = self.unsigned(4)?;
                self.recall(u32::try_from(key).expect("four bytes"))?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values[module].clone(), self.values[name].clone()) {
                    (Value::Text(module), Value::Text(name)) => self.global(&module, &name)?,
                    _ => return self.fail("a name that is no text", "expected module and name"),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'R' => self.reduce()?,
            b'b' if matches!(self.stack[..], [.., kind, state] if is_little_endian(&self.values, kind, state)) => {
                let _ = self.pop()?;
            }
            other => {
                return self.fail(
                    format!("instruction {other:#04x}"),
                    "only those that a dictionary of tensors needs are allowed",
                );
            }
        }
        Ok(())
    }
}
