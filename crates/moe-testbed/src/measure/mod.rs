//! Measurements of a trained model: bits per byte, router choices on held-out text, predicted speed.

mod evaluate;
mod held_out;
mod matched_experts;
mod ngram;
mod options;
mod predicted_speed;
mod shuffled;

pub use evaluate::{DomainBits, held_out_bits, ngram_bits};
pub use held_out::{HeldOut, Reading};
pub use ngram::ByteNgram;
pub use options::{Machine, MeasureOptions, SpeedOptions};
pub use predicted_speed::{PredictedSpeed, SpeedPlan};

pub(crate) use matched_experts::matched_experts;
pub(crate) use shuffled::shuffled_tokens;
