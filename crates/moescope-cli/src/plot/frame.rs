//! The area of points of a chart, with its axes around it.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::series::Point;
use super::svg::{Anchor, FONT, Svg, number, shortened, width};

/// Width of a chart, in units of the drawing.
pub(super) const WIDTH: f64 = 440.0;

/// Height of the area of points, unless names stand at the left.
const HEIGHT: f64 = 220.0;

/// Height of the row of a name at the left.
const ROW: f64 = 24.0;

/// Characters of a name at an axis.
pub(super) const LONGEST: usize = 26;

/// The area of points and the scales of its sides.
pub(super) struct Frame<'a> {
    axes: [&'a Axis; 2],
    x: Scale,
    y: Scale,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// Height of the names below that run upwards, because they are too long to stand side by side.
    names_below: f64,
}

impl<'a> Frame<'a> {
    /// Creates the frame of points, all of which have a place on the axes.
    pub(super) fn new<'p>(
        axes: [&'a Axis; 2],
        points: impl Iterator<Item = &'p Point> + Clone,
        has_zero: bool,
    ) -> Frame<'a> {
        let ends = |interval: Option<[f64; 2]>| interval.into_iter().flatten();
        let x = axes[0].scale(points.clone().flat_map(|point| ends(point.x_interval).chain([point.x])), 7.0, false);
        let y = points.flat_map(|point| ends(point.y_interval).chain([point.y])).chain(has_zero.then_some(0.0));
        let y = axes[1].scale(y, 6.0, true);
        let left = 12.0 + axes[1].names().map_or_else(|| y.widest(), longest);
        let right = WIDTH - 16.0;
        // The title of the vertical axis stands above it, so that it runs like all other text.
        let top = if axes[1].title.is_empty() { 10.0 } else { 28.0 };
        let bottom = top + axes[1].names().map_or(HEIGHT, |names| ROW * names.len().max(1) as f64);
        let fits = |names: &[String]| {
            let room = (right - left) / names.len().max(1) as f64;
            names.iter().all(|name| FONT * (width(name) + 0.6) <= room)
        };
        let names_below = axes[0].names().filter(|names| !fits(names)).map_or(0.0, longest);
        Frame { axes, x, y, left, right, top, bottom, names_below }
    }

    /// Returns the place of a value across.
    pub(super) fn x(&self, value: f64) -> f64 {
        self.x.place(value, [self.left, self.right])
    }

    /// Returns the place of a value down.
    pub(super) fn y(&self, value: f64) -> f64 {
        self.y.place(value, self.vertical())
    }

    /// Names at the left run from the top down, numbers from the bottom up.
    fn vertical(&self) -> [f64; 2] {
        match self.axes[1].names() {
            Some(_) => [self.top, self.bottom],
            None => [self.bottom, self.top],
        }
    }

    /// Returns left, top, right and bottom of the place for names of points.
    pub(super) fn bounds(&self) -> [f64; 4] {
        [self.left, self.top, WIDTH, self.bottom]
    }

    /// Returns the middle of the area of points.
    pub(super) fn middle(&self) -> (f64, f64) {
        ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0)
    }

    /// Returns the height of the area of points and everything around it.
    pub(super) fn height(&self) -> f64 {
        let title = if self.axes[0].title.is_empty() { 0.0 } else { 20.0 };
        self.bottom + self.names_below + 24.0 + title
    }

    /// Draws grid lines, ticks and titles.
    pub(super) fn draw(&self, svg: &mut Svg) {
        let Frame { left, right, top, bottom, .. } = *self;
        let mut grid = String::new();
        for &(value, _) in self.y.ticks() {
            // Writing to a string cannot fail.
            let _ = write!(grid, "M{} {}H{}", number(left), number(self.y(value)), number(right));
        }
        for &(value, _) in self.x.ticks() {
            let _ = write!(grid, "M{} {}V{}", number(self.x(value)), number(bottom), number(top));
        }
        svg.path("class=\"grid\"", &grid, "");
        for (y, text) in self.y.spaced(self.vertical(), |_| FONT) {
            svg.text(left - 6.0, y + 0.35 * FONT, Anchor::End, &shortened(text, LONGEST));
        }
        if self.names_below > 0.0 {
            for (x, text) in self.x.spaced([left, right], |_| FONT) {
                svg.text_up(x + 0.35 * FONT, bottom + 6.0, &shortened(text, LONGEST));
            }
        } else {
            for (x, text) in self.x.spaced([left, right], |text| FONT * (width(text) + 0.6)) {
                svg.text(x, bottom + 17.0, Anchor::Middle, text);
            }
        }
        let [below, above] = self.axes.map(|axis| axis.title.as_str());
        if !above.is_empty() {
            svg.text(0.0, FONT, Anchor::Start, above);
        }
        if !below.is_empty() {
            let (half, middle) = (FONT * width(below) / 2.0, self.middle().0);
            // A long title takes the whole width.
            let x = middle.min(WIDTH - half).max(half.min(WIDTH / 2.0));
            svg.text(x, self.height() - 6.0, Anchor::Middle, below);
        }
    }
}

/// Returns the width of the longest name at an axis.
fn longest(names: &[String]) -> f64 {
    names.iter().map(|name| FONT * width(&shortened(name, LONGEST))).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_axes_have_their_room() {
        let names = ["a router with a very long name", "b"];
        let (x, y) = (Axis::linear("x"), Axis::categories("", names));
        let points = [Point::new(1.0, 0.0), Point::new(2.0, 1.0)];
        let frame = Frame::new([&x, &y], points.iter(), false);
        assert!(frame.left > FONT * width(&shortened(names[0], LONGEST)));
        assert_eq!(frame.bottom - frame.top, 2.0 * ROW);
        assert!(frame.y(0.0) < frame.y(1.0), "the first name is on top");

        let (x, y) = (Axis::categories("", names), Axis::linear("y"));
        let points = [Point::new(0.0, 1.0), Point::new(1.0, 2.0)];
        let frame = Frame::new([&x, &y], points.iter(), false);
        assert!(frame.names_below > 100.0 && frame.height() > frame.bottom + frame.names_below);
        let short = Axis::categories("", ["a", "b"]);
        assert_eq!(Frame::new([&short, &y], points.iter(), false).names_below, 0.0);
    }

    #[test]
    fn zero_is_shown_where_bars_start() {
        let (x, y) = (Axis::whole("layer"), Axis::linear("slots"));
        let points = [Point::new(0.0, 10.0), Point::new(1.0, 20.0)];
        let frame = Frame::new([&x, &y], points.iter(), true);
        assert_eq!((frame.y(0.0), frame.y(20.0)), (248.0, 28.0));
        assert_eq!(Frame::new([&x, &y], points.iter(), false).y(10.0), 248.0);
    }
}
