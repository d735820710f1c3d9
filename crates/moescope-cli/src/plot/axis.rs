//! Axes and their scales.

use super::series::is_drawable;
use super::svg::{FONT, width};
use super::ticks;

/// The axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    pub(super) title: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Linear,
    Whole,
    /// Logarithmic, with ticks at the given values or at round ones.
    Logarithmic(Vec<f64>),
    Categories(Vec<String>),
}

impl Axis {
    fn new(title: &str, kind: Kind) -> Axis {
        Axis { title: title.to_owned(), kind }
    }

    /// Creates a linear axis.
    pub fn linear(title: &str) -> Axis {
        Axis::new(title, Kind::Linear)
    }

    /// Creates an axis of whole numbers, such as the numbers of layers.
    pub fn whole(title: &str) -> Axis {
        Axis::new(title, Kind::Whole)
    }

    /// Creates a logarithmic axis.
    pub fn logarithmic(title: &str) -> Axis {
        Axis::new(title, Kind::Logarithmic(Vec::new()))
    }

    /// Creates a logarithmic axis of window lengths with a tick at each of them.
    pub fn windows<'a>(windows: impl IntoIterator<Item = &'a usize>) -> Axis {
        let ticks = windows.into_iter().map(|&window| window as f64).collect();
        Axis::new("window length m, tokens", Kind::Logarithmic(ticks))
    }

    /// Creates an axis of names. The first name stands at 0, the next one at 1.
    pub fn categories(title: &str, names: impl IntoIterator<Item: Into<String>>) -> Axis {
        Axis::new(title, Kind::Categories(names.into_iter().map(|name| crate::shown(&name.into())).collect()))
    }

    /// Returns the names, if it is an axis of names.
    pub(super) fn names(&self) -> Option<&[String]> {
        match &self.kind {
            Kind::Categories(names) => Some(names),
            _ => None,
        }
    }

    /// Returns true if a value has a place on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        is_drawable(value) && (value > 0.0 || !matches!(self.kind, Kind::Logarithmic(_)))
    }

    /// Returns the scale that shows all values, and at most about `most` ticks. A linear scale ends at ticks, or a
    /// little beyond the values.
    pub(super) fn scale(&self, values: impl Iterator<Item = f64>, most: f64, ends_at_ticks: bool) -> Scale {
        let held = values.filter(|&value| self.holds(value));
        let (mut low, mut high) =
            held.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = (1.0, 2.0);
        }
        match &self.kind {
            Kind::Categories(names) => Scale {
                low: -0.5,
                high: names.len().max(1) as f64 - 0.5,
                is_logarithmic: false,
                ticks: names.iter().enumerate().map(|(at, name)| (at as f64, name.clone())).collect(),
            },
            Kind::Logarithmic(given) => {
                let room = ((high / low).ln() * 0.04).max(0.05).exp();
                (low, high) = (low / room, high * room);
                let inside = |tick: &f64| (low..=high).contains(tick);
                let mut ticks: Vec<f64> = given.iter().copied().filter(inside).collect();
                if ticks.is_empty() {
                    ticks = ticks::logarithmic(low, high);
                }
                if ticks.len() < 2 && given.is_empty() {
                    // Between two powers of ten.
                    ticks = ticks::multiples(low, high, ticks::step(high - low, most));
                }
                let text = |&tick: &f64| (tick, ticks::text(tick, smallest_digit(tick)));
                Scale { low, high, is_logarithmic: true, ticks: ticks.iter().map(text).collect() }
            }
            Kind::Linear | Kind::Whole => {
                let is_whole = matches!(self.kind, Kind::Whole);
                if is_whole {
                    (low, high) = (low - 0.5, high + 0.5);
                } else if high - low <= 1e-9 * low.abs().max(high.abs()) {
                    let room = if low == 0.0 { 1.0 } else { 0.05 * low.abs() };
                    (low, high) = (low - room, high + room);
                }
                let step = ticks::step(high - low, most).max(if is_whole { 1.0 } else { 0.0 });
                if !is_whole && !ends_at_ticks {
                    let room = 0.02 * (high - low);
                    (low, high) = (low - room, high + room);
                } else if !is_whole {
                    (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
                }
                let ticks = ticks::multiples(low, high, step);
                let ticks = ticks.into_iter().map(|tick| (tick, ticks::text(tick, step))).collect();
                Scale { low, high, is_logarithmic: false, ticks }
            }
        }
    }
}

