//! Generation: when it stops, what it reports, what the observer sees.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use common::{Fixture, GQA, MHA, PROMPTS};
use moe_model::{Finish, GenerateOptions, Generated, Sampling, generate};
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
    GenerateOptions { max_new_tokens, sampler: Sampling::Greedy, stop_tokens: vec![] }
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

#[test]
fn samples_depend_on_the_seed_and_not_on_the_batch() {
    let fixture = Fixture::load(MHA);
    let prompts = prompts(&fixture);
    let options = |seed| GenerateOptions {
        max_new_tokens: 8,
        sampler: Sampling::TopP { temperature: 1.0, top_p: 0.95, seed },
        stop_tokens: vec![],
    };
    let together = run(&fixture, &prompts, &options(1), &mut IgnoreRouting).sequences;
    assert_eq!(run(&fixture, &prompts, &options(1), &mut IgnoreRouting).sequences, together);
    assert_eq!(run(&fixture, &prompts[..1], &options(1), &mut IgnoreRouting).sequences, together[..1]);
    assert_ne!(run(&fixture, &prompts, &options(2), &mut IgnoreRouting).sequences, together);
}
