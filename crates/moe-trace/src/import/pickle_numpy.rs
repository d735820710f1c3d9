//! NumPy's scalars in pickles: a type, and the bytes of one number.

use super::pickle::{Id, Value};

/// The most bytes of one number. Longer ones are refused, because a pickle may name the same text over and over.
pub(super) const LONGEST_NUMBER: usize = 8;

/// Returns whether a function makes a scalar of a type and bytes.
pub(super) fn is_scalar(name: &str) -> bool {
    matches!(name, "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar")
}

/// Returns the bytes of a text in Latin-1, by which older protocols write bytes; `None` if it is none or too long.
pub(super) fn latin1(values: &[Value], arguments: &[Id]) -> Option<Value> {
    let [Value::Text(text), Value::Text(encoding)] = [&values[*arguments.first()?], &values[*arguments.get(1)?]] else {
        return None;
    };
    // A character of Latin-1 takes at most two bytes here.
    if encoding != "latin1" || text.len() > 2 * LONGEST_NUMBER {
        return None;
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect();
    bytes.filter(|bytes| bytes.len() <= LONGEST_NUMBER).map(Value::Bytes)
}

/// Returns whether a value is a type whose state may be set, and the state says little-endian numbers.
pub(super) fn is_little_endian(values: &[Value], kind: Id, state: Id) -> bool {
    let is_type = matches!(&values[kind], Value::Call { function, .. } if function == "numpy.dtype");
    let Value::Tuple(state) = &values[state] else { return false };
    let order = state.get(1).map(|&order| &values[order]);
    is_type && matches!(order, Some(Value::Text(order)) if order == "<" || order == "|")
}

/// Returns the number that a scalar's type and bytes make; `None` for other types and lengths.
pub(super) fn scalar(values: &[Value], arguments: &[Id]) -> Option<Value> {
    let [kind, bytes] = *arguments else { return None };
    let (Value::Call { function, arguments }, Value::Bytes(bytes)) = (&values[kind], &values[bytes]) else {
        return None;
    };
    let Value::Tuple(arguments) = &values[*arguments] else { return None };
    let Value::Text(kind) = &values[*arguments.first()?] else { return None };
    let number = bytes.as_slice();
    let int = |number: i64| Some(Value::Int(number));
    match (function.as_str(), kind.as_str()) {
        ("numpy.dtype", "b1") => Some(Value::Bool(<[u8; 1]>::try_from(number).ok()? != [0])),
        ("numpy.dtype", "i1") => int(i8::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "u1") => int(u8::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "i2") => int(i16::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "u2") => int(u16::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "i4") => int(i32::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "u4") => int(u32::from_le_bytes(number.try_into().ok()?).into()),
        ("numpy.dtype", "i8") => int(i64::from_le_bytes(number.try_into().ok()?)),
        ("numpy.dtype", "u8") => int(i64::try_from(u64::from_le_bytes(number.try_into().ok()?)).ok()?),
        ("numpy.dtype", "f4") => Some(Value::Float(f32::from_le_bytes(number.try_into().ok()?).into())),
        ("numpy.dtype", "f8") => Some(Value::Float(f64::from_le_bytes(number.try_into().ok()?))),
        _ => None,
    }
}
