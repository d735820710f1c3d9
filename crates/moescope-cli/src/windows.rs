//! Window lengths that suit a trace.

use moe_trace::RoutingSource;

/// The given window lengths that fit into the longest sequence; 1 if none does. Says what was left out.
///
/// # Errors
/// What reading the trace finds.
pub fn fitting_windows(trace: &dyn RoutingSource, windows: &[usize]) -> moe_trace::Result<Vec<usize>> {
    let mut longest = 0;
    for index in 0..trace.len() {
        longest = longest.max(trace.sequence_len(index)?);
    }
    let mut fitting: Vec<usize> = windows.iter().copied().filter(|&window| window <= longest).collect();
    if fitting.len() < windows.len() {
        crate::outln!("windows above {longest} tokens, the longest sequence, are left out");
    }
    if fitting.is_empty() {
        fitting.push(1);
    }
    Ok(fitting)
}
