//! What an experiment will take, from what its first steps took.

use std::time::Duration;

use indicatif::HumanDuration;
use moe_testbed::{Progress, RunConfig, training_bytes};

/// Steps of a run that say how fast the rest will be; the first one also warms caches up.
pub(crate) const FIRST_STEPS: u64 = 6;

/// Multiplications of a run, as far as they go with weights; what of the time they leave out is about the same share of
/// every run.
pub(crate) fn work(run: &RunConfig) -> anyhow::Result<f64> {
    let tokens = run.training.steps as f64 * (run.training.batch * run.training.length) as f64;
    Ok(tokens * weights_a_token(run)?)
}

/// Weights that act on a token.
fn weights_a_token(run: &RunConfig) -> anyhow::Result<f64> {
    let config = run.config()?;
    let (params, shape) = (config.params(), config.expert_shape());
    let expert = 3 * shape.hidden * shape.intermediate;
    let idle = shape.layers * (shape.experts - params.num_experts_per_tok) * expert;
    // The output projection is computed, the embedding is looked up.
    let looked_up = if params.tie_word_embeddings { 0 } else { params.vocab_size * params.hidden_size };
    Ok((config.parameters() - idle - looked_up) as f64)
}

/// An estimate of the bytes that the largest `jobs` of some runs take together.
pub(crate) fn bytes(runs: &[RunConfig], jobs: usize, workers: usize) -> anyhow::Result<u64> {
    let each = |run: &RunConfig| Ok(training_bytes(&run.config()?, &run.training, workers) as u64);
    let mut bytes: Vec<u64> = runs.iter().map(each).collect::<anyhow::Result<_>>()?;
    bytes.sort_unstable();
    Ok(bytes.iter().rev().take(jobs).sum())
}

/// Says how long work will take of which some took some time.
pub(crate) fn sentence(left: f64, done: f64, took: Duration, jobs: usize, peak: Option<u64>) -> String {
    let seconds = (took.as_secs_f64() * left / done / jobs as f64).min(1e9);
    let memory = peak.map_or(String::new(), |bytes| format!(", {} MiB in use so far", bytes >> 20));
    format!(
        "about {} by {jobs} jobs at the speed of the first steps{memory}",
        HumanDuration(Duration::from_secs_f64(seconds))
    )
}

/// A line for a progress bar; purity is that of held-out text as soon as some was read.
pub(crate) fn status(progress: &Progress, smoothed_loss: f64, held_out_purity: Option<f64>) -> String {
    let purity = held_out_purity.unwrap_or(progress.purity);
    format!("loss {smoothed_loss:.3}, balance {:.2}, purity {purity:.3}", progress.balance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_scales_with_what_is_left() {
        let text = sentence(10_800.0, 1.0, Duration::from_secs(2), 2, Some(5 << 20));
        assert_eq!(text, "about 3 hours by 2 jobs at the speed of the first steps, 5 MiB in use so far");
    }
}
