//! Charts of lines, marks and bars over two axes.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::labels::Labels;
use super::marks::{RADIUS, mark};
use super::palette::{LINES, Style};
use super::series::{Look, Point, Series};
use super::svg::{Anchor, Drawing, FONT, Svg, escape, number, shortened, width};

/// Width of a chart, in units of the drawing.
const WIDTH: f64 = 440.0;

/// Height of the area of points, unless names stand at the left.
const HEIGHT: f64 = 220.0;

/// Height of the row of a name at the left.
const ROW: f64 = 24.0;

/// Characters of a name at an axis.
const LONGEST: usize = 26;

/// Points of a series that get a title each.
const TITLES: usize = 400;

/// A chart under construction.
#[derive(Clone, Debug)]
pub struct Chart {
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

/// The area of points and the scales of its sides.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
    /// Names at the left run from the top down, numbers from the bottom up.
    runs_down: bool,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.x.place(value, [self.left, self.right])
    }

    fn y(&self, value: f64) -> f64 {
        self.y.place(value, self.vertical())
    }

    fn vertical(&self) -> [f64; 2] {
        if self.runs_down { [self.top, self.bottom] } else { [self.bottom, self.top] }
    }
}

impl Chart {
    /// Creates a chart without series.
    pub fn new(x: Axis, y: Axis) -> Chart {
        Chart { x, y, series: Vec::new() }
    }

    /// Adds a series.
    pub fn add(&mut self, series: Series) {
        self.series.push(series);
    }

    /// Draws the chart.
    pub fn draw(&self) -> Drawing {
        let mut notes = Vec::new();
        let missing = self.series.iter().flat_map(|series| &series.points).filter(|point| !self.holds(point)).count();
        if missing > 0 {
            notes.push(format!("Values without a place on the axes, left out: {missing}."));
        }
        let frame = self.frame();
        let bottom = if self.x.title.is_empty() { 24.0 } else { 44.0 };
        let mut svg = Svg::new(WIDTH, frame.bottom + bottom + self.names_below(&frame));
        self.axes(&frame, &mut svg);
        let mut labels = Labels::new([frame.left, frame.top, WIDTH, frame.bottom]);
        let styles = self.styles();
        for (series, style) in self.series.iter().zip(&styles) {
            self.series(series, *style, &frame, &mut svg);
            let is_marked = !matches!(series.look, Look::Line | Look::Faint | Look::Bars);
            for point in series.points.iter().filter(|point| is_marked && self.holds(point)) {
                labels.take_mark(frame.x(point.x), frame.y(point.y), RADIUS);
            }
        }
        if self.series.iter().all(|series| !series.points.iter().any(|point| self.holds(point))) {
            svg.text((frame.left + frame.right) / 2.0, (frame.top + frame.bottom) / 2.0, Anchor::Middle, "no values");
        }
        let unnamed = self.names(&frame, &mut labels, &mut svg);
        if unnamed > 0 {
            notes.push(format!("Names without room, shown when one points at a mark: {unnamed}."));
        }
        Drawing { svg: svg.finish("class=\"chart\""), legend: self.legend(&styles), notes, is_wide: false }
    }

    fn holds(&self, point: &Point) -> bool {
        self.x.holds(point.x) && self.y.holds(point.y)
    }

