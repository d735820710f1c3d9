//! The time of one pass through a model.

use moe_trace::Phase;

/// One pass through the model as it was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Phase of its tokens.
    pub phase: Phase,
    /// Tokens served.
    pub tokens: u64,
    /// Seconds in which the device computed.
    pub compute_seconds: f64,
    /// Seconds in which the device waited for copies.
    pub exposed_seconds: f64,
    /// Seconds in which the device waited for the host alone.
    pub host_seconds: f64,
    /// Seconds of copies for which the device did not wait.
    pub hidden_seconds: f64,
}

impl Pass {
    pub(super) fn new(phase: Phase, tokens: u64) -> Pass {
        Pass { phase, tokens, compute_seconds: 0.0, exposed_seconds: 0.0, host_seconds: 0.0, hidden_seconds: 0.0 }
    }

    /// Seconds from the first layer's start to the last layer's end.
    pub fn seconds(&self) -> f64 {
        self.compute_seconds + self.exposed_seconds + self.host_seconds
    }
}
