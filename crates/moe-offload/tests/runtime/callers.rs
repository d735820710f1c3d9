//! Callers that are workers of rayon.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use moe_offload::{
    ExpertBank, ExpertShape, OffloadError, OffloadOptions, OffloadedExperts, ResidentExperts, Result, Routes,
};
use moe_trace::{LayerId, Phase};
use rayon::prelude::*;

use crate::common::fated::{Fate, Fated, forward};
use crate::common::{SHAPE, host_store, noise, resident};

fn workers(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn a_worker_of_rayon_is_refused_while_another_call_has_the_turn() {
    let store = Fated::new(SHAPE);
    let all = resident(&*store.store);
    let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, OffloadOptions::slots(2)).unwrap();
    let workers = workers(1);
    store.set(0, 3, Some(Fate::Held));
    std::thread::scope(|scope| {
        let served = scope.spawn(|| forward(&bank, 0, &[3, 5]).unwrap());
        store.wait_until_begun(0, 3);
        let refused = workers.install(|| forward(&bank, 0, &[1, 2])).unwrap_err();
        assert!(matches!(refused, OffloadError::RayonWorker { layer: LayerId(0) }), "{refused}");
        // Another layer has a turn of its own, and a thread of one's own waits.
        assert_eq!(workers.install(|| forward(&bank, 1, &[1, 2])).unwrap(), forward(&all, 1, &[1, 2]).unwrap());
        let waiting = scope.spawn(|| forward(&bank, 0, &[1, 2]).unwrap());
        store.set(0, 3, None);
        assert_eq!(served.join().unwrap(), forward(&all, 0, &[3, 5]).unwrap());
        assert_eq!(waiting.join().unwrap(), forward(&all, 0, &[1, 2]).unwrap());
    });
    // The refused call has left nothing behind.
    assert_eq!(workers.install(|| forward(&bank, 0, &[1, 2])).unwrap(), forward(&all, 0, &[1, 2]).unwrap());
}

/// A prompt whose matrices are multiplied by all threads.
fn prompt(bank: &dyn ExpertBank, number: usize) -> Result<Vec<f32>> {
    let (tokens, width) = (64, WIDE.hidden);
    let hidden = Tensor::from_vec(noise(number, tokens * width), (tokens, width), &Device::Cpu)?;
    let experts = (0..tokens).map(|token| u16::try_from((token + number) % WIDE.experts).unwrap()).collect();
    let weights = Tensor::ones((tokens, 1), DType::F32, &Device::Cpu)?;
    let output = bank.forward(LayerId(0), &hidden, &Routes::new(experts, weights, Phase::Prefill)?)?;
    Ok(output.flatten_all()?.to_vec1()?)
}

const WIDE: ExpertShape = ExpertShape { layers: 1, experts: 4, hidden: 512, intermediate: 128 };

#[test]
fn prompts_on_workers_of_rayon_end() {
    let store = host_store(WIDE);
    let expected: Vec<Vec<f32>> = {
        let all: ResidentExperts = resident(&*store);
        (0..4).map(|number| prompt(&all, number).unwrap()).collect()
    };
    let bank = Arc::new(OffloadedExperts::new(store, &Device::Cpu, OffloadOptions::slots(2)).unwrap());
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let outcomes: Vec<_> = workers(4).install(|| {
            let prompts = (0..40usize).into_par_iter().with_max_len(1);
            prompts.map(|number| (number % 4, prompt(&*bank, number % 4))).collect()
        });
        ended.send(outcomes).unwrap();
    });
    let outcomes = end.recv_timeout(Duration::from_secs(120)).expect("no deadlock");
    let mut served = 0;
    for (number, outcome) in outcomes {
        match outcome {
            Ok(output) => {
                assert!(output == expected[number]);
                served += 1;
            }
            Err(error) => assert!(matches!(error, OffloadError::RayonWorker { .. }), "{error}"),
        }
    }
    assert!(served > 0);
}
