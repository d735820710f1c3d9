//! `moescope trace info`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use moe_trace::{MoeLayer, Phase, RoutingSource};
use moescope_cli::{Files, Provenance, Reported, progress_bar, table, write_json};
use serde::Serialize;

use super::input::{Foreign, open};

/// Show the contents of a trace: geometry, columns, sequences, phases, domains.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace info trace.safetensors --json info.json")]
pub(crate) struct Arguments {
    /// Trace to look at.
    input: PathBuf,
    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,
    #[command(flatten)]
    foreign: Foreign,
}

/// What a trace has.
#[derive(Serialize)]
struct Info {
    model: Option<String>,
    layers: Vec<MoeLayer>,
    experts: usize,
    top_k: usize,
    sequences: usize,
    tokens: usize,
    prefill_tokens: usize,
    decode_tokens: usize,
    shortest_sequence: usize,
    longest_sequence: usize,
    /// Share of slots without an expert.
    empty_slots: f64,
    /// Sequences that have each optional column.
    columns: Vec<(&'static str, usize)>,
    /// Sequences and tokens of each domain.
    domains: Vec<(String, usize, usize)>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let files =
        Files::new().reads_trace(&arguments.input).reads_all("the file of --config", arguments.foreign.config());
    files.writes("--json", &arguments.json).check()?;
    let source = open(&arguments.input, &arguments.foreign)?;
    let info = look(source.as_ref())?;
    let mut facts = table(["", ""]);
    let mut row = |name: &str, value: String| {
        facts.add_row([name.to_owned(), value]);
    };
    row("model", info.model.clone().unwrap_or_else(|| "unnamed".to_owned()));
    row("MoE layers x experts, top-k", format!("{} x {}, top-{}", info.layers.len(), info.experts, info.top_k));
    let numbers: Vec<String> = info.layers.iter().map(|layer| layer.model_layer.to_string()).collect();
    row("layers of the model", numbers.join(" "));
    row("sequences", format!("{} of {} to {} tokens", info.sequences, info.shortest_sequence, info.longest_sequence));
    row("tokens", format!("{}: {} prefill, {} decode", info.tokens, info.prefill_tokens, info.decode_tokens));
    row("empty slots", format!("{:.3} %", 100.0 * info.empty_slots));
    for (column, sequences) in &info.columns {
        row(column, format!("{sequences} sequences"));
    }
    moescope_cli::outln!("{facts}");
    if !info.domains.is_empty() {
        let mut domains = table(["domain", "sequences", "tokens"]);
        for (name, sequences, tokens) in &info.domains {
            domains.add_row([name.clone(), sequences.to_string(), tokens.to_string()]);
        }
        moescope_cli::outln!("\n{domains}");
    }
    let import_warnings = source.import_report();
    if !import_warnings.is_empty() {
        let mut warnings = table(["import warning", "seen", "to say otherwise"]);
        for warning in import_warnings.warnings() {
            let place = [&warning.file, &warning.place].into_iter().flatten().cloned().collect::<Vec<_>>().join(", ");
            let seen = format!("{place}: {} ({} times)", warning.seen, warning.count);
            warnings.add_row([warning.kind.to_string(), seen, warning.remedy.clone()]);
        }
        moescope_cli::outln!("\n{warnings}");
    }
    if let Some(path) = &arguments.json {
        write_json(path, &Reported { report: &info, provenance: &Provenance::of(source.as_ref()) })?;
    }
    Ok(())
}

fn look(source: &dyn RoutingSource) -> Result<Info> {
    let geometry = source.geometry();
    let mut info = Info {
        model: source.model().map(str::to_owned),
        layers: geometry.moe_layers().to_vec(),
        experts: geometry.experts(),
        top_k: geometry.top_k(),
        sequences: source.len(),
        tokens: 0,
        prefill_tokens: 0,
        decode_tokens: 0,
        shortest_sequence: usize::MAX,
        longest_sequence: 0,
        empty_slots: 0.0,
        columns: ["weights", "logits", "token ids", "predictions", "text"].map(|column| (column, 0)).to_vec(),
        domains: source.domains().iter().map(|name| (name.clone(), 0, 0)).collect(),
    };
    let bar = progress_bar(source.len(), "sequences");
    let mut routed = 0usize;
    for index in 0..source.len() {
        let sequence = source.sequence(index)?;
        info.tokens += sequence.len();
        let decoded = (0..sequence.len()).filter(|&token| sequence.phase(token) == Phase::Decode).count();
        info.decode_tokens += decoded;
        info.prefill_tokens += sequence.len() - decoded;
        info.shortest_sequence = info.shortest_sequence.min(sequence.len());
        info.longest_sequence = info.longest_sequence.max(sequence.len());
        let rows = (0..sequence.len()).flat_map(|token| geometry.layer_ids().map(move |layer| (token, layer)));
        routed += rows.map(|(token, layer)| sequence.experts(token, layer).count()).sum::<usize>();
        let has = [
            sequence.has_weights(),
            sequence.has_logits(),
            sequence.token_ids().is_some(),
            sequence.predictions().is_some(),
            sequence.has_text(),
        ];
        for ((_, sequences), has) in info.columns.iter_mut().zip(has) {
            *sequences += usize::from(has);
        }
        if let Some((_, sequences, tokens)) = sequence.domain().and_then(|domain| info.domains.get_mut(domain.index()))
        {
            *sequences += 1;
            *tokens += sequence.len();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    info.shortest_sequence = info.shortest_sequence.min(info.longest_sequence);
    let slots = info.tokens * geometry.layers() * geometry.top_k();
    info.empty_slots = if slots == 0 { 0.0 } else { 1.0 - routed as f64 / slots as f64 };
    Ok(info)
}
