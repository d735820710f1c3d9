//! Numbers in text, as Python's serializers leave them.

/// A whole number: `3`, `3.0`, or a scalar of NumPy or PyTorch as text, `np.int64(3)`, `tensor(3, device='cuda:0')`.
pub(super) fn whole(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let fields = fields(text);
    let &[number] = fields.as_slice() else { return None };
    number.parse().ok().or_else(|| whole_float(number.parse().ok()?))
}

/// A floating-point number that is whole and exact.
#[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53 are exact")]
pub(super) fn whole_float(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// The numbers of a list, with anything between them; names of functions and named arguments, which are parts of
/// `tensor([3, 1], device='cuda:0')`, are left out.
pub(super) fn fields(text: &str) -> Vec<&str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
    let mut fields = Vec::new();
    let mut rest = text.trim_start_matches(|c| !inside(c));
    while !rest.is_empty() {
        let end = rest.find(|c| !inside(c)).unwrap_or(rest.len());
        let (field, behind) = rest.split_at(end);
        let is_name = field.starts_with(|c: char| c.is_ascii_alphabetic());
        rest = match behind.chars().next() {
            Some('(') if is_name => behind,
            Some('=') if is_name => behind.trim_start_matches(|c| !matches!(c, ',' | ')')),
            _ => {
                fields.push(field);
                behind
            }
        };
        rest = rest.trim_start_matches(|c| !inside(c));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_as_python_writes_them() {
        for text in
            ["3", "3.0", "+3", "3e0", "np.int64(3)", "numpy.uint8(3)", "tensor(3)", "tensor(3, device='cuda:0')"]
        {
            assert_eq!(whole(text), Some(3), "{text}");
        }
        assert_eq!(whole("-1.0"), Some(-1));
        for text in ["", "3.5", "x", "3 4", "nan", "1e300", "device=3", "np.int64()"] {
            assert_eq!(whole(text), None, "{text}");
        }
    }

    #[test]
    fn lists_are_read_as_python_writes_them() {
        for text in [
            "[3, 1]",
            "3|1",
            "[3 1]",
            "array([3, 1], dtype=int32)",
            "[np.int64(3), np.int64(1)]",
            "[tensor(3, device='cuda:0'), tensor(1, device='cuda:0')]",
        ] {
            assert_eq!(fields(text), ["3", "1"], "{text}");
        }
        assert_eq!(fields("[0.5 ... nan]"), ["0.5", "...", "nan"]);
        assert!(fields("[]").is_empty());
    }
}
