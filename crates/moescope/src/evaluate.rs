//! Compares a model with byte n-grams on held-out text.

use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use moe_model::Checkpoint;
use moe_testbed::{ByteNgram, Corpus, DomainBits, TokenizedCorpus, held_out_bits, ngram_bits, read_tokenizer};
use moescope_cli::{Files, HELD_OUT, Table, number, whole, write_json};
use serde::Serialize;

/// Compare a model with byte n-grams on held-out text.
///
/// The n-grams, with Kneser-Ney smoothing, learn from the text that is not held out. With the seed and the share of the
/// training run, that is exactly the text that the model has learned from.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope evaluate models/default corpus --seed 0 --json bits.json")]
pub(crate) struct Arguments {
    /// Folder of the model: config.json, model.safetensors, tokenizer.json
    model: PathBuf,
    /// Folder with one sub-folder of UTF-8 text files a domain
    data: PathBuf,
    /// Seed of the split
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>(0..))]
    seed: u64,
    /// Share of each domain's text that is held out
    #[arg(long, value_name = "N", default_value_t = 0.05, value_parser = number(HELD_OUT))]
    held_out: f64,
    /// Longest n-gram, up to 8 bytes
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole::<usize>(1..=ByteNgram::MAX_ORDER as u64))]
    order: usize,
    /// Tokens that the model reads at most [default: its positions]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(2..))]
    length: Option<usize>,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<usize>(1..=1024))]
    workers: usize,
    /// File that receives the figures
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,
}

/// The figures of a domain, in bits a byte.
#[derive(Serialize)]
struct Row {
    domain: String,
    bytes: usize,
    model: f64,
    /// Order and bits of each n-gram.
    ngrams: Vec<(usize, f64)>,
}

impl Row {
    fn best_ngram(&self) -> f64 {
        self.ngrams.iter().map(|&(_, bits)| bits).fold(f64::INFINITY, f64::min)
    }
}

pub(crate) fn run(options: &Arguments) -> Result<()> {
    let files = Files::new().reads_model(&options.model).reads_tree("the text", &options.data);
    files.writes("--json", &options.json).check()?;
    let checkpoint = Checkpoint::open(&options.model)?;
    let model = checkpoint.load_resident(DType::F32, &Device::Cpu)?;
    let tokenizer = read_tokenizer(&options.model.join("tokenizer.json"))?;
    let corpus = Corpus::read(&options.data, options.held_out, options.seed)?;

    let orders: Vec<usize> = (options.order.saturating_sub(4).max(1)..=options.order).collect();
    let bar = ProgressBar::new(orders.len() as u64 + 1)
        .with_style(ProgressStyle::with_template("{bar:30} {elapsed} gone, {msg}")?);
    bar.set_message("model");
    let length = options.length.unwrap_or(checkpoint.config().params().max_position_embeddings);
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
    let row = |bits: DomainBits| {
        let model = bits.bits_per_byte();
        Row { domain: bits.domain, bytes: bits.bytes, model, ngrams: Vec::new() }
    };
    let model_bits = held_out_bits(&model, &tokens, length, options.workers)?;
    let mut rows: Vec<Row> = model_bits.into_iter().map(row).collect();
    for &order in &orders {
        bar.inc(1);
        bar.set_message(format!("{order}-gram"));
        let ngram = ByteNgram::train(corpus.training(), order)?;
        for (row, bits) in rows.iter_mut().zip(ngram_bits(&ngram, &corpus)) {
            row.ngrams.push((order, bits.bits_per_byte()));
        }
    }
    bar.finish_and_clear();

    moescope_cli::outln!("{}", table(&orders, &rows));
    if let Some(path) = &options.json {
        write_json(path, &rows)?;
    }
    Ok(())
}

fn table(orders: &[usize], rows: &[Row]) -> Table {
    let mut header = vec!["domain".to_owned(), "held-out bytes".to_owned(), "model".to_owned()];
    header.extend(orders.iter().map(|order| format!("{order}-gram")));
    header.push("model / best n-gram".to_owned());
    let mut table = Table::new(header);
    for row in rows {
        let mut cells = vec![row.domain.clone(), row.bytes.to_string(), format!("{:.3}", row.model)];
        cells.extend(row.ngrams.iter().map(|(_, bits)| format!("{bits:.3}")));
        cells.push(format!("{:.3}", row.model / row.best_ngram()));
        table.add_row(cells);
    }
    table.align_right();
    table
}
