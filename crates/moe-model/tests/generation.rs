//! Generation: when it stops, what it reports, what the observer sees.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::sync::Arc;

use candle_core::{DType, Device};
use common::failing::Counted;
use common::{Fixture, GQA, MHA, PROMPTS, folder};
use moe_model::{Checkpoint, Chunk, Finish, GenerateOptions, Generated, KvCache, LogitsAt, Olmoe, Sampling, generate};
use moe_trace::{IgnoreRouting, LayerId, MemoryTrace, Phase, Recorder, RouterObserver, RoutingSource};

fn prompts(fixture: &Fixture) -> Vec<Vec<u32>> {
    (0..PROMPTS).map(|prompt| fixture.prompt(prompt)).collect()
}

fn run(
    fixture: &Fixture,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    observer: &mut dyn RouterObserver,
) -> Generated {
    generate(&fixture.model, prompts, options, observer, |_, _| {}).unwrap()
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sampler: Sampling::Greedy, seeds: vec![], stop_tokens: vec![] }
}

#[test]
fn a_recorder_sees_every_token_but_the_last_of_each_sequence() {
    let fixture = Fixture::load(GQA);
    let prompts = prompts(&fixture);
    let mut recorder = Recorder::new(MemoryTrace::new(fixture.model.config().geometry()));
    let generated = run(&fixture, &prompts, &greedy(6), &mut recorder);
    let trace = recorder.finish().unwrap();
    assert_eq!(trace.len(), PROMPTS);
    for (index, (prompt, generation)) in prompts.iter().zip(&generated.sequences).enumerate() {
        let sequence = trace.sequence(index).unwrap();
        let fed = [prompt.as_slice(), &generation.tokens[..5]].concat();
        assert_eq!(sequence.token_ids().unwrap(), fed);
        let phases: Vec<Phase> = (0..fed.len()).map(|token| sequence.phase(token)).collect();
        assert!(phases[..prompt.len()].iter().all(|&phase| phase == Phase::Prefill));
        assert!(phases[prompt.len()..].iter().all(|&phase| phase == Phase::Decode));
        // The whole text read at once is routed as it was when it was generated.
        let (_, events) = fixture.prefill(&fed);
        let mut layer = Vec::new();
        sequence.copy_layer(LayerId(2), &mut layer);
        assert_eq!(layer, events.routed[2].experts);
    }
    let timings = generated.timings;
    assert_eq!((timings.prefill_tokens, timings.decode_tokens), (23 + 1 + 9, 3 * 5));
    assert!(timings.prefill.as_nanos() > 0 && timings.decode.as_nanos() > 0);
}

#[test]
fn stop_tokens_end_their_own_sequence_only() {
    let fixture = Fixture::load(MHA);
    let prompts = prompts(&fixture);
    let full = run(&fixture, &prompts, &greedy(12), &mut IgnoreRouting);
    let stop = full.sequences[1].tokens[3];
    let options = GenerateOptions { stop_tokens: vec![stop], ..greedy(12) };
    let mut seen = vec![Vec::new(); PROMPTS];
    let on_token = |sequence: usize, token| seen[sequence].push(token);
    let mut events = common::Events::default();
    let stopped = generate(&fixture.model, &prompts, &options, &mut events, on_token).unwrap();
    for (index, (stopped, full)) in stopped.sequences.iter().zip(&full.sequences).enumerate() {
        let end = full.tokens.iter().position(|&token| token == stop).map_or(12, |place| place + 1);
        assert_eq!(stopped.tokens, full.tokens[..end]);
        let stop_token = stopped.tokens.last() == Some(&stop);
        assert_eq!(stopped.finish, if stop_token { Finish::StopToken } else { Finish::MaxNewTokens });
        assert_eq!(seen[index], stopped.tokens);
    }
    events.ended.sort_unstable();
    assert_eq!(events.ended, [0, 1, 2]);
}

#[test]
fn generation_ends_where_the_positions_end() {
    let fixture = Fixture::load(MHA);
    let prompt: Vec<u32> = (3..63).collect();
    let generated = run(&fixture, &[prompt], &greedy(20), &mut IgnoreRouting);
    // 64 positions: 60 for the prompt, 4 for new tokens, whose last one predicts a fifth.
    assert_eq!(generated.sequences[0].tokens.len(), 5);
    assert_eq!(generated.sequences[0].finish, Finish::ContextFull);
}

fn sampled(seed: u64, seeds: Vec<u64>) -> GenerateOptions {
    let sampler = Sampling::TopP { temperature: 1.0, top_p: 0.95, seed };
    GenerateOptions { max_new_tokens: 8, sampler, seeds, stop_tokens: vec![] }
}

#[test]
fn samples_depend_on_the_seed_and_not_on_the_batch() {
    let fixture = Fixture::load(MHA);
    let prompts = prompts(&fixture);
    let texts = |prompts: &[Vec<u32>], options| run(&fixture, prompts, &options, &mut IgnoreRouting).sequences;
    let together = texts(&prompts, sampled(1, vec![]));
    assert_eq!(texts(&prompts, sampled(1, vec![])), together);
    for (prompt, text) in prompts.iter().zip(&together) {
        assert_eq!(texts(std::slice::from_ref(prompt), sampled(1, vec![])), std::slice::from_ref(text));
    }
    let (mut moved, mut expected) = (prompts.clone(), together.clone());
    moved.rotate_left(1);
    expected.rotate_left(1);
    assert_eq!(texts(&moved, sampled(1, vec![])), expected);
    assert_ne!(texts(&prompts, sampled(2, vec![])), together);
}

