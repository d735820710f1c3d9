//! The legend of a chart as HTML, so that long names wrap.

use std::fmt::Write;

use super::marks::mark;
use super::palette::{LINES, Style};
use super::series::{Look, Series};
use super::svg::escape;

/// Returns true if a series has marks. Lines beyond the dash patterns are told apart by marks.
pub(super) fn is_marked(look: Look, lines: usize) -> bool {
    match look {
        Look::Line => lines > LINES,
        Look::MarkedLine | Look::Marks | Look::NamedMarks | Look::Whole => true,
        Look::Bars | Look::Faint => false,
    }
}

/// Returns an entry for each series; one for all faint ones. A single series has none.
pub(super) fn legend(series: &[Series], styles: &[Style]) -> Vec<String> {
    let is_faint = |series: &&Series| series.look == Look::Faint;
    let faint: Vec<&str> = series.iter().filter(is_faint).map(|series| series.name.as_str()).collect();
    let mut entries = Vec::new();
    match faint[..] {
        [] => {}
        [only] => entries.push(entry(only, Style::FAINT, Look::Faint, false)),
        [first, .., last] => entries.push(entry(&format!("{first} to {last}"), Style::FAINT, Look::Faint, false)),
    }
    let told_apart = series.iter().zip(styles).filter(|(series, _)| !is_faint(series));
    entries
        .extend(told_apart.map(|(one, style)| entry(&one.name, *style, one.look, is_marked(one.look, series.len()))));
    if entries.len() > 1 { entries } else { Vec::new() }
}

fn entry(name: &str, style: Style, look: Look, is_marked: bool) -> String {
    let (class, mut key) = (style.class(), String::new());
    let is_line = matches!(look, Look::Line | Look::MarkedLine | Look::Whole | Look::Faint);
    if is_line {
        // Writing to a string cannot fail, here and below.
        let _ = write!(key, "<path class=\"line {class}\"{} d=\"M1 7H33\"/>", style.dash());
    }
    if is_marked {
        let _ = write!(key, "<path class=\"mark {class}\" d=\"{}\"/>", mark(style.shape(), 17.0, 7.0));
    }
    if look == Look::Bars {
        let _ = write!(key, "<rect class=\"bar {class}\" x=\"9\" y=\"1\" width=\"16\" height=\"12\"/>");
    }
    // A mark alone needs less width.
    let (left, width) = if is_line { (0, 34) } else { (8, 18) };
    format!(
        "<svg class=\"key\" width=\"{width}\" height=\"14\" viewBox=\"{left} 0 {width} 14\" aria-hidden=\"true\">{key}</svg>{}",
        escape(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faint_lines_share_one_entry_and_a_single_series_has_none() {
        let mut series: Vec<Series> = (0..3).map(|layer| Series::faint(&format!("layer {layer}"), [])).collect();
        series.push(Series::marks("<models>", []));
        let styles = [Style::FAINT, Style::FAINT, Style::FAINT, Style::numbered(0)];
        let entries = legend(&series, &styles);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].ends_with("layer 0 to layer 2") && entries[1].ends_with("&lt;models&gt;"), "{entries:?}");
        assert!(legend(&series[3..], &styles[3..]).is_empty());
    }

    #[test]
    fn many_lines_have_marks() {
        assert!(!is_marked(Look::Line, LINES) && is_marked(Look::Line, LINES + 1));
    }
}
