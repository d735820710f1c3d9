//! The parts of a drawing: texts, paths and groups.

use std::fmt::Write;

/// Height of the text of charts, in units of the drawing.
pub(super) const FONT: f64 = 13.0;

/// A picture with the notes and the legend that a page shows below it.
pub struct Drawing {
    /// The SVG element.
    pub(crate) svg: String,
    /// The entries of the legend as HTML.
    pub(crate) legend: Vec<String>,
    /// Sentences about values that the picture does not show.
    pub(crate) notes: Vec<String>,
    /// True if the picture needs the full width of a page.
    pub(crate) is_wide: bool,
}

/// An SVG element under construction.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// The side of a text that its position gives.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Svg {
        Svg { body: String::new(), width, height }
    }

    /// Adds markup.
    pub(super) fn push(&mut self, markup: &str) {
        self.body.push_str(markup);
    }

    /// Adds a text whose baseline is at `y`.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, text: &str) {
        let (x, y, anchor, text) = (number(x), number(y), anchor.name(), escape(text));
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.body, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>");
    }

    /// Adds a text that runs upwards and ends at `y`.
    pub(super) fn text_up(&mut self, x: f64, y: f64, text: &str) {
        let (x, y, text) = (number(x), number(y), escape(text));
        let _ =
            writeln!(self.body, "<text transform=\"translate({x},{y}) rotate(-90)\" text-anchor=\"end\">{text}</text>");
    }

    /// Adds a path with a title that is shown when one points at it, unless the title is empty.
    pub(super) fn path(&mut self, attributes: &str, path: &str, title: &str) {
        let _ = match title {
            "" => writeln!(self.body, "<path {attributes} d=\"{path}\"/>"),
            _ => writeln!(self.body, "<path {attributes} d=\"{path}\"><title>{}</title></path>", escape(title)),
        };
    }

    /// Adds a filled rectangle.
    pub(super) fn rectangle(&mut self, [x, y, width, height]: [f64; 4], attributes: &str, title: &str) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {attributes}>{}</rect>",
            if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) }
        );
    }

    /// Returns the element. `attributes` say how large it is shown.
    pub(super) fn finish(self, attributes: &str) -> String {
        let (width, height) = (number(self.width), number(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" {attributes}>\n{}</svg>",
            self.body
        )
    }
}

/// Returns a coordinate with at most one decimal.
pub(super) fn number(value: f64) -> String {
    // Adding zero turns -0 into 0.
    format!("{}", (value * 10.0).round() / 10.0 + 0.0)
}

/// Returns an upper estimate of the width of a text of height 1.
pub(super) fn width(text: &str) -> f64 {
    let of = |c: char| match c {
        'i' | 'l' | 'j' | 't' | 'f' | 'r' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' | '(' | ')' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.95,
        'A'..='Z' => 0.75,
        c if c < '\u{1100}' => 0.62,
        _ => 1.05,
    };
    text.chars().map(of).sum()
}

/// Returns a text of at most `most` characters. A longer one ends in an ellipsis.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.chars().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect(),
    }
}

/// Returns a token's text with visible blanks and control characters, and at most 20 characters of it.
pub fn visible(text: &str) -> String {
    const MOST: usize = 20;
    let shown = text.chars().take(MOST).map(|c| match c {
        ' ' => '\u{b7}',
        '\n' => '\u{21b5}',
        '\t' => '\u{21e5}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    });
    shown.chain(text.chars().nth(MOST).map(|_| '\u{2026}')).collect()
}

/// Returns a text with escaped markup. Characters that XML cannot hold are replaced by U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(
            escape("<a & \"b\">\u{0}\u{1b}\u{ffff}\n"),
            "&lt;a &amp; &quot;b&quot;&gt;\u{fffd}\u{fffd}\u{fffd}\n"
        );
        assert_eq!(visible(" a\n\u{7}"), "\u{b7}a\u{21b5}\u{fffd}");
        assert_eq!(visible(&"x".repeat(21)), format!("{}\u{2026}", "x".repeat(20)));
    }

    #[test]
    fn coordinates_have_at_most_one_decimal() {
        assert_eq!([1.04, 1.05001, -0.01, 40.0].map(number), ["1", "1.1", "0", "40"]);
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!((shortened("abcd", 4), shortened("abcde", 4)), ("abcd".to_owned(), "abc\u{2026}".to_owned()));
    }
}
