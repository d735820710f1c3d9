//! Intervals of reports against resampling the sequences themselves.

use std::fmt::Debug;

use expert_cache::curve::{ColdStart, CurvePolicy};
use lrc_metrics::{
    Accumulator, Bootstrap, ByDomain, Coactivation, Curves, Figures, Intervals, LoadBalance, MetricsOptions,
    PositionSrp, ReferenceRouting, Resampled, Result, Saturation, Srp, TraceIntervals, TraceMetrics, Vocabulary,
    VocabularyToken, accumulate,
};
use moe_trace::{DomainId, ExpertId, Geometry, LayerId, MemoryTrace, MoeLayer, RoutingSource, Stack};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::traces::{DOMAINS, every_fold_agrees, memory, synthetic, trace};

const LAYERS: [LayerId; 2] = [LayerId(0), LayerId(1)];

/// Sequences of two layers, one of them in the encoder, with domains and token ids.
fn corpus(sequences: usize, seed: u64) -> MemoryTrace {
    let stack = |stack| MoeLayer { model_layer: 0, stack };
    let geometry = Geometry::new(vec![stack(Stack::Encoder), stack(Stack::Decoder)], 6, 2).unwrap();
    let mut buffers = synthetic(&geometry, sequences, 20, seed).sequences().to_vec();
    for (number, sequence) in (0u16..).zip(&mut buffers) {
        sequence.domain = Some(DomainId(number % 3));
        sequence.token_ids = Some((0..20).map(|token| (token + u32::from(number)) % 4).collect());
    }
    memory(&geometry, buffers)
}

fn figures_of<R: Figures>(report: &R, like: &R) -> Vec<f64> {
    let mut figures = Vec::new();
    R::read(Some(report), like, &mut figures);
    figures
}

/// Asserts that the bounds are those of drawing sequences, of which there are at most 96, and folding what was drawn.
fn drawing_agrees<A: Accumulator, R: Figures + Send + Sync + PartialEq + Debug>(
    trace: &MemoryTrace,
    empty: &A,
    report: impl Fn(&A) -> Result<R> + Sync,
) {
    let (resamples, seed) = (41, 3);
    let resampled = accumulate(trace, &Resampled::new(empty.clone()), &|_| {}).unwrap();
    let found = resampled.finish(&Bootstrap::new(resamples, 0.9, seed).unwrap(), &report).unwrap();
    assert_eq!(found.value, report(&accumulate(trace, empty, &|_| {}).unwrap()).unwrap());
    let like = &found.value;
    let order = order_of(trace);
    let drawn: Vec<Vec<f64>> = (0..resamples as u64)
        .map(|resample| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(resample);
            let mut metrics = empty.clone();
            for _ in 0..trace.len() {
                let index = order[random.random_range(0..trace.len())];
                metrics.update(&trace.sequence(index).unwrap()).unwrap();
            }
            figures_of(&report(&metrics).unwrap(), like)
        })
        .collect();
    let (value, low, high) = (figures_of(like, like), figures_of(&found.low, like), figures_of(&found.high, like));
    assert!(!value.is_empty());
    for figure in 0..value.len() {
        let mut values: Vec<f64> = drawn.iter().map(|of| of[figure]).filter(|value| !value.is_nan()).collect();
        if values.len() < resamples {
            continue;
        }
        values.sort_by(f64::total_cmp);
        // 5 % and 95 % of 40 steps between order statistics.
        let expected = (2.0 * value[figure] - values[38], 2.0 * value[figure] - values[2]);
        assert!((low[figure] - expected.0).abs() < 1e-12, "figure {figure}: {} {expected:?}", low[figure]);
        assert!((high[figure] - expected.1).abs() < 1e-12, "figure {figure}: {} {expected:?}", high[figure]);
    }
}

