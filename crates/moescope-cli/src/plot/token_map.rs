//! Heat maps of the router weights of a sequence: tokens across, the experts of all layers down.

use std::fmt::Write;

use super::heat_map::{color, ramp};
use super::svg::{Anchor, Drawing, Svg, shortened, visible, width};

/// Width of a token's column, in units of the drawing.
const COLUMN: f64 = 11.0;

/// Height of the text.
const TEXT: f64 = 10.0;

/// Height of all rows together, unless they are many.
const HEIGHT: f64 = 480.0;

/// Shades of weights.
const SHADES: usize = 12;

/// Characters of a token.
const LONGEST: usize = 14;

/// The router weights of a sequence.
pub struct TokenMap {
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The name of each layer.
    pub layers: Vec<String>,
    /// Number of experts per layer.
    pub experts: usize,
    /// The weights that are drawn, from 0 to 1.
    pub weights: Vec<Weight>,
}

/// The weight of an expert for a token.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// Number of the token.
    pub token: usize,
    /// Number of the layer.
    pub layer: usize,
    /// Number of the expert in its layer.
    pub expert: usize,
    /// The router's weight.
    pub weight: f64,
}

impl TokenMap {
    /// Draws the map in its natural size: a page scrolls it where the page is narrower.
    pub fn draw(&self) -> Drawing {
        let rows = (self.layers.len() * self.experts).max(1) as f64;
        let row = (HEIGHT / rows).clamp(1.5, 8.0);
        let widest = self.layers.iter().map(|name| TEXT * width(name)).fold(0.0, f64::max);
        let left = widest + 8.0;
        let (right, bottom) = (left + COLUMN * self.tokens.len() as f64, row * rows);
        let tokens: Vec<String> = self.tokens.iter().map(|token| shortened(&visible(token), LONGEST)).collect();
        let below = tokens.iter().map(|token| TEXT * width(token)).fold(0.0, f64::max);
        let (wide, high) = (right + 2.0, bottom + below + 30.0);
        let mut svg = Svg::new(wide, high);
        svg.rectangle([left, 0.0, right - left, bottom], &format!("fill=\"{}\"", color(0.0)), "");

        let mut shades = vec![String::new(); SHADES];
        let mut left_out = 0;
        for weight in &self.weights {
            if !(0.0..=1.0).contains(&weight.weight) {
                left_out += 1;
                continue;
            }
            let (x, y) =
                (left + COLUMN * weight.token as f64, row * (weight.layer * self.experts + weight.expert) as f64);
            // The paths are lines in the middle of the rows. The square root tells small weights apart.
            let share = weight.weight.sqrt() * SHADES as f64;
            let shade = (1..SHADES).rev().find(|&shade| share >= shade as f64).unwrap_or(0);
            let _ = write!(shades[shade], "M{x:.0} {:.1}h{COLUMN}", y + row / 2.0);
        }
        for (shade, path) in shades.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let color = color((shade + 1) as f64 / SHADES as f64);
            svg.path(&format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"{row:.1}\""), path, "");
        }
        let mut lines = String::new();
        let mut end = f64::NEG_INFINITY;
        for (layer, name) in self.layers.iter().enumerate() {
            let top = row * (layer * self.experts) as f64;
            let middle = top + row * self.experts as f64 / 2.0;
            if layer > 0 {
                let _ = write!(lines, "M{left:.0} {top:.1}H{right:.0}");
            }
            if middle - end >= TEXT {
                svg.text(left - 6.0, middle + 0.35 * TEXT, Anchor::End, &crate::shown(name));
                end = middle;
            }
        }
        svg.path("class=\"between\"", &lines, "");
        for (token, text) in tokens.iter().enumerate() {
            svg.text_up(left + COLUMN * (token as f64 + 0.5) + 0.35 * TEXT, bottom + 5.0, text);
        }
        svg.text(left, high - 6.0, Anchor::Start, "tokens, from the first on; per layer one row per expert");
        let notes = (left_out > 0).then(|| format!("Weights outside 0 to 1, left out: {left_out}."));
        let size = format!("class=\"tokens\" width=\"{wide:.0}\" height=\"{high:.0}\"");
        Drawing {
            svg: svg.finish(&size),
            legend: vec![ramp("weight 0", "weight 1, shaded by the square root")],
            notes: notes.into_iter().collect(),
            is_wide: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_where_hand_computed_coordinates_say() {
        let weight = |token, layer, expert, weight| Weight { token, layer, expert, weight };
        let map = TokenMap {
            tokens: vec![" a\n".to_owned(), "<b>\u{0}".to_owned()],
            layers: vec!["layer 0".to_owned(), "layer 1".to_owned()],
            experts: 4,
            weights: vec![weight(0, 0, 0, 1.0), weight(1, 1, 2, 0.25), weight(0, 0, 1, f64::NAN)],
        };
        let drawing = map.draw();
        roxmltree::Document::parse(&drawing.svg).unwrap();
        // left = 10 * (0.4 + 4 * 0.62 + 2 * 0.4) + 8 = 44.8 (l, r and the blank are narrow); rows are 8 high.
        // Row 0 has its middle at 4, row 4 + 2 = 6 at 52; the second column begins at 55.8.
        let [light, middle] = [color(1.0), color(7.0 / 12.0)];
        for path in [
            format!("stroke=\"{light}\" stroke-width=\"8.0\" d=\"M45 4.0h11\""),
            format!("stroke=\"{middle}\" stroke-width=\"8.0\" d=\"M56 52.0h11\""),
        ] {
            assert!(drawing.svg.contains(&path), "{path}: {}", drawing.svg);
        }
        assert_eq!(drawing.notes, ["Weights outside 0 to 1, left out: 1."]);
        assert!(drawing.svg.contains(">\u{b7}a\u{21b5}</text>") && drawing.svg.contains(">&lt;b&gt;\u{fffd}</text>"));
    }
}
