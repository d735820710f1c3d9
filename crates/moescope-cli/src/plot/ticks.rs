//! Ticks of axes at round numbers.

/// A round number, and the multiple of ten that it steps by.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

/// Returns the smallest step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most` parts.
pub(super) fn step(span: f64, most: f64) -> f64 {
    let least = span / most;
    let power = 10f64.powf(least.log10().floor());
    // Rounding may place the power one too high or too low; 10 is the 1 of the next power.
    let found =
        STEPS.into_iter().chain([10.0, 20.0]).map(|step| step * power).find(|&step| step >= least * (1.0 - 1e-9));
    found.unwrap_or(least)
}

/// Returns the multiples of `step` from `low` to `high`.
pub(super) fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    let mut found = Vec::new();
    let mut at = first;
    while at <= last && found.len() < 100 {
        found.push(at * step);
        at += 1.0;
    }
    found
}

/// Returns the numbers of 1, 2 and 5 times a power of ten from `low` to `high`, both positive. If they are many, powers
/// of ten alone.
pub(super) fn logarithmic(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor(), high.log10().ceil());
    let steps: &[f64] = if last - first <= 4.0 { &STEPS } else { &STEPS[..1] };
    let every = ((last - first) / 8.0).ceil().max(1.0);
    let mut found = Vec::new();
    let mut power = first;
    while power <= last {
        found.extend(steps.iter().map(|step| step * 10f64.powf(power)));
        power += every;
    }
    found.retain(|tick| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(tick));
    found
}

/// Returns a tick's text, with the decimals that tell ticks `step` apart.
pub(super) fn text(value: f64, step: f64) -> String {
    let size = value.abs().max(step);
    if !(1e-4..1e6).contains(&size) {
        return format!("{:e}", rounded(value)).replace('-', "\u{2212}");
    }
    let decimals = (0..9).find(|&decimals| {
        let scaled = step * 10f64.powi(decimals);
        (scaled - scaled.round()).abs() < 1e-6 * scaled
    });
    let decimals = usize::try_from(decimals.unwrap_or(9)).unwrap_or(0);
    format!("{:.decimals$}", value + 0.0).replace('-', "\u{2212}")
}

/// Returns a number with at most six significant digits.
pub(super) fn short(value: f64) -> String {
    let rounded = rounded(value);
    if value == 0.0 || (1e-4..1e9).contains(&value.abs()) { format!("{rounded}") } else { format!("{rounded:e}") }
}

/// Returns the value with six significant digits, without what adding up steps left in the last digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!(step(1.0, 5.0), 0.2);
        assert_eq!(step(10.0, 5.0), 2.0);
        assert_eq!(step(31.0, 6.0), 10.0);
        assert_eq!(step(1000.0, 10.0), 100.0);
        for exponent in -90..90 {
            let span = 3.0 * 10f64.powi(exponent);
            let parts = span / step(span, 6.0);
            assert!((2.0..6.001).contains(&parts), "{exponent}: {parts}");
        }
    }

    #[test]
    fn short_numbers_have_six_digits() {
        assert_eq!([0.0, 20320.0, 0.123_456_78, -2e-7].map(short), ["0", "20320", "0.123457", "-2e-7"]);
    }

    #[test]
    fn ticks_are_the_multiples_inside() {
        assert_eq!(multiples(0.0, 1.0, 0.5), [0.0, 0.5, 1.0]);
        assert_eq!(multiples(-3.0, 3.0, 2.0), [-2.0, 0.0, 2.0]);
        assert_eq!(logarithmic(3.0, 60.0), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!(logarithmic(1.0, 1e5), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]);
        assert!(logarithmic(1e-99, 1e99).len() < 20);
    }

    #[test]
    fn texts_have_the_decimals_of_the_step() {
        assert_eq!(text(0.6000000000000001, 0.2), "0.6");
        assert_eq!(text(-20.0, 10.0), "\u{2212}20");
        assert_eq!(text(0.25, 0.25), "0.25");
        assert_eq!(text(0.0, 0.05), "0.00");
        assert_eq!(text(3e7, 1e7), "3e7");
        assert_eq!(text(2.0000000000000004e-6, 1e-6), "2e\u{2212}6");
    }
}