/// The order in which sequences are drawn, found by resampling accumulators that count one sequence alone.
fn order_of(trace: &MemoryTrace) -> Vec<usize> {
    // With one resample both bounds are 2 * value - resample, so whether a sequence was drawn can be read off; under enough
    // seeds no two places are drawn alike.
    let draws = |index: usize, seed: u64| -> u32 {
        let mut resampled = Resampled::new(LoadBalance::new(trace.geometry()));
        for number in 0..trace.len() {
            let sequence = trace.sequence(number).unwrap();
            resampled
                .update_with(&sequence, |load| if number == index { load.update(&sequence) } else { Ok(()) })
                .unwrap();
        }

        let count = |load: &LoadBalance| {
            let tokens = load.finish()[0].activation_rates.iter().sum::<f64>();
            Ok(vec![tokens])
        };
        let found = resampled.finish(&Bootstrap::new(1, 0.9, seed).unwrap(), count).unwrap();
        // An accumulator without tokens has rates of 0.
        u32::from(found.low[0] != 2.0 * found.value[0])
    };
    let len = trace.len();
    let seeds: Vec<u64> = (1000..1060).collect();
    let drawn = |place: usize| -> Vec<u32> {
        let of = |&seed: &u64| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(0);
            u32::from((0..len).map(|_| random.random_range(0..len)).any(|row| row == place))
        };
        seeds.iter().map(of).collect()
    };
    let seen: Vec<Vec<u32>> = (0..len).map(|index| seeds.iter().map(|&seed| draws(index, seed)).collect()).collect();
    (0..len).map(|place| seen.iter().position(|seen| *seen == drawn(place)).unwrap()).collect()
}

#[test]
fn every_report_has_the_intervals_of_drawn_sequences() {
    let trace = corpus(12, 4);
    let geometry = trace.geometry();
    drawing_agrees(&trace, &Srp::new(geometry, &[3]).unwrap(), Srp::finish);
    drawing_agrees(&trace, &LoadBalance::new(geometry), |load| Ok(load.finish()));
    drawing_agrees(&trace, &PositionSrp::new(geometry, &LAYERS, 3, 2..9).unwrap(), |srp| Ok(srp.finish()));
    drawing_agrees(&trace, &Coactivation::new(geometry, &LAYERS).unwrap(), |pairs| Ok(pairs.finish()));
    let vocabulary = Vocabulary::new(geometry, &LAYERS, VocabularyToken::Next).unwrap();
    drawing_agrees(&trace, &vocabulary, |vocabulary| Ok(vocabulary.finish()));
    let policies = [CurvePolicy::Lfu, CurvePolicy::LookAhead { window: 3 }];
    let curves = Curves::new(geometry, &LAYERS, &policies, ColdStart::Miss).unwrap();
    drawing_agrees(&trace, &curves, |curves| {
        Ok(curves.finish().into_iter().map(|(_, curve)| curve.hit_rates).collect::<Vec<_>>())
    });
    let by_domain = ByDomain::new(&Srp::new(geometry, &[3]).unwrap(), DOMAINS);
    drawing_agrees(&trace, &by_domain, |srp| {
        let report = srp.finish()?.remove(&3).unwrap();
        Ok(((report.relative(|report| report.model.srp), report.correlation()), report))
    });
    let load = ByDomain::new(&LoadBalance::new(geometry), DOMAINS);
    drawing_agrees(&trace, &load, |load| {
        let load = load.finish()?;
        Ok(((load.specialization(), load.correlation()), load))
    });
    let both = (Srp::new(geometry, &[3]).unwrap(), load);
    drawing_agrees(&trace, &both, |(srp, load)| {
        Ok(vec![srp.finish()?[&3].correlation_with(&load.finish()?.specialization())])
    });
    let reference: Vec<Vec<ExpertId>> = (0..3).map(|first| vec![ExpertId(first), ExpertId(first + 3)]).collect();
    let routing = ReferenceRouting::new(geometry, &LAYERS, &reference, 5).unwrap();
    drawing_agrees(&trace, &routing, |routing| {
        let layers = routing.finish();
        let above = layers.iter().map(|layer| layer.router.nmi - layer.shuffled.nmi).collect::<Vec<_>>();
        Ok((layers, above))
    });
}

