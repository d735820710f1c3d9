//! Fills a hardware profile on the user's machine.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::DType;
use moe_examples::DeviceName;
use moe_model::Checkpoint;
use moe_offload::{ExpertStore, HostStore, MappedStore, Transfers, measure, measure_disk};

#[derive(clap::Args)]
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
    #[arg(long, value_name = "FILE", default_value = "profile.json")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let folder = arguments.model.clone().unwrap_or_else(moe_examples::default_model);
    let checkpoint = Checkpoint::open(&folder)
        .with_context(|| format!("cannot use the model in {}; see --model in --help", folder.display()))?;
    let (shape, dtype) = (checkpoint.config().expert_shape(), DType::F32);
    let names = |layer, expert| checkpoint.expert_names(layer, expert);
    println!("reading {} cold", folder.display());
    let disk = measure_disk(checkpoint.files(), || MappedStore::open(checkpoint.files(), shape, dtype, names))?;
    println!("loading and computing experts");
    let mapped = MappedStore::open(checkpoint.files(), shape, dtype, names)?;
    let host: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(&mapped)?);
    let mut profile = measure(&arguments.name, &host, &device, Transfers::Inline)?;
    profile.disk = disk;
    println!("{}", serde_json::to_string_pretty(&profile)?);
    moe_examples::write_json(&arguments.out, &profile)?;
    println!("profile: {}", arguments.out.display());
    Ok(())
}
