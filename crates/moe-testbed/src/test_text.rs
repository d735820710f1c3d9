//! A corpus for tests.

use crate::{Corpus, Domain};

/// Two domains of made-up text.
pub(crate) fn corpus() -> Corpus {
    let numbers = |n: usize| format!("{n} plus {} is {}. twice {n} is {}.\n", n + 1, 2 * n + 1, 2 * n).repeat(3);
    let code = |n: usize| format!("def f{n}(x):\n    y = x + {n}\n    return y\n\n").repeat(3);
    let domain = |name: &str, text: &dyn Fn(usize) -> String| Domain {
        name: name.to_owned(),
        training: (0..40).map(text).collect(),
        held_out: (40..44).map(text).collect(),
    };
    Corpus { domains: vec![domain("code", &code), domain("numbers", &numbers)] }
}
