//! Recorded routing in place of a router.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use expert_cache::{Lane, Serving, Step, for_each_pass};
use moe_trace::{EMPTY_SLOT, LayerId, Phase, RoutingSource};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::bank::ExpertBank;
use crate::error::{OffloadError, Result};
use crate::routes::Routes;

/// Rows of hidden states that tokens take in turn.
const ROWS: u32 = 64;
const EPSILON: f32 = 1e-5;

/// Drives an [`ExpertBank`] with the routing of a trace: real decisions, whatever the weights are.
///
/// So a bank can be measured at the sizes of a model that is not at hand: weights of its shape may be random, since the
/// time and the traffic of experts depend on which are chosen, not on what they say. Each pass starts from random
/// hidden states and adds every layer's output, `x <- x + bank(norm(x))`; attention, embedding and head are left out.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use moe_offload::{ExpertWeights, Replay, ResidentExperts};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 1], Phase::Decode)?)?;
/// let expert = || -> candle_core::Result<_> {
///     let [gate, up] = [(); 2].map(|()| Tensor::randn(0f32, 0.1, (16, 8), &Device::Cpu));
///     Ok((gate?, up?, Tensor::randn(0f32, 0.1, (8, 16), &Device::Cpu)?))
/// };
/// let experts = (0..2).map(|_| expert().map(|(gate, up, down)| ExpertWeights::new(gate, up, down)));
/// let bank = ResidentExperts::new(vec![experts.collect::<candle_core::Result<Result<_, _>>>()??]);
/// let report = Replay::new(&trace, 8, DType::F32, &Device::Cpu)?.run(&bank, |_| ())?;
/// assert_eq!((report.decode.passes, report.decode.tokens, report.prefill.tokens), (3, 3, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Replay<'a> {
    source: &'a dyn RoutingSource,
    serving: Serving,
    device: Device,
    /// `[ROWS, hidden]`
    hidden: Tensor,
    /// `[hidden]`
    gain: Tensor,
}

/// A pass that was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReplayedPass {
    /// Whether its tokens were prefilled or decoded.
    #[serde(skip)]
    pub phase: Phase,
    /// Number of tokens.
    pub tokens: usize,
    /// Seconds that all layers took.
    pub seconds: f64,
}

/// All passes of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ReplayedPhase {
    /// Number of passes.
    pub passes: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Seconds of all passes.
    pub seconds: f64,
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ReplayReport {
    /// Prefilled tokens.
    pub prefill: ReplayedPhase,
    /// Decoded tokens.
    pub decode: ReplayedPhase,
    /// CRC-32 of the bits of all outputs: equal for banks that compute alike.
    pub checksum: u32,
}

impl ReplayedPhase {
    /// Tokens a second; NaN if there were none.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

impl<'a> Replay<'a> {
    /// Replays `source`, one sequence at a time, on tokens of `hidden` numbers of type `dtype`.
    ///
    /// # Errors
    /// [`OffloadError::Size`] for a width of 0; [`OffloadError::Tensor`] for a type or device that has no such tensors.
    pub fn new(source: &'a dyn RoutingSource, hidden: usize, dtype: DType, device: &Device) -> Result<Replay<'a>> {
        if hidden == 0 {
            return Err(OffloadError::Size { field: "hidden size", value: 0, max: usize::MAX });
        }
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let values: Vec<f32> = (0..ROWS as usize * hidden).map(|_| random.random_range(-1.0..1.0)).collect();
        Ok(Replay {
            source,
            serving: Serving::default(),
            device: device.clone(),
            hidden: Tensor::from_vec(values, (ROWS as usize, hidden), device)?.to_dtype(dtype)?,
            gain: Tensor::ones(hidden, dtype, device)?,
        })
    }

    /// Serves several sequences in step, or several drafted tokens at once.
    pub fn with_serving(mut self, serving: Serving) -> Replay<'a> {
        self.serving = serving;
        self
    }

    /// Replays all sequences; `observe` sees every pass when it is done.
    ///
    /// # Errors
    /// What the bank says; a sequence that cannot be read.
    pub fn run(&self, bank: &dyn ExpertBank, mut observe: impl FnMut(&ReplayedPass)) -> Result<ReplayReport> {
        let mut report = ReplayReport::default();
        let mut checksum = crc32fast::Hasher::new();
        let mut next_row = 0;
        for_each_pass(self.source, self.serving, |step| -> Result<()> {
            let Step::Pass { phase, lanes } = step else { return bank.sequence_end() };
            let tokens: usize = lanes.iter().map(|lane| lane.tokens().len()).sum();
            let rows: Vec<u32> = (next_row..).take(tokens).map(|row| row % ROWS).collect();
            next_row = (next_row + 1) % ROWS;
            let hidden = self.hidden.index_select(&Tensor::new(rows, &self.device)?, 0)?;
            let routes = self.routes(phase, lanes)?;
            let started = Instant::now();
            let output = self.pass(bank, hidden, &routes)?;
            self.device.synchronize()?;
            let pass = ReplayedPass { phase, tokens, seconds: started.elapsed().as_secs_f64() };
            for value in output.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
                checksum.update(&value.to_bits().to_le_bytes());
            }
            let total = match phase {
                Phase::Prefill => &mut report.prefill,
                Phase::Decode => &mut report.decode,
            };
            total.passes += 1;
            total.tokens += tokens as u64;
            total.seconds += pass.seconds;
            observe(&pass);
            Ok(())
        })?;
        report.checksum = checksum.finalize();
        Ok(report)
    }

    fn pass(&self, bank: &dyn ExpertBank, mut x: Tensor, routes: &[(LayerId, Routes)]) -> Result<Tensor> {
        for (layer, routes) in routes {
            x = (&x + bank.forward(*layer, &rms_norm(&x, &self.gain, EPSILON)?, routes)?)?;
        }
        Ok(x)
    }

    /// Routes of the tokens of a pass in every layer.
    fn routes(&self, phase: Phase, lanes: &[Lane<'_>]) -> Result<Vec<(LayerId, Routes)>> {
        let geometry = self.source.geometry();
        let top_k = geometry.top_k();
        let of_layer = |layer| {
            let (mut experts, mut weights) = (Vec::new(), Vec::new());
            for lane in lanes {
                for token in lane.tokens() {
                    let end = experts.len() + top_k;
                    match lane.sequence().weighted_experts(token, layer) {
                        Some(chosen) => chosen.for_each(|(expert, weight)| {
                            experts.push(expert.0);
                            weights.push(weight);
                        }),
                        None => {
                            experts.extend(lane.sequence().experts(token, layer).map(|expert| expert.0));
                            weights.resize(experts.len(), 1.0 / top_k as f32);
                        }
                    }
                    experts.resize(end, EMPTY_SLOT);
                    weights.resize(end, 0.0);
                }
            }
            let weights = Tensor::from_vec(weights, (experts.len() / top_k, top_k), &self.device)?;
            Ok((layer, Routes::new(experts, weights, phase)?))
        };
        geometry.layer_ids().map(of_layer).collect()
    }
}
