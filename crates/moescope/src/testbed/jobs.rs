//! Runs, several at once.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use moe_testbed::{Prepared, RunEvent, RunFigures, RunFolder};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{forecast, machine};

/// Work of the whole, in units of the progress bar.
const UNITS: f64 = 1e6;

/// Runs that share a queue.
pub(crate) struct Jobs<'a> {
    runs: &'a [(RunFolder, f64)],
    prepared: &'a Prepared,
    device: &'a Device,
    workers: usize,
    bars: MultiProgress,
    overall: ProgressBar,
    total: f64,
    /// A pool of one thread for each job, so that none waits for another.
    jobs: Vec<ThreadPool>,
    next: AtomicUsize,
    foretold: AtomicBool,
    failed: Mutex<Vec<(usize, String)>>,
}

impl<'a> Jobs<'a> {
    /// Queues runs, each with its work.
    pub(crate) fn new(
        runs: &'a [(RunFolder, f64)],
        prepared: &'a Prepared,
        device: &'a Device,
        jobs: usize,
        workers: usize,
    ) -> Result<Jobs<'a>> {
        let bars = MultiProgress::new();
        let style = ProgressStyle::with_template("{bar:40} {msg}, {elapsed} gone, {eta} left")?;
        let overall = bars.add(ProgressBar::new(whole(UNITS)).with_style(style));
        overall.set_message(format!("0/{} runs", runs.len()));
        Ok(Jobs {
            runs,
            prepared,
            device,
            workers,
            bars,
            overall,
            total: runs.iter().map(|(_, work)| work).sum(),
            jobs: (0..jobs.min(runs.len()))
                .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
                .collect::<Result<_, _>>()?,
            next: AtomicUsize::new(0),
            foretold: AtomicBool::new(false),
            failed: Mutex::new(Vec::new()),
        })
    }

    /// Works the queue off; returns what went wrong, run by run.
    pub(crate) fn run(self) -> Vec<String> {
        thread::scope(|scope| {
            for pool in &self.jobs {
                scope.spawn(|| pool.install(|| self.work()));
            }
        });
        self.overall.finish_and_clear();
        let mut failed = self.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.sort();
        failed.into_iter().map(|(_, problem)| problem).collect()
    }

    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((run, work)) = self.runs.get(number) else { return };
            let name = run.config().folder().display().to_string();
            let started = Instant::now();
            let line = match self.one(run, *work, &name) {
                Ok(figures) => done(&name, &figures, started.elapsed()),
                Err(error) => {
                    let problem = format!("{name}: {error:#}");
                    let mut failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failed.push((number, problem.clone()));
                    problem
                }
            };
            self.bars.suspend(|| moescope_cli::outln!("{line}"));
            self.overall.set_message(format!(
                "{}/{} runs begun",
                self.next.load(Ordering::Relaxed).min(self.runs.len()),
                self.runs.len()
            ));
        }
    }

    fn one(&self, run: &RunFolder, work: f64, name: &str) -> Result<RunFigures> {
        let steps = run.config().training.steps;
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}")?;
        let bar = self.bars.insert_from_back(1, ProgressBar::new(steps).with_style(style));
        bar.set_message(name.to_owned());
        let (mut loss, mut purity, mut first) = (None, None, None);
        let (each, mut share) = (work / steps as f64, 0.0);
        let figures = run.run(self.prepared, self.device, self.workers, |event| {
            match event {
                RunEvent::Step(progress) => {
                    // A running mean over some 20 steps.
                    let mean = loss.map_or(progress.loss, |mean: f64| 0.95 * mean + 0.05 * progress.loss);
                    loss = Some(mean);
                    bar.set_position(progress.step);
                    bar.set_message(format!("{name}: {}", forecast::status(progress, mean, purity)));
                    share += UNITS * each / self.total;
                    self.overall.inc(whole(share));
                    share = share.fract();
                    let &mut (began, at) = first.get_or_insert((Instant::now(), progress.step));
                    if progress.step - at == forecast::FIRST_STEPS - 1 {
                        self.foretell(each * (progress.step - at) as f64, began.elapsed());
                    }
                }
                RunEvent::Validated(record) => purity = Some(record.purity),
            }
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        Ok(figures?.expect("nothing breaks the run off"))
    }

    /// Says, once, how long all will take.
    fn foretell(&self, done: f64, took: Duration) {
        if !self.foretold.swap(true, Ordering::Relaxed) {
            let text = forecast::sentence(self.total, done, took, self.jobs.len(), machine::peak_bytes());
            self.bars.suspend(|| moescope_cli::outln!("{} runs: {text}", self.runs.len()));
        }
    }
}

fn done(name: &str, figures: &RunFigures, took: Duration) -> String {
    let agreement = figures.agreement.router;
    format!(
        "{name}: {:.1} s; validation loss {:.4}, purity {:.3}, NMI {:.3}, {:.1} tokens/s predicted",
        took.as_secs_f64(),
        figures.validation_loss,
        agreement.purity,
        agreement.nmi,
        figures.speed.tokens_per_second
    )
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares of the units of a bar")]
fn whole(units: f64) -> u64 {
    units as u64
}
