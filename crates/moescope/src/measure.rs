//! Fills a hardware profile on the user's machine.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use moe_offload::{ExpertStore, Transfers, measure, measure_disk};
use moescope_cli::{DeviceName, Files, host_experts, mapped_experts, open_checkpoint};

/// Measure this machine, and write its profile for `plan`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope measure --out profile.json")]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint whose experts are loaded and computed [default: the model of this repository].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Device of the profile: cpu, cuda, or cuda:N with the number of a GPU.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Name of the profile.
    #[arg(long, default_value = "this machine")]
    name: String,

    /// File for the profile; give it to `answer --profile`.
    #[arg(long, value_name = "FILE", default_value = "profile.json", value_parser = moescope_cli::output_path())]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let checkpoint = open_checkpoint(arguments.model.as_deref())?;
    Files::new().reads_model(checkpoint.folder()).writes("--out", &arguments.out).check()?;
    moescope_cli::outln!("reading {} cold", checkpoint.folder().display());
    let disk = measure_disk(checkpoint.files(), || mapped_experts(&checkpoint))?;
    moescope_cli::outln!("loading and computing experts");
    let host: Arc<dyn ExpertStore> = Arc::new(host_experts(&mapped_experts(&checkpoint)?)?);
    let mut profile = measure(&arguments.name, &host, &device, Transfers::Inline)?;
    profile.disk = disk;
    moescope_cli::outln!("{}", serde_json::to_string_pretty(&profile)?);
    moescope_cli::write_json(&arguments.out, &profile)?;
    moescope_cli::outln!("profile: {}", arguments.out.display());
    Ok(())
}
