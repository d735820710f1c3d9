//! Every expert of a layer in one tensor: the bank for training.

use candle_core::Tensor;
use moe_offload::{Dispatch, ExpertBank, ExpertWeights, OffloadError, ResidentExperts, Routes};
use moe_trace::LayerId;

use crate::fused_experts::FusedExperts;
use crate::{OlmoeConfig, Result, fused};

/// An [`ExpertBank`] whose gradients are one tensor a layer.
///
/// f32 on the CPU runs all experts of a layer as one operation; elsewhere each is computed by itself, as in
/// [`ResidentExperts`]. The two agree up to rounding.
#[derive(Clone, Debug)]
pub struct PackedExperts {
    layers: Vec<Tensor>,
    views: ResidentExperts,
    experts: usize,
    hidden: usize,
    width: usize,
}

impl PackedExperts {
    /// Creates a bank of packed layers, each `[experts, 3 x hidden x intermediate]`: of each expert its gate, up and down
    /// projection, row by row.
    ///
    /// # Errors
    /// A number of layers or a shape that is not that of the configuration.
    pub fn new(config: &OlmoeConfig, layers: Vec<Tensor>) -> Result<PackedExperts> {
        let shape = config.expert_shape();
        if layers.len() != shape.layers {
            let (name, found, expected) = ("packed layers".to_owned(), vec![layers.len()], vec![shape.layers]);
            return Err(OffloadError::Shape { name, found, expected }.into());
        }
        let views = layers.iter().map(|layer| {
            let each = unpack(config, layer)?.into_iter();
            each.map(|[gate, up, down]| Ok(ExpertWeights::new(gate, up, down)?)).collect::<Result<_>>()
        });
        Ok(PackedExperts {
            views: ResidentExperts::new(views.collect::<Result<_>>()?),
            layers,
            experts: shape.experts,
            hidden: shape.hidden,
            width: shape.intermediate,
        })
    }

    /// The projections of a packed layer, as parts of it, by their names in a checkpoint.
    ///
    /// # Errors
    /// A shape that is not that of the configuration.
    pub fn named(config: &OlmoeConfig, layer: LayerId, packed: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let names = config.geometry().expert_ids().flat_map(|expert| config.expert_names(layer, expert));
        Ok(names.zip(unpack(config, packed)?.into_iter().flatten()).collect())
    }
}

impl ExpertBank for PackedExperts {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> moe_offload::Result<Tensor> {
        let layers = self.layers.len();
        let packed = self.layers.get(layer.index()).ok_or(OffloadError::LayerOutOfRange { layer, layers })?;
        if !fused::takes(hidden) || !fused::takes(packed) || routes.tokens() == 0 {
            return self.views.forward(layer, hidden, routes);
        }
        let (tokens, found) = hidden.dims2()?;
        if found != self.hidden {
            let (found, expected) = (vec![tokens, found], vec![tokens, self.hidden]);
            return Err(OffloadError::Shape { name: "hidden".to_owned(), found, expected });
        }
        let dispatch = Dispatch::new(layer, tokens, routes, self.experts)?;
        let operation = FusedExperts::new(dispatch, self.hidden, self.width, routes.top_k());
        let weights = routes.weights().to_dtype(hidden.dtype())?.contiguous()?;
        Ok(hidden.contiguous()?.apply_op3(&weights, packed, operation)?)
    }
}

