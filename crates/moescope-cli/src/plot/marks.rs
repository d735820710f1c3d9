//! The shapes of marks.

use super::svg::number;

/// Half the side of a mark.
pub(super) const RADIUS: f64 = 3.2;

/// Returns the path of a mark around a point.
pub(super) fn mark(shape: usize, x: f64, y: f64) -> String {
    let r = RADIUS;
    let corners: &[(f64, f64)] = match shape {
        1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        4 => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
        5 => return strokes(x, y, [[-1.0, -1.0, 2.0, 2.0], [-1.0, 1.0, 2.0, -2.0]]),
        6 => return strokes(x, y, [[-1.2, 0.0, 2.4, 0.0], [0.0, -1.2, 0.0, 2.4]]),
        _ => {
            let (left, r, wide) = (number(x - r), number(r), number(2.0 * r));
            return format!("M{left} {}a{r} {r} 0 1 0 {wide} 0a{r} {r} 0 1 0 -{wide} 0z", number(y));
        }
    };
    let corners: Vec<String> =
        corners.iter().map(|(dx, dy)| format!("{} {}", number(x + dx * r), number(y + dy * r))).collect();
    format!("M{}z", corners.join("L"))
}

/// Two lines, each of a start and a way.
fn strokes(x: f64, y: f64, lines: [[f64; 4]; 2]) -> String {
    let line = |[dx, dy, w, h]: [f64; 4]| {
        let [dx, dy, w, h] = [dx, dy, w, h].map(|value| value * RADIUS);
        format!("M{} {}l{} {}", number(x + dx), number(y + dy), number(w), number(h))
    };
    lines.map(line).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_lie_around_their_point() {
        assert_eq!(mark(0, 10.0, 20.0), "M6.8 20a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z");
        assert_eq!(mark(1, 10.0, 20.0), "M7.1 17.1L12.9 17.1L12.9 22.9L7.1 22.9z");
        assert_eq!(mark(6, 10.0, 20.0), "M6.2 20l7.7 0M10 16.2l0 7.7");
        let shapes: std::collections::HashSet<_> = (0..7).map(|shape| mark(shape, 0.0, 0.0)).collect();
        assert_eq!(shapes.len(), 7);
    }
}
