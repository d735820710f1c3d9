//! Lists of numbers on the command line.

/// Numbers and ranges: `0,3..5` is 0, 3, 4 and `3..=5` is 3, 4, 5. As written, not yet checked against a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbers(pub(crate) Vec<usize>);

/// Parses [`Numbers`].
///
/// # Errors
/// What is wrong, for a person.
pub(crate) fn numbers(text: &str) -> Result<Numbers, String> {
    const MOST: usize = 1 << 24;
    let number = |text: &str| -> Result<usize, String> {
        text.trim().parse().map_err(|_| format!("`{text}` is not a number; write for example 0,3..5 or 3..=5"))
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once("..") {
            None => number(part).map(|only| only..only.saturating_add(1))?,
            Some((first, last)) => match last.strip_prefix('=') {
                Some(last) => number(first)?..number(last)?.saturating_add(1),
                None => number(first)?..number(last)?,
            },
        };
        if all.len().saturating_add(range.len()) > MOST {
            return Err(format!("`{part}` makes more than {MOST} numbers"));
        }
        all.extend(range);
    }
    if all.is_empty() {
        return Err(format!("`{text}` selects nothing; a..b ends before b, a..=b includes it"));
    }
    Ok(Numbers(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read_as_written() {
        assert_eq!(numbers("7,0..2,3..=4").unwrap().0, [7, 0, 1, 3, 4]);
        assert!(numbers("3..3").unwrap_err().contains("selects nothing"));
        assert!(numbers("x").unwrap_err().contains("`x` is not a number"));
        assert!(numbers("0..99999999999").unwrap_err().contains("more than"));
    }
}
