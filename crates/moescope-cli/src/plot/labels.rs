//! Places for the names of points, so that no text lies on another one.

use super::svg::{Anchor, FONT, width};

/// The boxes of a drawing that are taken, each as left, top, right and bottom.
pub(super) struct Labels {
    bounds: [f64; 4],
    taken: Vec<[f64; 4]>,
}

impl Labels {
    pub(super) fn new(bounds: [f64; 4]) -> Labels {
        Labels { bounds, taken: Vec::new() }
    }

    /// Takes the box of a mark.
    pub(super) fn take_mark(&mut self, x: f64, y: f64, radius: f64) {
        self.taken.push([x - radius, y - radius, x + radius, y + radius]);
    }

    /// Takes a place beside a mark: right, left, above or below. Returns the start of the baseline and the side that it
    /// gives; `None` if there is no room.
    pub(super) fn place(&mut self, x: f64, y: f64, text: &str) -> Option<(f64, f64, Anchor)> {
        let (wide, gap) = (width(text) * FONT, 7.0);
        let (up, down) = (0.8 * FONT, 0.25 * FONT);
        let places = [
            (x + gap, y + (up - down) / 2.0, Anchor::Start),
            (x - gap, y + (up - down) / 2.0, Anchor::End),
            (x, y - gap - down, Anchor::Middle),
            (x, y + gap + up, Anchor::Middle),
        ];
        places.into_iter().find(|&(x, y, anchor)| {
            let left = match anchor {
                Anchor::Start => x,
                Anchor::Middle => x - wide / 2.0,
                Anchor::End => x - wide,
            };
            let area = [left, y - up, left + wide, y + down];
            let [bound_left, bound_top, bound_right, bound_bottom] = self.bounds;
            let inside =
                area[0] >= bound_left && area[1] >= bound_top && area[2] <= bound_right && area[3] <= bound_bottom;
            let is_free = inside && !self.taken.iter().any(|&other| overlap(area, other));
            if is_free {
                self.taken.push(area);
            }
            is_free
        })
    }
}

fn overlap(a: [f64; 4], b: [f64; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_room_is_refused_and_none_overlap() {
        let mut labels = Labels::new([0.0, 0.0, 100.0, 100.0]);
        labels.take_mark(50.0, 50.0, 3.0);
        // Four places beside one point, and no fifth one.
        let places: Vec<_> = (0..5).map(|_| labels.place(50.0, 50.0, "name").is_some()).collect();
        assert_eq!(places, [true, true, true, true, false]);
        for (at, &a) in labels.taken.iter().enumerate() {
            assert!(labels.taken[..at].iter().all(|&b| !overlap(a, b)));
        }
        // At the right edge the text lies left of its point.
        assert!(matches!(labels.place(98.0, 10.0, "name"), Some((_, _, Anchor::End))));
    }
}
