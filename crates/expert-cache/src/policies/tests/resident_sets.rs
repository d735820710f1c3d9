//! Who is resident after every request, worked by hand.

use super::suite::{cache, serve};
use crate::cache::Oversize;
use crate::policies::PolicyKind;
use crate::policy::PoolShape;

const POOL: PoolShape = PoolShape { layers: 1, experts: 8 };
/// Keys 0 to 3, 4 to 7, 8 to 11.
const THREE_LAYERS: PoolShape = PoolShape { layers: 3, experts: 4 };

fn check<const N: usize>(name: &str, shape: PoolShape, capacity: usize, steps: [(&[usize], &[usize]); N]) {
    let kind: PolicyKind = name.parse().unwrap();
    let history: Vec<Vec<usize>> = steps.iter().map(|(wanted, _)| wanted.to_vec()).collect();
    let mut cache = cache(kind, shape, capacity, Oversize::Waves, &history);
    for (number, (wanted, resident)) in steps.into_iter().enumerate() {
        serve(&mut cache, shape, wanted);
        assert_eq!(cache.resident().iter().collect::<Vec<_>>(), resident, "{name} after request {number}");
    }
}

/// Requests for one or two experts with three slots, and who is to be resident.
fn pairs(name: &str, last_three: [&[usize]; 3]) {
    let [third, fourth, fifth] = last_three;
    let steps: [(&[usize], &[usize]); 5] =
        [(&[0, 1], &[0, 1]), (&[2], &[0, 1, 2]), (&[0, 3], third), (&[4], fourth), (&[1], fifth)];
    check(name, POOL, 3, steps);
}

#[test]
fn sets_of_two() {
    // 1 is oldest when 3 comes; 2 when 4 comes; 0, which hit, is older than 3, which was loaded in the same request.
    pairs("lru", [&[0, 2, 3], &[0, 3, 4], &[1, 3, 4]]);
    // 0 has two uses and stays; among those with one the oldest leaves: 1, then 2, then 3.
    pairs("lfu", [&[0, 2, 3], &[0, 3, 4], &[0, 1, 4]]);
    // 0 is pinned when 3 comes, so 1 leaves, the next in order of loading; then 0; then 2.
    pairs("fifo", [&[0, 2, 3], &[2, 3, 4], &[1, 3, 4]]);
    // 1 comes again and is kept: 2 leaves, then 0 (never again, lowest key).
    pairs("belady", [&[0, 1, 3], &[1, 3, 4], &[1, 3, 4]]);
    // 3 and 4 never come again and are not loaded, nor is 2.
    let steps: [(&[usize], &[usize]); 5] =
        [(&[0, 1], &[0, 1]), (&[2], &[0, 1]), (&[0, 3], &[0, 1]), (&[4], &[0, 1]), (&[1], &[0, 1])];
    check("belady-bypass", POOL, 3, steps);
    // A window of two requests sees 1 only when 4 is served; by then 1 has left.
    pairs("look-ahead-2", [&[0, 2, 3], &[0, 3, 4], &[1, 3, 4]]);
}

#[test]
fn frequencies() {
    let steps = |fifth: &'static [usize], sixth: &'static [usize]| -> [(&[usize], &[usize]); 6] {
        [(&[0], &[0]), (&[0], &[0]), (&[1], &[0, 1]), (&[2], &[0, 2]), (&[1], fifth), (&[2], sixth)]
    };
    // 2 has one use when 1 comes back; when 2 comes back, 0 and 1 have two each, and those of 0 are older.
    check("lfu", POOL, 2, steps(&[0, 1], &[1, 2]));
    // When 2 comes back, 1 has one use since it was loaded.
    check("lfu-in-cache", POOL, 2, steps(&[0, 1], &[0, 2]));
    // The victim 1 had value 1, so 2 enters with 2, which is what the older 0 has.
    check("lfu-aged", POOL, 2, steps(&[1, 2], &[1, 2]));
    // A token is worth half the next: three old uses of 0 (14) are less than one of 1 (16).
    let steps = |fifth: &'static [usize]| -> [(&[usize], &[usize]); 5] {
        [(&[0], &[0]), (&[0], &[0]), (&[0], &[0]), (&[1], &[0, 1]), (&[2], fifth)]
    };
    check("lfru-1", POOL, 2, steps(&[1, 2]));
    check("lfru-32", POOL, 2, steps(&[0, 2]));
    // 0 came with weight 0.5 and 1 with 0.25; then 0 and 2 have 0.5 each, and that of 0 is older.
    check("router-mass-32", POOL, 2, [(&[0, 1], &[0, 1]), (&[2], &[0, 2]), (&[1], &[1, 2])]);
}