#[test]
fn saturation_has_the_interval_of_its_pairs() {
    let (earlier, later) = (corpus(30, 1), corpus(30, 2));
    let mut saturation = Resampled::new(Saturation::new(earlier.geometry()));
    let mut pairs = Vec::new();
    for index in 0..30 {
        let (earlier, later) = (earlier.sequence(index).unwrap(), later.sequence(index).unwrap());
        saturation.update_with(&later, |saturation| saturation.update(&earlier, &later)).unwrap();
        let mut one = Saturation::new(later.geometry());
        one.update(&earlier, &later).unwrap();
        pairs.push(one.finish()[1]);
    }
    let found = saturation.finish(&Bootstrap::default(), |saturation| Ok(saturation.finish())).unwrap();
    let mean = pairs.iter().sum::<f64>() / 30.0;
    let deviation = (pairs.iter().map(|pair| (pair - mean).powi(2)).sum::<f64>() / 29.0).sqrt();
    assert!((found.value[1] - mean).abs() < 1e-12);
    // All pairs are of equal length, so the figure is a mean: 3.92 standard errors.
    let expected = 3.92 * deviation / 30f64.sqrt();
    assert!(((found.high[1] - found.low[1]) / expected - 1.0).abs() < 0.15, "{found:?} {expected}");
}

fn options(windows: Vec<usize>) -> MetricsOptions {
    MetricsOptions { windows, pool: true, ..MetricsOptions::default() }
}

/// The fast way is the general one, to the rounding of hit rates.
fn fast_agrees(trace: &MemoryTrace, options: &MetricsOptions, bootstrap: &Bootstrap) {
    let fast = accumulate(trace, &TraceIntervals::new(trace.geometry(), options).unwrap(), &|_| {}).unwrap();
    let metrics = TraceMetrics::new(trace.geometry(), options).unwrap();
    let general = accumulate(trace, &Resampled::new(metrics), &|_| {}).unwrap();
    let expected = general.finish(bootstrap, TraceMetrics::finish).unwrap();
    let found: Intervals<_> = fast.finish(bootstrap).unwrap();
    assert_eq!(found.value, expected.value);
    let like = &expected.value;
    for (found, expected) in [(&found.low, &expected.low), (&found.high, &expected.high)] {
        for (at, (found, expected)) in figures_of(found, like).into_iter().zip(figures_of(expected, like)).enumerate() {
            assert!(
                (found - expected).abs() < 1e-6 || (found.is_nan() && expected.is_nan()),
                "{at} {found} {expected}"
            );
        }
    }
}

#[test]
fn intervals_of_a_trace_are_those_of_resampled_metrics() {
    let bootstrap = Bootstrap::new(300, 0.9, 5).unwrap();
    for sequences in [12, 96, 97, 300] {
        fast_agrees(&corpus(sequences, 4), &options(vec![3, 8, 20]), &bootstrap);
    }
    // Not in order, and not all.
    let layers = Some(vec![LayerId(1)]);
    fast_agrees(&corpus(40, 4), &MetricsOptions { layers, ..options(vec![8, 3]) }, &bootstrap);
}

