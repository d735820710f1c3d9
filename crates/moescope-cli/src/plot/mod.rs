//! Charts and heat maps as inline SVG.
//!
//! A drawing needs no script. Its colours are variables of the style sheet of [`Page`](crate::Page), so that one drawing
//! serves a light and a dark page.

mod axis;
mod chart;
mod frame;
mod heat_map;
mod labels;
mod legend;
mod marks;
mod palette;
mod series;
mod svg;
mod ticks;
mod token_map;

pub use axis::Axis;
pub use chart::Chart;
pub use heat_map::HeatMap;
pub use series::{Point, Series};
pub use svg::{Drawing, escape, visible};
pub use token_map::{TokenMap, Weight};
