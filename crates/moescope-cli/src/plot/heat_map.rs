//! Heat maps of a matrix with names at both sides.

use super::series::is_drawable;
use super::svg::{Anchor, Drawing, FONT, Svg, shortened, width};
use super::ticks;

/// Width of a heat map, in units of the drawing.
const WIDTH: f64 = 440.0;

/// Characters of a name.
const LONGEST: usize = 22;

/// Columns up to which cells show their values.
const SHOWN: usize = 8;

/// Anchors of the colour map viridis, from dark violet to yellow.
const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

/// A matrix as coloured cells.
pub struct HeatMap {
    /// Title of the names below.
    pub x_title: String,
    /// Title of the names at the left.
    pub y_title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, from the top down.
    pub rows: Vec<String>,
    /// The values of each row. Values that are not finite stay empty.
    pub values: Vec<Vec<f64>>,
}

impl HeatMap {
    /// Draws the heat map.
    pub fn draw(&self) -> Drawing {
        let columns: Vec<String> = self.columns.iter().map(|name| shortened(&crate::shown(name), LONGEST)).collect();
        let rows: Vec<String> = self.rows.iter().map(|name| shortened(&crate::shown(name), LONGEST)).collect();
        let widest = |names: &[String]| names.iter().map(|name| FONT * width(name)).fold(0.0, f64::max);
        let (left, top) = (widest(&rows) + 8.0, if self.y_title.is_empty() { 4.0 } else { 24.0 });
        let side = (WIDTH - left - 2.0) / columns.len().max(1) as f64;
        let height = side.clamp(14.0, 36.0);
        let bottom = top + height * rows.len() as f64;
        let runs_up = columns.iter().any(|name| FONT * (width(name) + 0.5) > side);
        let below = if runs_up { widest(&columns) + 10.0 } else { 20.0 };
        let title = if self.x_title.is_empty() { 0.0 } else { 20.0 };
        let mut svg = Svg::new(WIDTH, bottom + below + title);

        let drawn = || self.values.iter().flatten().copied().filter(|&value| is_drawable(value));
        let (low, high) =
            drawn().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let share = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
        for (row, values) in self.values.iter().enumerate() {
            for (column, &value) in values.iter().enumerate().filter(|(_, value)| is_drawable(**value)) {
                let (x, y) = (left + side * column as f64, top + height * row as f64);
                let name = |names: &[String], at: usize| names.get(at).cloned().unwrap_or_default();
                let hint =
                    format!("{}, {}: {}", name(&self.rows, row), name(&self.columns, column), ticks::short(value));
                let fill = format!("fill=\"{}\"", color(share(value)));
                svg.rectangle([x, y, side, height], &fill, &crate::shown(&hint));
                if columns.len() <= SHOWN {
                    // The middle of viridis is as far from black as from white.
                    let fill = if share(value) > 0.55 { "#000" } else { "#fff" };
                    svg.push(&format!("<g class=\"in-cell\" fill=\"{fill}\">"));
                    svg.text(x + side / 2.0, y + height / 2.0 + 0.35 * FONT, Anchor::Middle, &format!("{value:.2}"));
                    svg.push("</g>\n");
                }
            }
        }
        let mut end = f64::NEG_INFINITY;
        for (row, name) in rows.iter().enumerate() {
            let y = top + height * (row as f64 + 0.5);
            if y - end >= FONT {
                svg.text(left - 6.0, y + 0.35 * FONT, Anchor::End, name);
                end = y;
            }
        }
        end = f64::NEG_INFINITY;
        for (column, name) in columns.iter().enumerate() {
            let x = left + side * (column as f64 + 0.5);
            if x - end >= FONT + 1.0 || !runs_up {
                if runs_up {
                    svg.text_up(x + 0.35 * FONT, bottom + 6.0, name);
                } else {
                    svg.text(x, bottom + 16.0, Anchor::Middle, name);
                }
                end = x;
            }
        }
        svg.text(0.0, FONT, Anchor::Start, &self.y_title);
        svg.text((left + WIDTH) / 2.0, bottom + below + 14.0, Anchor::Middle, &self.x_title);
        let count = self.values.iter().map(Vec::len).sum::<usize>() - drawn().count();
        let notes = (count > 0).then(|| format!("Values that are not finite, left out: {count}."));
        let legend = if high >= low { vec![ramp(&ticks::short(low), &ticks::short(high))] } else { Vec::new() };
        Drawing { svg: svg.finish("class=\"chart\""), legend, notes: notes.into_iter().collect(), is_wide: false }
    }
}

/// Returns the colour of a share, from 0 to 1.
pub(super) fn color(share: f64) -> String {
    let at = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let pair = VIRIDIS.windows(2).enumerate().find(|(below, _)| at <= *below as f64 + 1.0);
    let Some((below, [from, to])) = pair.map(|(below, pair)| (below, [pair[0], pair[1]])) else {
        return String::from("none");
    };
    let part = at - below as f64;
    let [red, green, blue] = [0, 1, 2].map(|band| (from[band] + part * (to[band] - from[band])).round());
    format!("rgb({red},{green},{blue})")
}

/// Returns the legend of the colours between two texts, as HTML.
pub(super) fn ramp(low: &str, high: &str) -> String {
    let stops: Vec<String> = (0..=8).map(|stop| color(f64::from(stop) / 8.0)).collect();
    format!(
        "{low} <span class=\"ramp\" style=\"background:linear-gradient(to right,{})\"></span> {high}",
        stops.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_where_hand_computed_coordinates_say() {
        let map = HeatMap {
            x_title: String::new(),
            y_title: String::new(),
            columns: vec!["<a".to_owned(), "b\u{1b}".to_owned()],
            rows: vec!["c".to_owned(), "&".to_owned()],
            values: vec![vec![0.0, 1.0], vec![f64::NAN, 0.5]],
        };
        let drawing = map.draw();
        roxmltree::Document::parse(&drawing.svg).unwrap();
        // left = 0.62 * 13 + 8 = 16.06, a cell is (440 - 16.06 - 2) / 2 = 210.97 wide and 36 high, from 4 down.
        let cell = |x, y, share| format!("x=\"{x}\" y=\"{y}\" width=\"211\" height=\"36\" fill=\"{}\"", color(share));
        for cell in [cell(16.1, 4.0, 0.0), cell(227.0, 4.0, 1.0), cell(227.0, 40.0, 0.5)] {
            assert!(drawing.svg.contains(&cell), "{cell}: {}", drawing.svg);
        }
        assert_eq!(drawing.svg.matches("<rect").count(), 3);
        assert_eq!(drawing.notes, ["Values that are not finite, left out: 1."]);
        assert!(drawing.svg.contains("&lt;a</text>") && drawing.svg.contains("b\\u{1b}</text>"));
    }

    #[test]
    fn colours_run_from_dark_to_light() {
        assert_eq!(
            [0.0, 0.5, 1.0, 7.0].map(color),
            ["rgb(68,1,84)", "rgb(33,144,141)", "rgb(253,231,37)", "rgb(253,231,37)"]
        );
    }
}