#[test]
fn second_chances() {
    let steps = |last: &'static [usize]| -> [(&[usize], &[usize]); 7] {
        let three: &[usize] = &[0, 1, 2];
        [
            (&[0], &[0]),
            (&[1], &[0, 1]),
            (&[2], three),
            (&[0], three),
            (&[3], &[0, 2, 3]),
            (&[4], &[0, 3, 4]),
            (&[5], last),
        ]
    };
    // 0 has a mark and is passed, 1 leaves, then 2; the hand comes to 0 again before 3, as 0 went behind 2.
    check("clock", POOL, 3, steps(&[3, 4, 5]));
    // The same, but 0 keeps its place behind the hand, and 3 leaves.
    check("sieve", POOL, 3, steps(&[0, 4, 5]));
}

#[test]
fn segments() {
    // Two newcomers on probation, then two in the free protected half. The hit moves 0 there and 2 back behind 1.
    let four: &[usize] = &[0, 1, 2, 3];
    let fill: [(&[usize], &[usize]); 4] = [(&[0], &[0]), (&[1], &[0, 1]), (&[2], &[0, 1, 2]), (&[3], four)];
    let [a, b, c, d] = fill;
    check("slru", POOL, 4, [a, b, c, d, (&[0], four), (&[4], &[0, 2, 3, 4]), (&[5], &[0, 3, 4, 5])]);
    // 0 leaves the queue, is remembered and comes back for good; the queue passes: 1, 2, 3. By then 1 is forgotten.
    let steps: [(&[usize], &[usize]); 5] = [
        (&[4], &[1, 2, 3, 4]),
        (&[0], &[0, 2, 3, 4]),
        (&[5], &[0, 3, 4, 5]),
        (&[6], &[0, 4, 5, 6]),
        (&[1], &[0, 1, 5, 6]),
    ];
    let [e, f, g, h, i] = steps;
    check("2q", POOL, 4, [a, b, c, d, e, f, g, h, i]);
    // The small queue has one slot, so 1 to 3 fill the main one. 0 leaves, comes back into the main queue for 4; that is
    // one too many there, and 1, which was used, goes round: 2 leaves.
    check("s3-fifo", POOL, 4, [a, b, c, d, (&[4], &[1, 2, 3, 4]), (&[0], four), (&[1], four), (&[5], &[0, 1, 3, 5])]);
    // 2 is in the window, 0 protected, 1 on probation. 2 has one request, as 1 has, and loses; 3 has two and wins.
    let three: &[usize] = &[0, 1, 2];
    let steps: [(&[usize], &[usize]); 4] = [(&[0], three), (&[3], &[0, 1, 3]), (&[3], &[0, 1, 3]), (&[4], &[0, 3, 4])];
    let [e, f, g, h] = steps;
    check("w-tiny-lfu", POOL, 3, [a, b, c, e, f, g, h]);
}

#[test]
fn counters_stop_at_15() {
    // 1 and 2 are protected, 4 takes the place of 0 when it comes; when 5 comes, 4 with its 17 requests must beat 3.
    let resident = |times: usize| {
        let mut cache = cache(PolicyKind::WTinyLfu, POOL, 4, Oversize::Waves, &[]);
        for wanted in [&[0, 1, 2], &vec![3; times][..], &[1, 2], &[4; 17], &[5]].concat() {
            serve(&mut cache, POOL, &[wanted]);
        }
        cache.resident().iter().collect::<Vec<_>>()
    };
    assert_eq!(resident(14), [1, 2, 4, 5]);
    assert_eq!(resident(15), [1, 2, 3, 5]);
}

#[test]
fn histories() {
    // T1 = 1, T2 = 0 when 2 comes: T1 gives 1 to B1. 1 comes back: the share of T1 becomes 1, T2 gives 0 to B2. 0 comes
    // back: the share becomes 0, T1 gives 2.
    let steps: [(&[usize], &[usize]); 6] =
        [(&[0], &[0]), (&[1], &[0, 1]), (&[0], &[0, 1]), (&[2], &[0, 2]), (&[1], &[1, 2]), (&[0], &[0, 1])];
    check("arc", POOL, 2, steps);
    // 0 and 1 are LIR; 2, then 3, take the one HIR slot. 2 is still in the stack when it comes back: it becomes LIR, 0 takes
    // the HIR slot from 3, and leaves when 4 comes.
    let steps: [(&[usize], &[usize]); 6] =
        [(&[0], &[0]), (&[1], &[0, 1]), (&[2], &[0, 1, 2]), (&[3], &[0, 1, 3]), (&[2], &[0, 1, 2]), (&[4], &[1, 2, 4])];
    check("lirs", POOL, 3, steps);
}

