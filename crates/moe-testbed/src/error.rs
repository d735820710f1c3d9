//! What can go wrong between a folder of text and a trained model.

use std::fmt::Display;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = TestbedError> = std::result::Result<T, E>;

/// An error of a corpus, a training run or an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestbedError {
    /// A file or a folder cannot be read or written.
    #[error("{path}: cannot read or write")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A corpus folder has no sub-folder.
    #[error("{path}: no domain, a corpus is a folder with one sub-folder a domain")]
    NoDomain {
        /// The corpus folder.
        path: PathBuf,
    },
    /// A text file is not UTF-8.
    #[error("{path}: not UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the text breaks.
        #[source]
        source: std::str::Utf8Error,
    },
    /// A domain has too little text to set some aside.
    #[error("{path}: {documents} documents, a domain needs at least {min} that are not empty")]
    TooFewDocuments {
        /// The folder of the domain.
        path: PathBuf,
        /// Documents found.
        documents: usize,
        /// Documents needed.
        min: usize,
    },
    /// A domain's training text is shorter than two sequences.
    #[error("domain {domain}: {tokens} training tokens, two sequences need {min}")]
    TooFewTokens {
        /// The domain.
        domain: String,
        /// Tokens found.
        tokens: usize,
        /// Tokens needed.
        min: usize,
    },
    /// A domain is too small beside the others.
    #[error("domain {domain}: {tokens} training tokens, fewer than {least} of the largest domain's {largest}")]
    Unbalanced {
        /// The domain.
        domain: String,
        /// Tokens found.
        tokens: usize,
        /// Tokens of the largest domain.
        largest: usize,
        /// The share of them that is needed.
        least: f64,
    },
    /// A domain's held-out text is too short for the sequences to measure on.
    #[error("domain {domain}: {tokens} held-out tokens, {sequences} sequences need {min}")]
    TooFewHeldOut {
        /// The domain.
        domain: String,
        /// Tokens found.
        tokens: usize,
        /// Sequences asked for.
        sequences: usize,
        /// Tokens needed.
        min: usize,
    },
    /// A TOML file cannot be read as what it should be.
    #[error("{path}: {problem}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// Points of an experiment cannot be run.
    #[error("{path}: {} of {points} points are impossible:{}", impossible.len(), listed(impossible))]
    ImpossiblePoints {
        /// The file of the experiment.
        path: PathBuf,
        /// Number of points.
        points: usize,
        /// Name of each impossible point, and why it is.
        impossible: Vec<(String, String)>,
    },
    /// A run's folder belongs to another run.
    #[error("{path}: {difference}; take another folder, or remove this one")]
    OtherRun {
        /// The configuration of the folder.
        path: PathBuf,
        /// The first field that differs, its value there and in the experiment.
        difference: String,
    },
    /// A folder has no complete run.
    #[error("{path}: no complete run")]
    NoRuns {
        /// The folder.
        path: PathBuf,
    },
    /// A metric failed.
    #[error("metric failed")]
    Metric(#[from] lrc_metrics::MetricError),
    /// The cache simulation failed.
    #[error("cache simulation failed")]
    Cache(#[from] expert_cache::CacheError),
    /// A trace failed.
    #[error("trace failed")]
    Trace(#[from] moe_trace::TraceError),
    /// An option is out of its range.
    #[error("{option} is {value}, allowed are {allowed}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The values that work.
        allowed: String,
    },
    /// No width of the experts gives an architecture the parameters of its baseline.
    #[error(
        "experts of width {width} give {parameters} parameters, the baseline has {baseline}, more than {tolerance} of it apart"
    )]
    Parameters {
        /// The width that comes closest.
        width: usize,
        /// Parameters with it.
        parameters: usize,
        /// Parameters of the baseline.
        baseline: usize,
        /// Largest deviation, as a fraction of the baseline.
        tolerance: f64,
    },
    /// The tokenizer does not know the token in front of a document.
    #[error("the tokenizer has no token {}", crate::text::END_OF_TEXT)]
    NoEndOfText,
    /// The tokenizer cannot be trained, read or applied.
    #[error("tokenizer failed")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The model failed.
    #[error("model failed")]
    Model(#[from] moe_model::ModelError),
    /// The loss or its gradient is no longer a number.
    #[error("loss is {loss} and the gradient's norm {gradient_norm} at step {step}, try a lower learning rate")]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
        /// The norm of its gradient.
        gradient_norm: f64,
    },
    /// The model gives no number for held-out text.
    #[error("domain {domain}: the model needs {bits} bits for the held-out text, its weights are broken")]
    BitsNotFinite {
        /// The domain.
        domain: String,
        /// The bits.
        bits: f64,
    },
    /// A checkpoint file is not well-formed safetensors.
    #[error("{path}: not a readable checkpoint")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A checkpoint lacks something, or has it in another shape.
    #[error("{path}: {entry} is missing or does not fit this run")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The tensor or the metadata.
        entry: String,
    },
    /// A checkpoint belongs to another run.
    #[error("{path}: the checkpoint is of a run whose {name} is {found}, of this run it is {expected}")]
    OtherCheckpoint {
        /// The file.
        path: PathBuf,
        /// The first option, size or count that differs.
        name: String,
        /// Its value in the checkpoint; `null` if it has none.
        found: String,
        /// Its value in this run.
        expected: String,
    },
    /// A checkpoint is not as it was written.
    #[error("{path}: the checkpoint is damaged, it {problem}; begin anew, or from a copy")]
    DamagedCheckpoint {
        /// The file.
        path: PathBuf,
        /// What its digest shows.
        problem: String,
    },
    /// A JSON value cannot be read or written.
    #[error("{path}: not the expected JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: serde_json::Error,
    },
    /// The threads of the workers cannot be started.
    #[error("cannot start the threads of the workers, ask for fewer")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl TestbedError {
    /// Wraps an I/O error with the path it happened at.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> TestbedError {
        let path = path.to_owned();
        move |source| TestbedError::Io { path, source }
    }
}

/// Points and reasons, a line each.
fn listed(points: &[(String, String)]) -> String {
    points.iter().map(|(name, reason)| format!("\n  {name}: {reason}")).collect()
}

/// An error with what caused it, in one line.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Checks an option against a range that is described in words.
pub(crate) fn check(option: &'static str, value: impl Display, ok: bool, allowed: impl Into<String>) -> Result<()> {
    if ok { Ok(()) } else { Err(TestbedError::Option { option, value: value.to_string(), allowed: allowed.into() }) }
}
