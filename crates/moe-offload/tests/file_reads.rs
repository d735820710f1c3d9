//! Checkpoint files read through the page cache and past it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use common::{SHAPE, resident, serve, trace};
use expert_cache::{MissPolicy, PolicyKind, PrefetcherKind, Serving};
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, FileReads, HostStore, MappedStore, OffloadError, OffloadOptions,
    OffloadedExperts, ProjectionBytes, RandomExperts, Routes, Transfers, WeightType, measure_disk, write_gguf,
};
use moe_trace::{ExpertId, LayerId, Phase};

const READS: [FileReads; 2] = [FileReads::Cached, FileReads::Direct];

fn file(directory: &Path, shape: ExpertShape, weight_type: WeightType) -> PathBuf {
    let path = directory.join(format!("{weight_type}.gguf"));
    write_gguf(&RandomExperts::new(shape, weight_type, 3).unwrap(), &path, &mut |_, _| {}).unwrap();
    path
}

fn bytes(store: &dyn ExpertStore, layer: u16, expert: u16) -> Vec<u8> {
    let mut all = Vec::new();
    let mut keep = |parts: ProjectionBytes<'_>| {
        all = parts.concat();
        Ok(())
    };
    store.with_bytes(LayerId(layer), ExpertId(expert), &mut keep).unwrap();
    all
}

#[test]
fn both_ways_read_the_same_bytes_in_every_type() {
    let directory = tempfile::tempdir().unwrap();
    let shape = ExpertShape { layers: 2, experts: 3, hidden: 256, intermediate: 512 };
    for weight_type in WeightType::ALL {
        let path = [file(directory.path(), shape, weight_type)];
        let random = RandomExperts::new(shape, weight_type, 3).unwrap();
        for reads in READS {
            let store = MappedStore::open_gguf(&path).unwrap().with_reads(reads).unwrap();
            assert_eq!(store.reads(), reads);
            let host = HostStore::from_store(&store).unwrap();
            for (layer, expert) in (0..2).flat_map(|layer| (0..3).map(move |expert| (layer, expert))) {
                store.read_ahead(LayerId(layer), ExpertId(expert)).unwrap();
                let expected = bytes(&random, layer, expert);
                assert!(bytes(&store, layer, expert) == expected, "{weight_type}, {reads:?}: {layer}, {expert}");
                assert!(bytes(&host, layer, expert) == expected, "{weight_type}, {reads:?}: {layer}, {expert}");
            }
        }
        let rate = measure_disk(&path, || MappedStore::open_gguf(&path)?.with_reads(FileReads::Direct));
        assert!(rate.unwrap().bytes_per_second > 0.0);
    }
}

#[test]
fn both_ways_convert_alike() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let name = |layer: LayerId, expert: ExpertId, which: &str| format!("{}.{}.{which}", layer.0, expert.0);
    let mut tensors = std::collections::HashMap::new();
    for (layer, expert) in (0..3).flat_map(|layer| (0..8).map(move |expert| (LayerId(layer), ExpertId(expert)))) {
        for (which, dims) in ["gate", "up", "down"].into_iter().zip(SHAPE.projections()) {
            let tensor = Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
            tensors.insert(name(layer, expert, which), tensor);
        }
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let open = |reads| {
        let names = |layer, expert| ["gate", "up", "down"].map(|which| name(layer, expert, which));
        MappedStore::open(std::slice::from_ref(&path), SHAPE, DType::F32, names).unwrap().with_reads(reads).unwrap()
    };
    let [cached, direct] = READS.map(open);
    for (layer, expert) in (0..3).flat_map(|layer| (0..8).map(move |expert| (layer, expert))) {
        assert_eq!(bytes(&cached, layer, expert).len(), SHAPE.expert_bytes(WeightType::F32));
        assert_eq!(bytes(&cached, layer, expert), bytes(&direct, layer, expert));
    }
}

#[test]
fn banks_compute_what_resident_experts_do_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = [file(directory.path(), SHAPE, WeightType::F32)];
    let trace = trace(2, 3, 24);
    let serving = Serving::default();
    for reads in READS {
        let store: Arc<dyn ExpertStore> = Arc::new(MappedStore::open_gguf(&path).unwrap().with_reads(reads).unwrap());
        let expected = serve(&resident(&*store), &trace, serving).unwrap();
        for threads in [0, 2] {
            for misses in [MissPolicy::Load, MissPolicy::Host] {
                let options = OffloadOptions::slots(3).policy(PolicyKind::Lfu).misses(misses);
                let options = options.transfers(Transfers::threads(threads)).prefetch(PrefetcherKind::Markov, 1, 2);
                let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap();
                assert_eq!(serve(&bank, &trace, serving).unwrap(), expected, "{reads:?}, {threads} threads");
            }
        }
    }
}