/// A resample leaves out a layer that none of its sequences uses: one sequence uses the decoder, four the encoder.
#[test]
fn layers_that_a_resample_does_not_use_are_left_out_of_it() {
    let corpus = corpus(9, 4);
    let mut sequences = corpus.sequences().to_vec();
    for (number, sequence) in sequences.iter_mut().enumerate() {
        for token in sequence.experts.chunks_mut(4) {
            let empty = if number == 5 { 0..2 } else { 2..4 };
            token[empty].fill(moe_trace::EMPTY_SLOT);
            if number > 5 || number == 0 {
                token.fill(moe_trace::EMPTY_SLOT);
            }
        }
    }
    let trace = memory(corpus.geometry(), sequences);
    let (options, bootstrap) = (options(vec![3, 8]), Bootstrap::new(300, 0.9, 5).unwrap());
    let fast = accumulate(&trace, &TraceIntervals::new(trace.geometry(), &options).unwrap(), &|_| {}).unwrap();
    let general = Resampled::new(TraceMetrics::new(trace.geometry(), &options).unwrap());
    let general = accumulate(&trace, &general, &|_| {}).unwrap();
    let (fast, general) = (fast.finish(&bootstrap).unwrap(), general.finish(&bootstrap, TraceMetrics::finish).unwrap());
    for (fast, general) in [(&fast.low, &general.low), (&fast.value, &general.value), (&fast.high, &general.high)] {
        let srp = |report: &lrc_metrics::MetricsReport| {
            let stacks = [&report.model, report.encoder.as_ref().unwrap(), report.decoder.as_ref().unwrap()];
            let srp = stacks.map(|stack| stack.srp.clone()).to_vec();
            figures_of(&srp, &srp)
        };
        let close = |(fast, general): (f64, f64)| (fast - general).abs() < 1e-12;
        assert!(srp(fast).into_iter().zip(srp(general)).all(close), "{:?} {:?}", srp(fast), srp(general));
    }
}

/// Of 200 traces of one population, the share whose interval holds the figure of the population is what was asked for, with
/// few sequences and with groups of them, for experts and for the model; even if most sequences have a twin.
#[test]
fn intervals_cover() {
    let geometry = Geometry::decoder(1, 8, 2).unwrap();
    let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
    for tokens in [4, 20] {
        let population = synthetic(&geometry, 2000, tokens, 1).sequences().to_vec();
        let report = |sequences: Vec<moe_trace::SequenceBuf>| {
            let empty = TraceIntervals::new(&geometry, &options).unwrap();
            accumulate(&memory(&geometry, sequences), &empty, &|_| {}).unwrap()
        };
        let truth = report(population.clone()).value().unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for count in [60, 400] {
            let (mut model, mut experts, mut rates) = (0, 0, 0);
            let trials = 200;
            for _ in 0..trials {
                let drawn = (0..count).map(|_| population[random.random_range(0..population.len())].clone()).collect();
                let found = report(drawn).finish(&Bootstrap::new(300, 0.95, 0).unwrap()).unwrap();
                let holds = |figure: &dyn Fn(&lrc_metrics::MetricsReport) -> f64| {
                    usize::from((figure(&found.low)..=figure(&found.high)).contains(&figure(&truth)))
                };
                model += holds(&|report| report.model.srp[&4].srp);
                experts +=
                    (0..8).map(|expert| holds(&|report| report.layers[0].experts[expert].srp[&4].srp)).sum::<usize>();
                rates += holds(&|report| report.model.curves[&CurvePolicy::Lru][1]);
            }
            // 190 expected of 200, with a standard deviation of 3; bounds from 300 resamples lose a little.
            assert!((176..=200).contains(&model), "{tokens} {count}: model {model}");
            assert!((176 * 8..=200 * 8).contains(&experts), "{tokens} {count}: experts {experts}");
            assert!((172..=200).contains(&rates), "{tokens} {count}: rates {rates}");
        }
    }
}

