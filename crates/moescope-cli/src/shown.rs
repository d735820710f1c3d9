//! Names and texts as a terminal may show them.

/// Returns a name in one line without characters that control a terminal: these are escaped as in Rust, `\n` or
/// `\u{1b}`. So are characters that turn the direction of writing.
pub fn shown(name: &str) -> String {
    escaped(name, controls)
}

/// Returns a text of several lines without characters that control a terminal, line ends apart.
pub(crate) fn shown_lines(text: &str) -> String {
    escaped(text, |c| c != '\n' && controls(c))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_escaped(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

fn controls(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(shown("a\u{1b}[31m\n\u{202e}b\u{9b}\t"), "a\\u{1b}[31m\\n\\u{202e}b\\u{9b}\\t");
        assert_eq!(shown_lines("a\n\u{7}b\r\n"), "a\n\\u{7}b\\r\n");
        let plain = "<b> \"\\ € 日本 'x'";
        assert_eq!((shown(plain), shown_lines(plain)), (plain.to_owned(), plain.to_owned()));
    }
}
