//! The learning rate of a step.

use std::f64::consts::PI;

/// Linear warm-up, then half a cosine down to a floor.
///
/// ```
/// use moe_testbed::Schedule;
/// let schedule = Schedule { peak: 1.0, warm_up: 10, steps: 110, floor: 0.1 };
/// assert_eq!((schedule.rate(0), schedule.rate(9), schedule.rate(10)), (0.1, 1.0, 1.0));
/// assert!((schedule.rate(60) - 0.55).abs() < 1e-12);
/// assert_eq!(schedule.rate(110), 0.1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Steps until it is reached.
    pub warm_up: u64,
    /// Steps until the floor is reached.
    pub steps: u64,
    /// The last learning rate, as a fraction of the highest.
    pub floor: f64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.peak * (step + 1) as f64 / self.warm_up as f64;
        }
        let cosine_steps = self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let done = ((step - self.warm_up) as f64 / cosine_steps).min(1.0);
        self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * done).cos()))
    }
}
