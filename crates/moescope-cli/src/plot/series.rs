//! Series of points and their look.

/// The magnitude above which a value is not drawn.
const MOST: f64 = 1e100;

/// A point of a series with its intervals.
#[derive(Clone, Debug)]
pub struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_interval: Option<[f64; 2]>,
    pub(super) y_interval: Option<[f64; 2]>,
    pub(super) label: String,
}

impl Point {
    /// Creates a point without intervals and without a name.
    pub fn new(x: f64, y: f64) -> Point {
        Point { x, y, x_interval: None, y_interval: None, label: String::new() }
    }

    /// Adds the interval of x. Bounds that are not finite stand for no interval.
    #[must_use]
    pub fn with_x_interval(self, low: f64, high: f64) -> Point {
        Point { x_interval: interval(low, high), ..self }
    }

    /// Adds the interval of y. Bounds that are not finite stand for no interval.
    #[must_use]
    pub fn with_y_interval(self, low: f64, high: f64) -> Point {
        Point { y_interval: interval(low, high), ..self }
    }

    /// Adds a name.
    #[must_use]
    pub fn with_label(self, label: impl Into<String>) -> Point {
        Point { label: crate::shown(&label.into()), ..self }
    }
}

fn interval(low: f64, high: f64) -> Option<[f64; 2]> {
    (is_drawable(low) && is_drawable(high)).then_some([low.min(high), low.max(high)])
}

/// Returns true for a finite value of a magnitude that can be drawn.
pub(super) fn is_drawable(value: f64) -> bool {
    value.abs() <= MOST
}

/// The look of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Line,
    MarkedLine,
    Marks,
    NamedMarks,
    Bars,
    /// The line of everything together.
    Whole,
    /// One of many lines that are not told apart.
    Faint,
}

/// A named series of points.
#[derive(Clone, Debug)]
pub struct Series {
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) points: Vec<Point>,
    /// The number of the style, if it is not the next one.
    pub(super) style: Option<usize>,
    pub(super) is_dashed: bool,
}

impl Series {
    fn new(look: Look, name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        let points = points.into_iter().collect();
        Series { name: crate::shown(name), look, points, style: None, is_dashed: false }
    }

    /// Creates a line.
    pub fn line(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::Line, name, points)
    }

    /// Creates a line with a mark at each point.
    pub fn marked_line(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::MarkedLine, name, points)
    }

    /// Creates marks. The name of a point is shown when one points at it.
    pub fn marks(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::Marks, name, points)
    }

    /// Creates marks with their names beside them, where there is room.
    pub fn named_marks(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::NamedMarks, name, points)
    }

    /// Creates bars from zero.
    pub fn bars(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::Bars, name, points)
    }

    /// Creates the line of everything together, among lines of the parts.
    pub fn whole(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::Whole, name, points)
    }

    /// Creates one of many lines that the legend does not tell apart.
    pub fn faint(name: &str, points: impl IntoIterator<Item = Point>) -> Series {
        Series::new(Look::Faint, name, points)
    }

    /// Sets the number of the style, so that series of one kind look alike.
    #[must_use]
    pub fn with_style(self, number: usize) -> Series {
        Series { style: Some(number), ..self }
    }

    /// Draws the line in dashes.
    #[must_use]
    pub fn dashed(self) -> Series {
        Series { is_dashed: true, ..self }
    }
}