    fn frame(&self) -> Frame {
        let points = || self.series.iter().flat_map(|series| &series.points).filter(|point| self.holds(point));
        let ends = |interval: Option<[f64; 2]>| interval.into_iter().flatten();
        let has_bars = self.series.iter().any(|series| series.look == Look::Bars);
        let zero = has_bars.then_some(0.0);
        let x = self.x.scale(points().flat_map(|point| ends(point.x_interval).chain([point.x])), 7.0, false);
        let y = points().flat_map(|point| ends(point.y_interval).chain([point.y])).chain(zero);
        let y = self.y.scale(y, 6.0, true);
        let widest = match self.y.names() {
            Some(names) => names.iter().map(|name| FONT * width(&shortened(name, LONGEST))).fold(0.0, f64::max),
            None => y.widest(),
        };
        // The title of the vertical axis stands above it, so that it runs like all other text.
        let top = if self.y.title.is_empty() { 10.0 } else { 28.0 };
        let height = self.y.names().map_or(HEIGHT, |names| ROW * names.len().max(1) as f64);
        Frame {
            left: widest + 12.0,
            right: WIDTH - 16.0,
            top,
            bottom: top + height,
            x,
            y,
            runs_down: self.y.names().is_some(),
        }
    }

    /// Returns the height that names below need more than numbers do: they run upwards if they are too long.
    fn names_below(&self, frame: &Frame) -> f64 {
        match self.x.names() {
            Some(names) if !fits(names, frame) => {
                names.iter().map(|name| FONT * width(&shortened(name, LONGEST))).fold(0.0, f64::max)
            }
            _ => 0.0,
        }
    }

    /// Draws grid lines, ticks and titles.
    fn axes(&self, frame: &Frame, svg: &mut Svg) {
        let Frame { left, right, top, bottom, .. } = *frame;
        let mut grid = String::new();
        for &(value, _) in frame.y.ticks() {
            let _ = write!(grid, "M{} {}H{}", number(left), number(frame.y(value)), number(right));
        }
        for &(value, _) in frame.x.ticks() {
            let _ = write!(grid, "M{} {}V{}", number(frame.x(value)), number(bottom), number(top));
        }
        svg.path("class=\"grid\"", &grid, "");
        for (y, text) in frame.y.spaced(frame.vertical(), |_| FONT) {
            svg.text(left - 6.0, y + 0.35 * FONT, Anchor::End, &shortened(text, LONGEST));
        }
        match self.x.names() {
            Some(names) if !fits(names, frame) => {
                for (x, text) in frame.x.spaced([left, right], |_| FONT) {
                    svg.text_up(x + 0.35 * FONT, bottom + 6.0, &shortened(text, LONGEST));
                }
            }
            _ => {
                for (x, text) in frame.x.spaced([left, right], |text| FONT * (width(text) + 0.6)) {
                    svg.text(x, bottom + 17.0, Anchor::Middle, text);
                }
            }
        }
        if !self.y.title.is_empty() {
            svg.text(0.0, FONT, Anchor::Start, &self.y.title);
        }
        if !self.x.title.is_empty() {
            let (half, middle) = (FONT * width(&self.x.title) / 2.0, (left + right) / 2.0);
            let y = bottom + 38.0 + self.names_below(frame);
            // A long title takes the whole width.
            svg.text(middle.min(WIDTH - half).max(half.min(WIDTH / 2.0)), y, Anchor::Middle, &self.x.title);
        }
    }

    fn styles(&self) -> Vec<Style> {
        let mut next = 0;
        let style = |series: &Series| {
            let style = match series.look {
                Look::Whole => Style::WHOLE,
                Look::Faint => Style::FAINT,
                _ => Style::numbered(series.style.unwrap_or_else(|| {
                    next += 1;
                    next - 1
                })),
            };
            if series.is_dashed { style.dashed() } else { style }
        };
        self.series.iter().map(style).collect()
    }

    /// Lines beyond the dash patterns are told apart by marks.
    fn is_marked(&self, look: Look) -> bool {
        match look {
            Look::Line => self.series.len() > LINES,
            Look::MarkedLine | Look::Marks | Look::NamedMarks | Look::Whole => true,
            Look::Bars | Look::Faint => false,
        }
    }

