//! What a bank does while it runs, on a terminal.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use moe_offload::{LayerCounters, OffloadedExperts};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// A bar over runs with a line for what the running one does.
pub(crate) fn live_bar(runs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left\n{prefix}\n{msg}");
    let bar = ProgressBar::new(runs as u64);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Tells what goes on before the first run that counts.
pub(crate) fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(INTERVAL);
    spinner
}

/// Shows what a bank does during `run`; without a terminal it only runs.
pub(crate) fn watched<T>(bar: &ProgressBar, name: &str, bank: &OffloadedExperts, run: impl FnOnce() -> T) -> T {
    if bar.is_hidden() {
        return run();
    }
    bar.set_prefix(name.to_owned());
    let (running, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut last = (Instant::now(), Seen::default());
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Ok(counters) = bank.counters() else { return };
                let now = (Instant::now(), Seen::of(&counters));
                bar.set_message(now.1.since(&last.1, now.0 - last.0));
                last = now;
            }
        });
        let outcome = run();
        drop(running);
        outcome
    })
}

/// What is shown of the counters of a bank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    /// Passes of decoded tokens through the first layer.
    passes: u64,
    hits: u64,
    accesses: u64,
    bytes: u64,
    stall_seconds: f64,
}

impl Seen {
    fn of(counters: &[LayerCounters]) -> Seen {
        let mut all = LayerCounters::default();
        counters.iter().for_each(|layer| all.merge(layer));
        let total = all.total();
        Seen {
            passes: counters.first().map_or(0, |layer| layer.decode.counts.requests),
            hits: total.counts.hits,
            accesses: total.counts.accesses(),
            bytes: total.loaded_bytes + all.prefetch.loaded_bytes,
            stall_seconds: total.stall_seconds,
        }
    }

    /// What happened between two looks.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for the eye"
    )]
    fn since(&self, before: &Seen, time: Duration) -> String {
        let seconds = time.as_secs_f64();
        let accesses = (self.accesses - before.accesses).max(1);
        format!(
            "{:.1} tokens/s, {:.1} % hits, {}/s loaded, {:.0} % stalled",
            (self.passes - before.passes) as f64 / seconds,
            100.0 * (self.hits - before.hits) as f64 / accesses as f64,
            HumanBytes(((self.bytes - before.bytes) as f64 / seconds) as u64),
            100.0 * (self.stall_seconds - before.stall_seconds) / seconds,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_happened_between_two_looks() {
        let mut layer = LayerCounters::default();
        (layer.decode.counts.requests, layer.decode.counts.hits, layer.decode.counts.loads) = (10, 30, 10);
        let before = Seen::of(&[layer, layer]);
        (layer.decode.counts.requests, layer.decode.counts.hits, layer.decode.counts.loads) = (16, 39, 15);
        (layer.decode.loaded_bytes, layer.prefetch.loaded_bytes, layer.decode.stall_seconds) = (3 << 20, 1 << 20, 0.25);
        let line = Seen::of(&[layer, layer]).since(&before, Duration::from_secs(2));
        assert_eq!(line, "3.0 tokens/s, 64.3 % hits, 4.00 MiB/s loaded, 25 % stalled");
    }
}