/// The interval of a rate is as wide as its standard error says, whatever the number of sequences and however alike.
#[test]
fn widths_are_those_of_the_standard_error() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let options = MetricsOptions { windows: vec![1], ..MetricsOptions::default() };
    for count in [100, 600, 4000] {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let one = |_| {
            let expert = random.random_range(0..4u16);
            moe_trace::SequenceBuf::from_experts(&geometry, vec![expert], moe_trace::Phase::Decode).unwrap()
        };
        let trace = memory(&geometry, (0..count).map(one).collect());
        let metrics = accumulate(&trace, &TraceIntervals::new(&geometry, &options).unwrap(), &|_| {}).unwrap();
        let report = metrics.finish(&Bootstrap::default()).unwrap();
        let rate = |report: &lrc_metrics::MetricsReport| report.layers[0].load.activation_rates[2];
        let share = rate(&report.value);
        let expected = 3.92 * (share * (1.0 - share) / f64::from(count)).sqrt();
        let found = rate(&report.high) - rate(&report.low);
        assert!((found / expected - 1.0).abs() < 0.2, "{count}: {found} {expected}");
    }
}

/// What one sequence alone is long enough for has no interval.
#[test]
fn a_figure_of_one_sequence_has_no_interval() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let mut trace = synthetic(&geometry, 20, 20, 3);
    trace.push(synthetic(&geometry, 1, 60, 4).sequences()[0].clone()).unwrap();
    let metrics = accumulate(&trace, &TraceIntervals::new(&geometry, &options(vec![4, 40])).unwrap(), &|_| {}).unwrap();
    let report = metrics.finish(&Bootstrap::default()).unwrap();
    assert!(report.value.model.srp[&40].srp > 0.0);
    assert!(report.low.model.srp[&40].srp.is_nan() && report.high.layers[0].experts[1].srp[&40].rho.is_nan());
    assert!(report.low.model.srp[&4].srp < report.high.model.srp[&4].srp);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn folds_agree(trace in trace(), window in 1usize..6) {
        let empty = TraceIntervals::new(trace.geometry(), &options(vec![window])).unwrap();
        let bootstrap = Bootstrap::new(40, 0.9, 5).unwrap();
        // Bounds that do not exist are not equal to themselves.
        every_fold_agrees(&trace, &empty, |metrics| format!("{:?}", metrics.finish(&bootstrap)));
        let resampled = Resampled::new(Srp::new(trace.geometry(), &[window]).unwrap());
        every_fold_agrees(&trace, &resampled, |srp| format!("{:?}", srp.finish(&bootstrap, Srp::finish)));
    }
}

#[test]
fn many_sequences_fold_alike() {
    let bootstrap = Bootstrap::new(40, 0.9, 5).unwrap();
    let trace = corpus(300, 2);
    let empty = TraceIntervals::new(trace.geometry(), &options(vec![3])).unwrap();
    every_fold_agrees(&trace, &empty, |metrics| metrics.finish(&bootstrap).unwrap());
    let resampled = Resampled::new(Srp::new(trace.geometry(), &[3]).unwrap());
    every_fold_agrees(&trace, &resampled, |srp| srp.finish(&bootstrap, Srp::finish).unwrap());
}

#[test]
fn long_windows_and_few_sequences_say_so() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let error = TraceIntervals::new(&geometry, &options(vec![4, 5000])).unwrap_err().to_string();
    assert_eq!(error, "window length is 5000 tokens, the limit is 4096");
    let trace = synthetic(&geometry, 1, 20, 3);
    let empty = TraceIntervals::new(&geometry, &options(vec![4])).unwrap();
    let one = accumulate(&trace, &empty, &|_| {}).unwrap();
    let few = "a bootstrap needs at least 2 sequences, there are 1";
    assert_eq!(one.finish(&Bootstrap::default()).unwrap_err().to_string(), few);
    let load = Resampled::new(LoadBalance::new(&geometry));
    let load = accumulate(&trace, &load, &|_| {}).unwrap();
    let report = |load: &LoadBalance| Ok(load.finish());
    assert_eq!(load.finish(&Bootstrap::default(), report).unwrap_err().to_string(), few);
    let other = TraceIntervals::new(&geometry, &options(vec![3])).unwrap();
    let error = empty.clone().merge(&other).unwrap_err().to_string();
    assert_eq!(error, "accumulators do not belong together: list of window lengths is [3], expected [4]");
}