    fn series(&self, series: &Series, style: Style, frame: &Frame, svg: &mut Svg) {
        let class = style.class();
        let points = || series.points.iter().filter(|point| self.holds(point));
        if series.look == Look::Bars {
            let side = (0.8 * (frame.x(1.0) - frame.x(0.0))).clamp(1.0, 40.0);
            for point in points() {
                let (x, ends) = (frame.x(point.x), [frame.y(point.y), frame.y(0.0)]);
                let (up, down) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
                let attributes = format!("class=\"bar {class}\"");
                svg.rectangle([x - side / 2.0, up, side, down - up], &attributes, &title(series, point));
            }
        }
        if matches!(series.look, Look::Line | Look::MarkedLine | Look::Whole | Look::Faint) {
            let mut path = String::new();
            let mut command = 'M';
            for point in &series.points {
                if !self.holds(point) {
                    // A value that is left out leaves a gap.
                    command = 'M';
                    continue;
                }
                let _ = write!(path, "{command}{} {}", number(frame.x(point.x)), number(frame.y(point.y)));
                command = 'L';
            }
            if !path.is_empty() {
                svg.path(&format!("class=\"line {class}\"{}", style.dash()), &path, &series.name);
            }
        }
        let mut errors = String::new();
        for point in points() {
            let (x, y) = (frame.x(point.x), frame.y(point.y));
            // An interval need not hold its value; the bar always does.
            if let Some([low, high]) = bounds(&self.y, point.y_interval, point.y) {
                let (low, high, x, left) = (number(frame.y(low)), number(frame.y(high)), number(x), number(x - 3.0));
                let _ = write!(errors, "M{x} {low}V{high}M{left} {low}h6M{left} {high}h6");
            }
            if let Some([low, high]) = bounds(&self.x, point.x_interval, point.x) {
                let (low, high, y, up) = (number(frame.x(low)), number(frame.x(high)), number(y), number(y - 3.0));
                let _ = write!(errors, "M{low} {y}H{high}M{low} {up}v6M{high} {up}v6");
            }
        }
        if !errors.is_empty() {
            svg.path(&format!("class=\"error {class}\""), &errors, "");
        }
        if self.is_marked(series.look) {
            let mark = |point: &Point| mark(style.shape(), frame.x(point.x), frame.y(point.y));
            let attributes = format!("class=\"mark {class}\"");
            if series.points.len() <= TITLES {
                points().for_each(|point| svg.path(&attributes, &mark(point), &title(series, point)));
            } else {
                svg.path(&attributes, &points().map(mark).collect::<String>(), "");
            }
        }
    }

    /// Draws the names of points. Returns how many have no room.
    fn names(&self, frame: &Frame, labels: &mut Labels, svg: &mut Svg) -> usize {
        let named = self.series.iter().filter(|series| series.look == Look::NamedMarks);
        let points = named.flat_map(|series| &series.points).filter(|point| self.holds(point));
        let mut unnamed = 0;
        for point in points {
            let name = shortened(&point.label, LONGEST);
            match labels.place(frame.x(point.x), frame.y(point.y), &name) {
                Some((x, y, anchor)) => svg.text(x, y, anchor, &name),
                None => unnamed += 1,
            }
        }
        unnamed
    }

    /// Returns an entry for each series; one for all faint ones. A single series has none.
    fn legend(&self, styles: &[Style]) -> Vec<String> {
        let faint: Vec<&str> = self.of_look(Look::Faint).map(|series| series.name.as_str()).collect();
        let mut entries = Vec::new();
        if let (Some(first), Some(last)) = (faint.first(), faint.last()) {
            let name = if faint.len() == 1 { (*first).to_owned() } else { format!("{first} to {last}") };
            entries.push(self.entry(&name, Style::FAINT, Look::Faint));
        }
        let told_apart = self.series.iter().zip(styles).filter(|(series, _)| series.look != Look::Faint);
        entries.extend(told_apart.map(|(series, style)| self.entry(&series.name, *style, series.look)));
        if entries.len() > 1 { entries } else { Vec::new() }
    }