#[test]
fn layers_in_a_cycle() {
    // Nobody is stale, all are of the same age: the layer that just ran is the last to run again, so 4 leaves for 8 and 0
    // for 4. LRU would evict 0 for 8, 4 for 0, 8 for 4, and never hit.
    let steps: [(&[usize], &[usize]); 6] =
        [(&[0], &[0]), (&[4], &[0, 4]), (&[8], &[0, 8]), (&[0], &[0, 8]), (&[4], &[4, 8]), (&[8], &[4, 8])];
    check("least-stale", THREE_LAYERS, 2, steps);
    check("layer-lru", THREE_LAYERS, 2, steps);
    // Layer 0 ran without 0, then without 1; layer 1 without 4. These leave in the order in which they became stale.
    let steps: [(&[usize], &[usize]); 6] =
        [(&[0], &[0]), (&[4], &[0, 4]), (&[1], &[0, 1, 4]), (&[4], &[0, 1, 4]), (&[2], &[1, 2, 4]), (&[5], &[2, 4, 5])];
    check("least-stale", THREE_LAYERS, 3, steps);
    // The same but for the end: when 5 comes, 1 and 4 went unused once each, and layer 1 is the last to run again.
    let [a, b, c, d, e, _] = steps;
    check("layer-lru", THREE_LAYERS, 3, [a, b, c, d, e, (&[5], &[1, 2, 5])]);
}

#[test]
fn bypasses() {
    // 1 and 2 are requested most.
    let steps: [(&[usize], &[usize]); 6] =
        [(&[0], &[]), (&[1], &[1]), (&[1], &[1]), (&[2], &[1, 2]), (&[2], &[1, 2]), (&[2], &[1, 2])];
    check("static-best-set", POOL, 2, steps);
    // 1 never comes again. 0 does not either after its hit, and leaves.
    let steps: [(&[usize], &[usize]); 5] = [(&[0], &[0]), (&[1], &[0]), (&[0], &[0]), (&[2], &[2]), (&[2], &[2])];
    check("belady-bypass", POOL, 1, steps);
    // 0 dwells for two more requests; then 1, with three uses, takes its place and dwells in turn.
    let steps: [(&[usize], &[usize]); 5] = [(&[0], &[0]), (&[1], &[0]), (&[1], &[0]), (&[1], &[1]), (&[0], &[1])];
    check("hysteresis-2", POOL, 1, steps);
}

#[test]
fn similar_sequences() {
    let kind = PolicyKind::ActivationAware { sequences: 2 };
    let mut cache = cache(kind, POOL, 2, Oversize::Waves, &[]);
    let mut resident = |wanted: usize| {
        serve(&mut cache, POOL, &[wanted]);
        let resident = cache.resident().iter().collect::<Vec<_>>();
        if [1, 5].contains(&wanted) {
            cache.sequence_end();
        }
        resident
    };
    // A first sequence uses 0 twice and 1 once.
    assert_eq!([0, 0, 1].map(&mut resident), [vec![0], vec![0], vec![0, 1]]);
    // In a second one the first is what is known: 0 is expected most. 4, used twice here, is still expected less.
    assert_eq!([4, 3, 4, 5].map(&mut resident), [vec![0, 4], vec![0, 3], vec![0, 4], vec![0, 5]]);
    // A third one begins like the second, in which 4 has the highest rate (2 of 4) and 0 none.
    assert_eq!([4, 3, 6].map(&mut resident), [vec![4, 5], vec![3, 4], vec![4, 6]]);
}

#[test]
fn equally_similar_sequences() {
    let mut cache = cache(PolicyKind::ActivationAware { sequences: 2 }, POOL, 2, Oversize::Waves, &[]);
    for expert in [0, 1] {
        serve(&mut cache, POOL, &[expert]);
        cache.sequence_end();
    }
    // 5 is in neither of them: the last one serves, in which 1 was used.
    serve(&mut cache, POOL, &[5]);
    assert_eq!(cache.resident().iter().collect::<Vec<_>>(), [1, 5]);
}

/// Whoever is drawn is drawn uniformly: of 4,000 victims among four, each is about a quarter (standard deviation 27).
#[test]
fn random_choices_are_uniform_and_repeatable() {
    let victims = |seed: u64| {
        let mut cache = cache(PolicyKind::Random { seed }, POOL, 5, Oversize::Waves, &[]);
        let mut victims = Vec::new();
        serve(&mut cache, POOL, &[0, 1, 2, 3, 4]);
        for _ in 0..4000 {
            let absent = (0..8).find(|&expert| !cache.resident().contains(expert)).unwrap();
            let pinned = cache.resident().iter().last().unwrap();
            let wanted = [absent.min(pinned), absent.max(pinned)];
            let rank = |victim: usize| cache.resident().iter().position(|expert| expert == victim).unwrap();
            let before =
                (0..8).map(|expert| cache.resident().contains(expert).then(|| rank(expert))).collect::<Vec<_>>();
            let plan = serve(&mut cache, POOL, &wanted);
            victims.push(before[plan.evicted(&plan.loads()[0]).unwrap()[0].key.index()].unwrap());
        }
        victims
    };
    assert_eq!(victims(1), victims(1));
    assert_ne!(victims(1), victims(2));
    for rank in 0..4 {
        let count = victims(1).iter().filter(|&&victim| victim == rank).count();
        assert!((880..1120).contains(&count), "{count} of 4000 at rank {rank}");
    }
}