#[test]
fn equal_prompts_get_texts_of_their_own_by_seeds_of_their_own() {
    let fixture = Fixture::load(MHA);
    let prompts = vec![fixture.prompt(0); 2];
    let texts = |options| run(&fixture, &prompts, &options, &mut IgnoreRouting).sequences;
    let [first, second] = &texts(sampled(1, vec![]))[..] else { panic!("two prompts") };
    assert_eq!(first, second);
    let apart = texts(sampled(9, vec![1, 2]));
    assert_eq!(&apart[0], first);
    assert_ne!(&apart[1], first);
    let error = generate(&fixture.model, &prompts, &sampled(1, vec![1]), &mut IgnoreRouting, |_, _| ()).unwrap_err();
    assert_eq!(error.to_string(), "there are 1 seeds for 2 prompts, give one for each or none");
}

/// A model whose store can be made to fail, and its bank.
fn failing() -> (Olmoe, Arc<Counted>) {
    let checkpoint = Checkpoint::open(folder(MHA)).unwrap();
    let bank = Arc::new(Counted::new(&checkpoint));
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    (Olmoe::new(checkpoint.config(), &vb, bank.clone()).unwrap(), bank)
}

fn recorder(model: &Olmoe) -> Recorder<MemoryTrace> {
    Recorder::new(MemoryTrace::new(model.config().geometry())).with_logits()
}

/// Every pass is run again if it fails; returns the trace and the number of failed passes.
fn record_passes(fail_after: Option<usize>) -> (MemoryTrace, usize) {
    let (model, bank) = failing();
    let tokens = Fixture::load(MHA).prompt(0);
    let mut recorder = recorder(&model);
    let mut cache = KvCache::new(model.config());
    let mut failed = 0;
    fail_after.into_iter().for_each(|loads| bank.fail_after(loads));
    let mut run = |tokens: &[u32], phase| {
        let mut once = || {
            let chunk = Chunk { sequence: 0, tokens, cache: &mut cache, phase };
            model.forward(&mut [chunk], LogitsAt::Last, &mut recorder)
        };
        if once().is_err() {
            failed += 1;
            once().unwrap();
        }
    };
    run(&tokens[..20], Phase::Prefill);
    tokens[20..].iter().for_each(|&token| run(&[token], Phase::Decode));
    (recorder.finish().unwrap(), failed)
}

#[test]
fn a_failed_pass_that_is_run_again_leaves_the_trace_of_an_undisturbed_run() {
    let (expected, failed) = record_passes(None);
    assert_eq!((expected.len(), failed), (1, 0));
    let mut loads = 0;
    loop {
        let (trace, failed) = record_passes(Some(loads));
        assert!(trace == expected, "after {loads} loads");
        if failed == 0 {
            break;
        }
        loads += 1;
    }
    // All experts of three layers in the prefill, and some loads in the decode steps.
    assert!(loads > 3 * 8, "{loads}");
}

#[test]
fn generation_that_fails_ends_its_sequences_for_the_bank_and_the_observer() {
    let prompts = prompts(&Fixture::load(MHA));
    let (model, bank) = failing();
    let mut undisturbed = recorder(&model);
    let expected = generate(&model, &prompts, &greedy(6), &mut undisturbed, |_, _| ()).unwrap().sequences;
    let undisturbed = undisturbed.finish().unwrap();
    assert_eq!(bank.ended(), PROMPTS);

    // How many sequences the bank and the observer have seen a part of, by the number of loads before the failure.
    let mut seen = Vec::new();
    for loads in 0.. {
        let (model, bank) = failing();
        let mut recorder = recorder(&model);
        bank.fail_after(loads);
        let failed = generate(&model, &prompts, &greedy(6), &mut recorder, |_, _| ()).is_err();
        assert_eq!(failed, bank.has_failed());
        if !failed {
            break;
        }
        let in_bank = bank.ended();
        let again = generate(&model, &prompts, &greedy(6), &mut recorder, |_, _| ()).unwrap().sequences;
        assert_eq!((again, bank.ended()), (expected.clone(), in_bank + PROMPTS));
        let trace = recorder.finish().unwrap();
        let cut = trace.len() - PROMPTS;
        for (sequence, whole) in undisturbed.sequences().iter().enumerate() {
            assert!(&trace.sequences()[cut + sequence] == whole, "after {loads} loads");
            let Some(part) = trace.sequences()[..cut].get(sequence) else { continue };
            let tokens = |sequence: &moe_trace::SequenceBuf| sequence.token_ids.clone().unwrap();
            assert!(tokens(whole).starts_with(&tokens(part)), "after {loads} loads");
        }
        seen.push((in_bank, cut));
    }
    seen.dedup();
    // The prefills one after the other, then decoding.
    assert_eq!(seen, [(1, 0), (2, 1), (3, 2), (3, 3)]);
}