    fn of_look(&self, look: Look) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.look == look)
    }

    fn entry(&self, name: &str, style: Style, look: Look) -> String {
        let (class, mut key) = (style.class(), String::new());
        if matches!(look, Look::Line | Look::MarkedLine | Look::Whole | Look::Faint) {
            let _ = write!(key, "<path class=\"line {class}\"{} d=\"M1 7H33\"/>", style.dash());
        }
        if self.is_marked(look) {
            let _ = write!(key, "<path class=\"mark {class}\" d=\"{}\"/>", mark(style.shape(), 17.0, 7.0));
        }
        if look == Look::Bars {
            let _ = write!(key, "<rect class=\"bar {class}\" x=\"9\" y=\"1\" width=\"16\" height=\"12\"/>");
        }
        // A key without a line needs less width.
        let (left, width) = if key.contains("line") { (0, 34) } else { (8, 18) };
        format!(
            "<svg class=\"key\" width=\"{width}\" height=\"14\" viewBox=\"{left} 0 {width} 14\" aria-hidden=\"true\">{key}</svg>{}",
            escape(name)
        )
    }
}

/// Returns true if all names fit side by side below the area of points.
fn fits(names: &[String], frame: &Frame) -> bool {
    let room = (frame.right - frame.left) / names.len().max(1) as f64;
    names.iter().all(|name| FONT * (width(name) + 0.6) <= room)
}

/// Returns the part of an interval that has a place on an axis, with the value.
fn bounds(axis: &Axis, interval: Option<[f64; 2]>, value: f64) -> Option<[f64; 2]> {
    let [low, high] = interval?;
    (axis.holds(low) && axis.holds(high)).then(|| [low.min(value), high.max(value)])
}

/// Returns what is shown when one points at a mark.
fn title(series: &Series, point: &Point) -> String {
    let name = if point.label.is_empty() { &series.name } else { &point.label };
    format!("{name}: {}, {}", short(point.x), short(point.y))
}

