//! Charts of lines, marks and bars over two axes.

use std::fmt::Write;

use super::axis::Axis;
use super::frame::{Frame, LONGEST, WIDTH};
use super::labels::Labels;
use super::legend::{is_marked, legend};
use super::marks::{RADIUS, mark};
use super::palette::Style;
use super::series::{Look, Point, Series};
use super::svg::{Anchor, Drawing, Svg, number, shortened};
use super::ticks;

/// Points of a series that get a mark and a title each; of more points, each gets a dot.
const TITLES: usize = 400;

/// A chart under construction.
#[derive(Clone, Debug)]
pub struct Chart {
    x: Axis,
    y: Axis,
    series: Vec<Series>,
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
        let mut svg = Svg::new(WIDTH, frame.height());
        frame.draw(&mut svg);
        let mut labels = Labels::new(frame.bounds());
        let styles = self.styles();
        for (series, style) in self.series.iter().zip(&styles) {
            self.series(series, *style, &frame, &mut svg);
            if is_marked(series.look, self.series.len()) {
                let points = series.points.iter().filter(|point| self.holds(point));
                points.for_each(|point| labels.take_mark(frame.x(point.x), frame.y(point.y), RADIUS));
            }
        }
        if self.points().next().is_none() {
            let (x, y) = frame.middle();
            svg.text(x, y, Anchor::Middle, "no values");
        }
        let unnamed = self.names(&frame, &mut labels, &mut svg);
        if unnamed > 0 {
            notes.push(format!("Names without room, shown when one points at a mark: {unnamed}."));
        }
        Drawing { svg: svg.finish("class=\"chart\""), legend: legend(&self.series, &styles), notes, is_wide: false }
    }

    fn holds(&self, point: &Point) -> bool {
        self.x.holds(point.x) && self.y.holds(point.y)
    }

    /// Returns all points that have a place on the axes.
    fn points(&self) -> impl Iterator<Item = &Point> + Clone {
        self.series.iter().flat_map(|series| &series.points).filter(|point| self.holds(point))
    }

    fn frame(&self) -> Frame<'_> {
        let has_bars = self.series.iter().any(|series| series.look == Look::Bars);
        Frame::new([&self.x, &self.y], self.points(), has_bars)
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

    fn series(&self, series: &Series, style: Style, frame: &Frame<'_>, svg: &mut Svg) {
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
        if is_marked(series.look, self.series.len()) {
            let mark = |point: &Point| mark(style.shape(), frame.x(point.x), frame.y(point.y));
            let attributes = format!("class=\"mark {class}\"");
            if series.points.len() <= TITLES {
                points().for_each(|point| svg.path(&attributes, &mark(point), &title(series, point)));
            } else {
                // Lines of no length with round ends take few bytes.
                let dot = |point: &Point| format!("M{} {}h0", number(frame.x(point.x)), number(frame.y(point.y)));
                svg.path(&format!("class=\"dots {class}\""), &points().map(dot).collect::<String>(), &series.name);
            }
        }
    }

    /// Draws the names of points. Returns how many have no room.
    fn names(&self, frame: &Frame<'_>, labels: &mut Labels, svg: &mut Svg) -> usize {
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
}

/// Returns the part of an interval that has a place on an axis, with the value.
fn bounds(axis: &Axis, interval: Option<[f64; 2]>, value: f64) -> Option<[f64; 2]> {
    let [low, high] = interval?;
    (axis.holds(low) && axis.holds(high)).then(|| [low.min(value), high.max(value)])
}

/// Returns what is shown when one points at a mark.
fn title(series: &Series, point: &Point) -> String {
    let name = if point.label.is_empty() { &series.name } else { &point.label };
    format!("{name}: {}, {}", ticks::short(point.x), ticks::short(point.y))
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
        // right = 440 - 16 = 424, top = 28, bottom = 248. The axis below runs from -0.2 to 10.2: 0 lies at
        // 33.32 + 0.2 / 10.4 * 390.68 = 40.83, the middle at (33.32 + 424) / 2 = 228.66.
        let all = parsed(&chart.draw());
        assert!(all.contains("d=\"M40.8 248L228.7 138L416.5 28\""), "{all}");
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
    fn many_points_take_few_bytes() {
        let mut chart = Chart::new(Axis::linear("x"), Axis::linear("y"));
        chart.add(Series::marks("experts", (0..10_000).map(|at| Point::new(f64::from(at), f64::from(at % 7)))));
        let all = parsed(&chart.draw());
        assert_eq!((all.matches("h0").count(), all.len() < 200_000), (10_000, true));
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
    fn named_marks_show_their_names() {
        let mut chart = Chart::new(Axis::linear("x"), Axis::linear("y"));
        (0..3).for_each(|layer| chart.add(Series::faint(&format!("layer {layer}"), points(&[(0.0, 0.0), (1.0, 1.0)]))));
        chart.add(Series::named_marks("models", [Point::new(0.5, 0.5).with_label("olmoe")]));
        let drawing = chart.draw();
        assert_eq!(drawing.legend.len(), 2);
        let all = parsed(&drawing);
        assert!(all.contains("layer 0 to layer 2") && all.contains(">olmoe</text>"), "{all}");
    }
}
