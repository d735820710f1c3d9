//! Checkpoints: whatever opens has experts that can be read and computed.

use candle_core::{DType, Device, Tensor};
use moe_offload::{ExpertShape, ExpertStore, MappedStore, ProjectionBytes, WeightLocation};
use moe_trace::{ExpertId, LayerId};

use crate::file;

/// Weights of an expert up to which tokens are multiplied with it.
const COMPUTED: usize = 1 << 16;

/// Opens bytes as a GGUF file.
pub fn gguf(bytes: &[u8]) {
    if let Ok(store) = MappedStore::open_gguf(&[file(bytes, "gguf")]) {
        read(&store);
    }
}

/// Opens bytes as the two parts of a split GGUF file, by the second; four bytes in front tell the length of the first.
pub fn gguf_split(bytes: &[u8]) {
    let Some((len, both)) = bytes.split_first_chunk() else { return };
    let first = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX).min(both.len());
    file(&both[..first], "s-00001-of-00002.gguf");
    if let Ok(store) = MappedStore::open_gguf(&[file(&both[first..], "s-00002-of-00002.gguf")]) {
        assert_eq!(store.files().count(), 2);
        read(&store);
    }
}

/// Opens bytes as the checkpoint of a small model, with gate and up of all experts stacked in one tensor, and the downs apart or
/// stacked, too.
pub fn safetensors(bytes: &[u8]) {
    let shape = ExpertShape { layers: 1, experts: 2, hidden: 4, intermediate: 2 };
    let fused = |_, expert| WeightLocation::fused("gate_up_proj", "down_proj", expert, 2);
    if let Ok(store) = MappedStore::open(&[file(bytes, "safetensors")], shape, DType::F32, fused) {
        read(&store);
    }
    let locations = |_, expert: ExpertId| {
        let half = |half| WeightLocation::part("in", 2 * expert.index() + half, 4);
        [half(0), half(1), WeightLocation::whole(format!("{}.out", expert.0))]
    };
    for dtype in [DType::F32, DType::F16] {
        if let Ok(store) = MappedStore::open(&[file(bytes, "safetensors")], shape, dtype, locations) {
            read(&store);
        }
    }
}

/// Reads the first and the last expert in every way.
fn read(store: &MappedStore) {
    let shape = store.shape();
    assert_eq!(store.weight_types().len(), shape.layers);
    for (layer, expert) in [(0, 0), (shape.layers - 1, shape.experts - 1)] {
        let types = store.weight_types()[layer];
        let id = |index: usize| u16::try_from(index).expect("a checked shape has ids");
        let (layer, expert) = (LayerId(id(layer)), ExpertId(id(expert)));
        let mut lent = Vec::new();
        let lend = &mut |bytes: ProjectionBytes<'_>| {
            assert_eq!(bytes.each().map(<[u8]>::len), shape.projection_bytes(types));
            lent = bytes.concat();
            Ok(())
        };
        (store as &dyn ExpertStore).with_bytes(layer, expert, lend).expect("what opens can be lent");
        store.read_ahead(layer, expert).expect("what opens can be read ahead");
        let weights = store.fetch(layer, expert).expect("what opens can be fetched");
        let compare = &mut |bytes: ProjectionBytes<'_>| {
            assert!(bytes.concat() == lent, "what is fetched is what is lent");
            Ok(())
        };
        weights.with_bytes(compare).expect("it is in host memory");
        if shape.hidden * shape.intermediate <= COMPUTED {
            let token = Tensor::ones((1, shape.hidden), types.activations(), &Device::Cpu).expect("a token");
            assert_eq!(weights.forward(&token).expect("a checked expert computes").dims(), [1, shape.hidden]);
        }
    }
}