/// Gate, up and down projection of every expert of a packed layer, as parts of it.
fn unpack(config: &OlmoeConfig, packed: &Tensor) -> Result<Vec<[Tensor; 3]>> {
    let shape = config.expert_shape();
    let size = shape.hidden * shape.intermediate;
    let expected = vec![shape.experts, 3 * size];
    if packed.dims() != expected {
        let (name, found) = ("packed experts".to_owned(), packed.dims().to_vec());
        return Err(OffloadError::Shape { name, found, expected }.into());
    }
    let projection =
        |expert: &Tensor, which: usize| expert.narrow(0, which * size, size)?.reshape(shape.projections()[which]);
    let expert = |number: usize| -> Result<_> {
        let expert = packed.get(number)?;
        Ok([projection(&expert, 0)?, projection(&expert, 1)?, projection(&expert, 2)?])
    };
    (0..shape.experts).map(expert).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use moe_trace::{EMPTY_SLOT, Phase};
    use proptest::prelude::*;

    use super::*;
    use crate::{ModelError, OlmoeParams};

    fn config(experts: usize, width: usize) -> OlmoeConfig {
        let params = OlmoeParams {
            hidden_size: 8,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            num_hidden_layers: 1,
            intermediate_size: width,
            num_experts: experts,
            num_experts_per_tok: 1,
            vocab_size: 16,
            eos_token_ids: vec![],
            ..OlmoeParams::default()
        };
        OlmoeConfig::new(params).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let largest = |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let error = largest(&(a - b).unwrap());
        assert!(error <= 1e-5 * largest(b).max(1.0), "{error:e}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Value and all three gradients are those of experts computed one by one, with empty slots, unused experts
        /// and experts that a token has twice.
        #[test]
        fn packed_equals_one_by_one(
            (experts, top_k, slots) in (1usize..6, 1usize..4, 1usize..12).prop_flat_map(|(experts, top_k, tokens)| {
                let slot = prop_oneof![1 => Just(EMPTY_SLOT), 6 => 0..u16::try_from(experts).unwrap()];
                (Just(experts), Just(top_k), proptest::collection::vec(slot, tokens * top_k))
            }),
            width in 1usize..12,
        ) {
            let (config, tokens) = (config(experts, width), slots.len() / top_k);
            let random = |shape: (usize, usize)| Var::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            let [packed, x, weights] = [(experts, 3 * 8 * width), (tokens, 8), (tokens, top_k)].map(random);
            let bank = PackedExperts::new(&config, vec![packed.as_tensor().clone()]).unwrap();
            // As the optimizer does: the bank sees what the variable becomes.
            packed.set(random((experts, 3 * 8 * width)).as_tensor()).unwrap();
            let upstream = random((tokens, 8));
            let of = |bank: &dyn ExpertBank| {
                let routes = Routes::new(slots.clone(), weights.as_tensor().clone(), Phase::Prefill).unwrap();
                let y = bank.forward(LayerId(0), &x, &routes).unwrap();
                let gradients = (&y * upstream.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
                let of = |var: &Var| gradients.get(var).cloned().unwrap_or(var.zeros_like().unwrap());
                [y, of(&x), of(&weights), of(&packed)]
            };
            for (packed, apart) in of(&bank).iter().zip(&of(&bank.views)) {
                close(packed, apart);
            }
        }
    }

    #[test]
    fn other_shapes_and_layers_are_told() {
        let (config, device) = (config(4, 3), Device::Cpu);
        let layer = Tensor::zeros((4, 3 * 8 * 3), DType::F32, &device).unwrap();
        let error = |layers: Vec<Tensor>| match PackedExperts::new(&config, layers).unwrap_err() {
            ModelError::Experts(error) => error.to_string(),
            other => panic!("{other}"),
        };
        assert_eq!(error(vec![]), "packed layers has shape [0], expected [1]");
        assert_eq!(error(vec![layer.clone(), layer.clone()]), "packed layers has shape [2], expected [1]");
        let transposed = layer.t().unwrap();
        assert_eq!(error(vec![transposed]), "packed experts has shape [72, 4], expected [4, 72]");
        let bank = PackedExperts::new(&config, vec![layer]).unwrap();
        let forward = |layer, width: usize| {
            let hidden = Tensor::zeros((1, width), DType::F32, &device).unwrap();
            let weights = Tensor::ones((1, 1), DType::F32, &device).unwrap();
            bank.forward(LayerId(layer), &hidden, &Routes::new(vec![0], weights, Phase::Decode).unwrap()).map(drop)
        };
        forward(0, 8).unwrap();
        assert_eq!(forward(0, 9).unwrap_err().to_string(), "hidden has shape [1, 9], expected [1, 8]");
        assert!(matches!(forward(1, 8), Err(OffloadError::LayerOutOfRange { .. })));
    }
}