/// Returns the step that shows all digits of a tick.
fn smallest_digit(tick: f64) -> f64 {
    let exponent = |decimals: i32| 10f64.powi(-decimals);
    let is_exact = |&decimals: &i32| {
        let scaled = tick / exponent(decimals);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.abs()
    };
    exponent((0..9).find(is_exact).unwrap_or(9))
}

/// The values of an axis with their ticks.
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Returns the place of a value between `from` and `to`.
    pub(super) fn place(&self, value: f64, [from, to]: [f64; 2]) -> f64 {
        let of = |value: f64| if self.is_logarithmic { value.ln() } else { value };
        let (low, high) = (of(self.low), of(self.high));
        from + (to - from) * (of(value) - low) / (high - low)
    }

    /// Returns the values and texts of all ticks.
    pub(super) fn ticks(&self) -> &[(f64, String)] {
        &self.ticks
    }

    /// Returns the width of the longest tick text, in units of the drawing.
    pub(super) fn widest(&self) -> f64 {
        self.ticks.iter().map(|(_, text)| FONT * width(text)).fold(0.0, f64::max)
    }

    /// Returns the place and text of those ticks whose texts, each `size` long, do not overlap between `from` and `to`.
    pub(super) fn spaced(&self, range: [f64; 2], size: impl Fn(&str) -> f64) -> Vec<(f64, &str)> {
        let mut found: Vec<(f64, &str)> = Vec::new();
        let mut end = f64::NEG_INFINITY;
        for (value, text) in &self.ticks {
            let (at, half) = (self.place(*value, range), size(text) / 2.0);
            // Vertical axes run from the bottom up.
            let along = if range[0] > range[1] { -at } else { at };
            if along - half >= end {
                found.push((at, text));
                end = along + half;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<&str> {
        scale.ticks().iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn linear_axes_end_at_ticks() {
        let scale = Axis::linear("").scale([0.13, 0.87].into_iter(), 6.0, true);
        assert_eq!(texts(&scale), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(scale.place(0.25, [100.0, 0.0]), 75.0);
        let exact = Axis::linear("").scale([0.13, 0.87].into_iter(), 6.0, false);
        assert_eq!((texts(&exact), exact.place(0.5, [0.0, 74.0])), (vec!["0.2", "0.4", "0.6", "0.8"], 37.0));
        // One value lies in the middle of its axis.
        let one = Axis::linear("").scale([5.0].into_iter(), 6.0, true);
        assert!((one.place(5.0, [0.0, 1.0]) - 0.5).abs() < 0.1);
    }

    #[test]
    fn logarithmic_axes_space_powers_evenly() {
        let scale = Axis::windows(&[2, 4, 8]).scale([2.0, 8.0].into_iter(), 6.0, true);
        assert_eq!(texts(&scale), ["2", "4", "8"]);
        assert!((scale.place(4.0, [0.0, 10.0]) - 5.0).abs() < 1e-9);
        assert_eq!(texts(&Axis::logarithmic("").scale([12.0, 16.0].into_iter(), 4.0, true)), ["12", "14", "16"]);
        assert_eq!(texts(&Axis::logarithmic("").scale([0.4, 3.0].into_iter(), 4.0, true)), ["0.5", "1", "2"]);
        assert!(!Axis::logarithmic("").holds(0.0) && !Axis::linear("").holds(f64::NAN));
    }

    #[test]
    fn layers_have_whole_ticks_and_names_their_places() {
        assert_eq!(texts(&Axis::whole("").scale([0.0, 2.0].into_iter(), 8.0, true)), ["0", "1", "2"]);
        let names = Axis::categories("", ["a", "b"]).scale(std::iter::empty(), 8.0, true);
        assert_eq!((names.place(0.0, [0.0, 100.0]), names.place(1.0, [0.0, 100.0])), (25.0, 75.0));
    }

    #[test]
    fn ticks_without_room_are_left_out() {
        let scale = Axis::whole("").scale([0.0, 99.0].into_iter(), 100.0, true);
        let spaced = scale.spaced([0.0, 100.0], |_| 10.0);
        assert_eq!(spaced.len(), 10);
        assert!(spaced.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 10.0));
    }

    #[test]
    fn values_of_any_size_have_a_scale() {
        for value in [0.0, 1e-300, -1e100, 1e100, 7.0] {
            for axis in [Axis::linear(""), Axis::logarithmic(""), Axis::whole("")] {
                let scale = axis.scale([value, 1.0].into_iter(), 6.0, true);
                assert!(scale.place(1.0, [0.0, 1.0]).is_finite(), "{value} {axis:?}");
            }
        }
    }
}
