//! A picture of tokens by experts.

use std::fmt::Write;

use moescope_cli::{escape, visible};

/// One layer of one sequence.
pub(crate) struct Picture {
    /// What is shown.
    pub(crate) title: String,
    /// Rows of the picture.
    pub(crate) experts: usize,
    /// Text of each token.
    pub(crate) labels: Vec<String>,
    /// Whether each token was decoded.
    pub(crate) decoded: Vec<bool>,
    /// Chosen experts.
    pub(crate) cells: Vec<Cell>,
}

/// An expert that a token chose.
pub(crate) struct Cell {
    /// Column.
    pub(crate) token: usize,
    /// Row.
    pub(crate) expert: usize,
    /// 0 to 1: how dark it is.
    pub(crate) share: f32,
    /// Shown when one points at it.
    pub(crate) note: String,
}

/// Side of a cell.
const SIDE: usize = 12;
/// Space left of the cells, above them, and below them for the text of the tokens.
const LEFT: usize = 48;
const TOP: usize = 56;
const BELOW: usize = 150;

impl Picture {
    /// The picture as SVG; nothing outside of it is needed.
    pub(crate) fn svg(&self) -> String {
        let (columns, rows) = (self.labels.len(), self.experts);
        let (width, height) = (LEFT + columns * SIDE + 20, TOP + rows * SIDE + BELOW);
        let bottom = TOP + rows * SIDE;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"ui-monospace, monospace\" font-size=\"10\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"34\" fill=\"#666\">rows: experts; darker: larger router weight (or better rank); \
             bar below the title: grey prefill, blue decode</text>\n",
            escape(&self.title)
        );
        // Writing to a String cannot fail.
        for row in (0..=rows).step_by(8) {
            let y = TOP + row * SIDE;
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"#ddd\"/>",
                LEFT + columns * SIDE
            );
            if row < rows {
                let _ =
                    writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{row}</text>", LEFT - 6, y + SIDE - 2);
            }
        }
        for (token, (label, decoded)) in self.labels.iter().zip(&self.decoded).enumerate() {
            let x = LEFT + token * SIDE;
            let fill = if *decoded { "#4a7fb5" } else { "#bbbbbb" };
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{}\" width=\"{SIDE}\" height=\"5\" fill=\"{fill}\"/>", TOP - 9);
            let (x, y) = (x + SIDE - 3, bottom + 6);
            let text = escape(&visible(label));
            let _ =
                writeln!(svg, "<text transform=\"translate({x},{y}) rotate(-90)\" text-anchor=\"end\">{text}</text>");
        }
        for cell in &self.cells {
            let (x, y) = (LEFT + cell.token * SIDE, TOP + cell.expert * SIDE);
            // From light orange to dark brown; the square root tells small weights apart.
            let dark = cell.share.sqrt();
            let shade = |light: f32, dim: f32| light + (dim - light) * dark;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"rgb({:.0},{:.0},{:.0})\">\
                 <title>{} {}</title></rect>",
                shade(254.0, 102.0),
                shade(217.0, 37.0),
                shade(166.0, 6.0),
                escape(&visible(&self.labels[cell.token])),
                escape(&cell.note)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_escaped_and_blanks_visible() {
        let cell = Cell { token: 1, expert: 3, share: 1.0, note: "expert 3".to_owned() };
        let labels = vec![" a\n".to_owned(), "<b>&\u{7}\u{ffff}".to_owned()];
        let svg = Picture {
            title: "t\u{1b}\u{0}<".to_owned(),
            experts: 4,
            labels,
            decoded: vec![false, true],
            cells: vec![cell],
        }
        .svg();
        assert!(
            svg.contains(">\u{b7}a\u{21b5}</text>") && svg.contains(">&lt;b&gt;&amp;\u{fffd}\u{fffd}</text>"),
            "{svg}"
        );
        assert!(svg.contains(">t\u{fffd}\u{fffd}&lt;</text>"), "{svg}");
        assert!(svg.contains("<rect x=\"60\" y=\"92\" width=\"12\" height=\"12\" fill=\"rgb(102,37,6)\">"), "{svg}");
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }
}