/// A number with four significant digits.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == value.round() && size < 1e6 {
        format!("{value}")
    } else if (1e-3..1e6).contains(&size) {
        let decimals = if size >= 1000.0 {
            0
        } else if size >= 100.0 {
            1
        } else if size >= 1.0 {
            3
        } else {
            4
        };
        format!("{value:.decimals$}")
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::svg::Drawing;

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        values.iter().map(|&(x, y)| Point::new(x, y)).collect()
    }

    /// Parses all elements of a drawing as XML.
    fn parsed(drawing: &Drawing) -> String {
        let all = format!("<all>{}<p>{}</p></all>", drawing.svg, drawing.legend.join("</p><p>"));
        roxmltree::Document::parse(&all).unwrap();
        all
    }

    #[test]
    fn points_lie_where_hand_computed_coordinates_say() {
        let mut chart = Chart::new(Axis::linear("x"), Axis::linear("y"));
        chart.add(Series::line("a", points(&[(0.0, 0.0), (5.0, 0.5), (10.0, 1.0)])));
        // The ticks "0.0" to "1.0" are 2 * 0.62 + 0.4 = 1.64 times 13 wide, with 12 units beside them: left = 33.32.
        // right = 440 - 16 = 424, top = 28, bottom = 248; the middles are (33.32 + 424) / 2 = 228.66 and 138.
        let all = parsed(&chart.draw());
        assert!(all.contains("d=\"M33.3 248L228.7 138L424 28\""), "{all}");
    }

    #[test]
    fn a_logarithmic_axis_places_powers_evenly_and_errors_have_both_ends() {
        let mut chart = Chart::new(Axis::windows(&[2, 4, 8]), Axis::linear("SRP"));
        let point = |m: f64, y| Point::new(m, y).with_y_interval(y - 0.1, y + 0.1);
        chart.add(Series::marked_line("model", [point(2.0, 0.4), point(4.0, 0.5), point(8.0, 0.6)]));
        let frame = chart.frame();
        let [a, b, c] = [2.0, 4.0, 8.0].map(|m| frame.x(m));
        assert!((b - (a + c) / 2.0).abs() < 1e-9);
        // The axis runs from 0.3 to 0.7, so 0.1 is a quarter of the height of 220.
        let all = parsed(&chart.draw());
        let x = number(b);
        assert!(all.contains(&format!("M{x} 193V83")), "{x} {all}");
    }

    #[test]
    fn names_are_escaped_and_values_without_a_place_are_left_out_and_said() {
        let mut chart = Chart::new(Axis::logarithmic("<x>"), Axis::linear("a & b"));
        let name = "<b>&\"\u{1b}\u{0}";
        let values = points(&[(1.0, 1.0), (2.0, f64::NAN), (4.0, 2.0), (0.0, 1.0), (8.0, f64::INFINITY)]);
        chart.add(Series::marked_line(name, values.into_iter().map(|point| point.with_label(name))));
        chart.add(Series::marks("other", []));
        let drawing = chart.draw();
        let all = parsed(&drawing);
        assert!(
            all.contains("&lt;b&gt;&amp;&quot;\\u{1b}\\u{0}") && !all.contains("NaN") && !all.contains("inf"),
            "{all}"
        );
        assert_eq!(drawing.notes, ["Values without a place on the axes, left out: 3."]);
        assert_eq!(all.matches("class=\"mark c0\"").count(), 2 + 1, "two points and the legend");
        // The gap of the missing value.
        assert!(all.contains("class=\"line c0\" d=\"M"), "{all}");
    }

    #[test]
    fn a_chart_without_values_says_so() {
        let all = parsed(&Chart::new(Axis::linear(""), Axis::linear("")).draw());
        assert!(all.contains(">no values</text>"));
    }

    #[test]
    fn bars_start_at_zero() {
        let mut chart = Chart::new(Axis::whole("layer"), Axis::linear("slots"));
        chart.add(Series::bars("slots", points(&[(0.0, 10.0), (1.0, 20.0)])));
        let all = parsed(&chart.draw());
        // From 0 to 20 in 220 units, the bottom at 28 + 220: a bar of 10 is 110 high.
        assert!(all.contains("y=\"138\"") && all.contains("height=\"110\"") && all.contains("height=\"220\""), "{all}");
    }

    #[test]
    fn names_at_axes_have_their_room() {
        let names = ["a router with a very long name", "b"];
        let mut chart = Chart::new(Axis::linear("x"), Axis::categories("", names));
        chart.add(Series::marks("points", points(&[(1.0, 0.0), (2.0, 1.0)])));
        let frame = chart.frame();
        assert!(frame.left > FONT * width(&shortened(names[0], LONGEST)));
        assert_eq!(frame.bottom - frame.top, 2.0 * ROW);
        assert!(frame.y(0.0) < frame.y(1.0), "the first name is on top");
        let mut below = Chart::new(Axis::categories("", names), Axis::linear("y"));
        below.add(Series::marks("points", points(&[(0.0, 1.0), (1.0, 2.0)])));
        assert!(below.names_below(&below.frame()) > 100.0);
        parsed(&below.draw());
    }

    #[test]
    fn faint_lines_share_one_entry_and_named_marks_show_their_names() {
        let mut chart = Chart::new(Axis::linear("x"), Axis::linear("y"));
        (0..3).for_each(|layer| chart.add(Series::faint(&format!("layer {layer}"), points(&[(0.0, 0.0), (1.0, 1.0)]))));
        chart.add(Series::named_marks("models", [Point::new(0.5, 0.5).with_label("olmoe")]));
        let drawing = chart.draw();
        assert_eq!(drawing.legend.len(), 2);
        let all = parsed(&drawing);
        assert!(all.contains("layer 0 to layer 2") && all.contains(">olmoe</text>"), "{all}");
    }
}
