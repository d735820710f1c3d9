//! Once warm, serving requests allocates nothing, whatever the policy.

#![expect(unsafe_code, reason = "a counting allocator implements an unsafe trait; it hands everything to the system's")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use expert_cache::{ExpertCache, ExpertKey, Oversize, PolicyKind, Pool, PoolShape, RequestBuffer, Requests};
use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged; the counter is a thread-local of constant
// initialization without a destructor, which does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LAYERS: usize = 4;
const EXPERTS: usize = 32;
const TOP_K: usize = 4;
const TOKENS: usize = 2000;
const SHAPE: PoolShape = PoolShape { layers: LAYERS, experts: EXPERTS };

/// Routing that prefers low experts, and other ones after a while.
fn routing() -> Vec<u16> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut ids = Vec::new();
    for token in 0..TOKENS {
        for _ in 0..LAYERS {
            let pool = random.random_range(TOP_K..=EXPERTS);
            let shift = token / 500;
            ids.extend(
                index::sample(&mut random, pool, TOP_K).iter().map(|e| u16::try_from((e + shift) % EXPERTS).unwrap()),
            );
        }
    }
    ids
}

#[test]
fn no_policy_allocates_after_warm_up() {
    let geometry = Geometry::decoder(LAYERS, EXPERTS, TOP_K).unwrap();
    let ids = routing();
    let mut trace = MemoryTrace::new(geometry.clone());
    trace.push(SequenceBuf::from_experts(&geometry, ids.clone(), Phase::Decode).unwrap()).unwrap();
    let future = Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).unwrap());
    for &kind in PolicyKind::all() {
        for capacity in [LAYERS * TOP_K, LAYERS * EXPERTS / 2] {
            let policy = kind.build(SHAPE, capacity, Some(&future)).unwrap();
            let mut cache = ExpertCache::new(policy, SHAPE.universe(), capacity, Oversize::Waves).unwrap();
            let mut buffer = RequestBuffer::new(SHAPE.universe());
            let mut warm = 0;
            for (number, wanted) in ids.chunks_exact(TOP_K).enumerate() {
                if number == TOKENS * LAYERS / 4 {
                    warm = ALLOCATIONS.get();
                }
                let layer = number % LAYERS;
                buffer.clear();
                for &expert in wanted {
                    let key = u32::try_from(layer * EXPERTS + usize::from(expert)).unwrap();
                    buffer.want(ExpertKey(key), Some(0.25));
                }
                let layer = LayerId(u16::try_from(layer).unwrap());
                cache.request(buffer.request(layer, Phase::Decode)).unwrap();
                if number % (100 * LAYERS) == 0 {
                    cache.sequence_end();
                }
            }
            assert_eq!(ALLOCATIONS.get() - warm, 0, "{kind} at capacity {capacity}");
        }
    }
}