/// Experts whose projections are large enough to be read where they stay, at places that differ modulo a page.
#[test]
fn experts_are_read_straight_into_slots_where_that_pays() {
    let directory = tempfile::tempdir().unwrap();
    let shape = ExpertShape { layers: 1, experts: 4, hidden: 1056, intermediate: 992 };
    for (weight_type, hidden, straight) in
        [(WeightType::Q8_0, 1056, true), (WeightType::Q8_0, 512, false), (WeightType::F16, 1056, false)]
    {
        let shape = ExpertShape { hidden, ..shape };
        let path = [file(directory.path(), shape, weight_type)];
        let random = RandomExperts::new(shape, weight_type, 3).unwrap();
        let store = MappedStore::open_gguf(&path).unwrap().with_reads(FileReads::Direct).unwrap();
        let store: Arc<dyn ExpertStore> = Arc::new(store);
        assert_eq!(store.loads_straight(LayerId(0)).unwrap(), straight, "{weight_type}");
        let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, OffloadOptions::slots(2)).unwrap();
        let all = resident(&random);
        let hidden = Tensor::ones((1, hidden), weight_type.activations(), &Device::Cpu).unwrap();
        for experts in [[0, 1], [1, 2], [3, 0], [2, 1]] {
            let weights = Tensor::ones((1, 2), weight_type.activations(), &Device::Cpu).unwrap();
            let routes = Routes::new(experts.to_vec(), weights, Phase::Decode).unwrap();
            let of = |bank: &dyn ExpertBank| {
                let output = bank.forward(LayerId(0), &hidden, &routes).unwrap().to_dtype(DType::F32).unwrap();
                output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(of(&bank), of(&all), "{weight_type}");
        }
        let whole = std::fs::read(&path[0]).unwrap();
        std::fs::write(&path[0], &whole[..whole.len() / 8]).unwrap();
        let error = store.loads_straight(LayerId(0)).unwrap_err();
        assert!(matches!(error, OffloadError::Shrunk { .. }), "{error}");
    }
}

#[test]
fn a_file_that_has_shrunk_fails_the_load() {
    let directory = tempfile::tempdir().unwrap();
    let path = [file(directory.path(), SHAPE, WeightType::F32)];
    let store = MappedStore::open_gguf(&path).unwrap().with_reads(FileReads::Direct).unwrap();
    let expected = bytes(&store, 2, 7);
    let whole = std::fs::read(&path[0]).unwrap();
    std::fs::write(&path[0], &whole[..whole.len() / 2]).unwrap();
    let error = (&store as &dyn ExpertStore).with_bytes(LayerId(0), ExpertId(0), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, OffloadError::Shrunk { .. }), "{error}");
    std::fs::write(&path[0], whole).unwrap();
    assert_eq!(bytes(&store, 2, 7), expected);
}

/// Whether a byte of a file is in the page cache.
#[cfg(target_os = "linux")]
fn is_cached(file: &std::fs::File, at: u64) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut byte = [0];
    preadv2(file, &mut [std::io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == 1)
}

#[cfg(target_os = "linux")]
#[test]
fn direct_reads_leave_nothing_in_the_page_cache() {
    let directory = tempfile::tempdir().unwrap();
    let shape = ExpertShape { layers: 1, experts: 4, hidden: 512, intermediate: 1024 };
    let path = [file(directory.path(), shape, WeightType::F32)];
    let file = std::fs::File::open(&path[0]).unwrap();
    let last = file.metadata().unwrap().len() - 1;
    let forget = || {
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    forget();
    if is_cached(&file, last) {
        // A file system in memory forgets nothing.
        return;
    }
    for reads in [FileReads::Direct, FileReads::Cached] {
        let store = MappedStore::open_gguf(&path).unwrap().with_reads(reads).unwrap();
        forget();
        (0..4).for_each(|expert| drop(bytes(&store, 0, expert)));
        assert_eq!(is_cached(&file, last), reads == FileReads::Cached);
    }
}
