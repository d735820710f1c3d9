//! An expert cache under a candle MoE block that is somebody else's: `cargo run --release --example own_block`.

use std::process::ExitCode;
use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Linear, Module, ops::softmax};
use clap::Parser;
use moe_offload::{ExpertBank, ExpertShape, MappedStore, OffloadOptions, OffloadedExperts, Routes};
use moe_trace::{ExpertId, LayerId, Phase};

/// Decode random tokens with a block of 16 experts of which a few are in memory.
#[derive(Parser)]
struct Arguments {
    /// Experts that are in memory.
    #[arg(long, default_value_t = 4, value_parser = moescope_cli::whole::<usize>(1..=16))]
    slots: usize,
}

/// The block: a router, and a bank in the place of its experts.
struct Block {
    router: Linear,
    experts: OffloadedExperts,
}

impl Block {
    fn forward(&self, x: &Tensor, phase: Phase) -> Result<Tensor> {
        let probabilities = softmax(&self.router.forward(x)?, D::Minus1)?;
        let chosen = probabilities.arg_sort_last_dim(false)?.narrow(1, 0, 2)?.contiguous()?;
        let weights = probabilities.gather(&chosen, 1)?;
        let ids = chosen.flatten_all()?.to_vec1::<u32>()?.into_iter().map(u16::try_from);
        Ok(self.experts.forward(LayerId(0), x, &Routes::new(ids.collect::<Result<_, _>>()?, weights, phase)?)?)
    }
}

fn main() -> ExitCode {
    moescope_cli::run(program)
}

fn program() -> Result<()> {
    let arguments = moescope_cli::parse::<Arguments>();
    // A checkpoint; any names will do.
    let shape = ExpertShape { layers: 1, experts: 16, hidden: 64, intermediate: 128 };
    let names = |_: LayerId, expert: ExpertId| ["w1", "w3", "w2"].map(|name| format!("block.{}.{name}", expert.0));
    let mut tensors = HashMap::new();
    for expert in (0..16).map(ExpertId) {
        for (name, dims) in names(LayerId(0), expert).into_iter().zip(shape.projections()) {
            tensors.insert(name, Tensor::randn(0f32, 0.1, dims, &Device::Cpu)?);
        }
    }
    let file = std::env::temp_dir().join(format!("own-block-{}.safetensors", std::process::id()));
    candle_core::safetensors::save(&tensors, &file)?;

    let store = Arc::new(MappedStore::open(std::slice::from_ref(&file), shape, DType::F32, names)?);
    let experts = OffloadedExperts::new(store, &Device::Cpu, OffloadOptions::slots(arguments.slots))?;
    let block = Block { router: Linear::new(Tensor::randn(0f32, 1.0, (16, 64), &Device::Cpu)?, None), experts };
    for _ in 0..100 {
        block.forward(&Tensor::randn(0f32, 1.0, (1, 64), &Device::Cpu)?, Phase::Decode)?;
    }
    moescope_cli::outln!("{}", serde_json::to_string_pretty(&block.experts.report()?.total.decode)?);
    Ok(std::fs::remove_file(file)?)
}
