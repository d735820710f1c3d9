//! Lists of numbers on the command line.

use std::collections::HashSet;

/// Numbers and ranges: `0,3..5` is 0, 3, 4 and `3..=5` is 3, 4, 5. As written, not yet checked against a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(pub Vec<usize>);

/// Parses [`Numbers`].
///
/// # Errors
/// What is wrong, for a person.
pub fn numbers(text: &str) -> Result<Numbers, String> {
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

/// Parses [`Numbers`] that all differ.
///
/// # Errors
/// Those of [`numbers`]; the first number that comes again.
pub fn distinct_numbers(text: &str) -> Result<Numbers, String> {
    let all = numbers(text)?;
    let mut seen = HashSet::new();
    match all.0.iter().find(|number| !seen.insert(**number)) {
        Some(number) => Err(format!("{number} comes twice, give it once")),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read_as_written() {
        assert_eq!(numbers("7,0..2,3..=4").unwrap().0, [7, 0, 1, 3, 4]);
        assert_eq!(numbers("0,0").unwrap().0, [0, 0]);
        assert_eq!(distinct_numbers("0,3..5,4").unwrap_err(), "4 comes twice, give it once");
        assert!(numbers("3..3").unwrap_err().contains("selects nothing"));
        assert!(numbers("x").unwrap_err().contains("`x` is not a number"));
        assert!(numbers("0..99999999999").unwrap_err().contains("more than"));
    }
}
