//! Colours, dash patterns and marks that tell series apart.
//!
//! The colours are six of the eight of Okabe and Ito, which people with any colour vision tell apart; yellow is too pale
//! on white, and black is the colour of the line of the whole. They are variables of the style sheet.

/// Number of colours.
const COLORS: usize = 6;

/// Number of shapes of marks; it has no factor in common with the number of colours.
const SHAPES: usize = 7;

/// Dash patterns, as attributes.
const DASHES: [&str; 5] = [
    "",
    " stroke-dasharray=\"7 3\"",
    " stroke-dasharray=\"2 3\"",
    " stroke-dasharray=\"9 3 2 3\"",
    " stroke-dasharray=\"14 4\"",
];

/// Lines without marks that differ.
pub(super) const LINES: usize = COLORS * DASHES.len();

/// A colour, a dash pattern and a shape of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Style {
    color: Color,
    dash: usize,
    shape: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Color {
    Numbered(usize),
    /// The colour of text.
    Text,
    /// The colour of less important text.
    Muted,
}

impl Style {
    /// Returns the style of a series. The first 30 lines, the first 42 marks and the first 210 lines with marks differ.
    pub(super) fn numbered(number: usize) -> Style {
        Style { color: Color::Numbered(number % COLORS), dash: number / COLORS % DASHES.len(), shape: number % SHAPES }
    }

    /// Returns the style with another dash pattern than the first.
    pub(super) fn dashed(self) -> Style {
        Style { dash: self.dash.max(1), ..self }
    }

    /// The style of the line of the whole among lines of its parts.
    pub(super) const WHOLE: Style = Style { color: Color::Text, dash: 0, shape: 0 };

    /// The style of parts that are not told apart.
    pub(super) const FAINT: Style = Style { color: Color::Muted, dash: 0, shape: 0 };

    /// Returns the class that sets the current colour.
    pub(super) fn class(self) -> String {
        match self.color {
            Color::Numbered(number) => format!("c{number}"),
            Color::Text => "whole".to_owned(),
            Color::Muted => "faint".to_owned(),
        }
    }

    /// Returns the attribute of the dash pattern with a blank in front.
    pub(super) fn dash(self) -> &'static str {
        DASHES[self.dash]
    }

    /// Returns the number of the shape of marks.
    pub(super) fn shape(self) -> usize {
        self.shape
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn styles_do_not_repeat() {
        let first = |count: usize, of: fn(Style) -> (Option<usize>, Option<usize>)| {
            let styles = (0..count).map(Style::numbered).map(|style| (style.class(), of(style)));
            styles.collect::<HashSet<_>>().len()
        };
        assert_eq!(first(LINES, |style| (Some(style.dash), None)), LINES);
        assert_eq!(first(42, |style| (None, Some(style.shape))), 42);
        assert_eq!(first(210, |style| (Some(style.dash), Some(style.shape))), 210);
    }
}
