//! Numbers on the command line: what is allowed, and how another value is refused.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::{Bound, RangeBounds};

use anyhow::{Result, bail};
use clap::Parser;

/// Numbers above 0.
pub const POSITIVE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Unbounded);

/// Numbers between 0 and 1, without both.
pub const SHARE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Excluded(1.0));

/// Shares of a text that can be held out.
pub const HELD_OUT: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Included(0.5));

/// Parses the command line of a program; exits where it is refused.
///
/// A negative number behind an option is the option's value, so that the option refuses it by its value.
pub fn parse<P: Parser>() -> P {
    P::parse_from(with_values(std::env::args_os()))
}

/// Joins every negative number to the option before it.
fn with_values(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut options = true;
    for argument in arguments {
        let takes = |before: &&mut OsString| {
            before.to_str().is_some_and(|before| before.len() > 2 && before.starts_with("--") && !before.contains('='))
        };
        match joined.last_mut().filter(takes) {
            Some(option) if options && is_negative(&argument) => {
                option.push("=");
                option.push(argument);
            }
            _ => {
                options &= argument != "--";
                joined.push(argument);
            }
        }
    }
    joined
}

fn is_negative(argument: &OsString) -> bool {
    let rest = argument.to_str().and_then(|text| text.strip_prefix('-')).unwrap_or_default();
    rest.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        || ["inf", "infinity", "nan"].contains(&rest.to_ascii_lowercase().as_str())
}

/// Creates a parser of whole numbers in a range.
pub fn whole<T: TryFrom<u64>>(
    allowed: impl RangeBounds<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    let least = match allowed.start_bound() {
        Bound::Included(&least) => least,
        Bound::Excluded(&below) => below + 1,
        Bound::Unbounded => 0,
    };
    let most = match allowed.end_bound() {
        Bound::Included(&most) => Some(most),
        Bound::Excluded(&above) => Some(above - 1),
        Bound::Unbounded => None,
    };
    move |text| {
        let number =
            text.trim().parse().ok().filter(|number| *number >= least && most.is_none_or(|most| *number <= most));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match most {
            Some(most) => format!("give a whole number from {least} to {most}"),
            None => format!("give a whole number of at least {least}"),
        })
    }
}

/// Creates a parser of finite numbers in a range.
pub fn number(allowed: impl RangeBounds<f64>) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    let allowed = (allowed.start_bound().cloned(), allowed.end_bound().cloned());
    move |text| {
        let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite() && allowed.contains(number));
        number.ok_or_else(|| match allowed {
            (Bound::Included(least), Bound::Included(most)) => format!("give a number from {least} to {most}"),
            (Bound::Excluded(below), Bound::Excluded(above)) => format!("give a number between {below} and {above}"),
            (Bound::Included(least), Bound::Excluded(above)) => format!("give a number from {least} to below {above}"),
            (Bound::Excluded(below), Bound::Included(most)) => format!("give a number above {below}, at most {most}"),
            (Bound::Included(least), Bound::Unbounded) => format!("give a number of at least {least}"),
            (Bound::Excluded(below), Bound::Unbounded) => format!("give a number above {below}"),
            (Bound::Unbounded, _) => "give a finite number".to_owned(),
        })
    }
}

/// Checks that a list has nothing twice.
///
/// # Errors
/// The first value that comes again.
pub fn each_once<T: PartialEq + Display>(option: &str, values: &[T]) -> Result<()> {
    for (at, value) in values.iter().enumerate() {
        if values[..at].contains(value) {
            bail!("{option} has {value} twice, give it once");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_number_is_the_value_of_the_option_before_it() {
        let joined = |line: &str| {
            let joined = with_values(line.split(' ').map(OsString::from));
            joined.into_iter().map(|argument| argument.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(joined("p --m -1,4 in"), "p --m=-1,4 in");
        assert_eq!(joined("p --rho -.5 --bytes -5GB"), "p --rho=-.5 --bytes=-5GB");
        assert_eq!(joined("p --rho -inf --lr -NaN"), "p --rho=-inf --lr=-NaN");
        // Options, short options, values that are there already and what follows `--` stay.
        for line in ["p --m --layers 3", "p --pool -h", "p --m=3 -1", "p in -1", "p -- -1", "p --m 3 -- --at -1"] {
            assert_eq!(joined(line), line);
        }
    }

    #[test]
    fn numbers_outside_of_a_range_name_the_range() {
        let count = whole::<usize>(1..=100);
        assert_eq!(count("100"), Ok(100));
        for text in ["0", "101", "-1", "1.5", "", "x", "99999999999999999999999"] {
            assert_eq!(count(text), Err("give a whole number from 1 to 100".to_owned()), "{text}");
        }
        assert_eq!(whole::<u64>(0..)("-1"), Err("give a whole number of at least 0".to_owned()));
        assert_eq!(whole::<u16>(0..=65535)("65536"), Err("give a whole number from 0 to 65535".to_owned()));
        assert_eq!(number(POSITIVE)("1e-3"), Ok(1e-3));
        for text in ["0", "-1", "nan", "inf", "1e999", "x"] {
            assert_eq!(number(POSITIVE)(text), Err("give a number above 0".to_owned()), "{text}");
            assert_eq!(number(SHARE)(text), Err("give a number between 0 and 1".to_owned()), "{text}");
        }
        assert_eq!(number(0.0..=1.0)("1"), Ok(1.0));
        assert_eq!(number(1.0..)("0.5"), Err("give a number of at least 1".to_owned()));
    }

    #[test]
    fn what_comes_twice_is_refused() {
        each_once("--m", &[4, 16]).unwrap();
        assert_eq!(each_once("--m", &[4, 16, 4]).unwrap_err().to_string(), "--m has 4 twice, give it once");
    }
}
