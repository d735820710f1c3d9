//! Serves a file of requests with policies at several capacities and prints hits and time as CSV.
//!
//! The file is in libCacheSim's oracleGeneral format: records of 24 bytes, little-endian: time u32, id u64, size u32, next
//! access i64. Only the ids are read; `tools/libcachesim/compare.py` lets libCacheSim read the same file.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use expert_cache::{EvictionPolicy, ExpertCache, Oversize, PolicyKind, Pool, PoolShape, Requests};
use moe_trace::{EMPTY_SLOT, ExpertSet, Geometry, MemoryTrace, Phase, SequenceBuf};

const RECORD_BYTES: usize = 24;

#[derive(Parser)]
#[command(about = "Serves requests with policies and prints hits and time as CSV.")]
struct Arguments {
    /// Requests in libCacheSim's oracleGeneral format.
    requests: PathBuf,
    /// Policies by name; all that never bypass if none is given.
    #[arg(long = "policy", value_delimiter = ',')]
    policies: Vec<PolicyKind>,
    /// Slots.
    #[arg(long = "capacity", value_delimiter = ',', required = true)]
    capacities: Vec<usize>,
    /// Records that make one request; an expert that occurs twice in it counts once.
    #[arg(long, default_value_t = 1)]
    width: usize,
    /// Runs, of which the fastest is reported.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
}

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let ids = read_ids(&arguments.requests)?;
    let universe = usize::from(ids.iter().max().copied().ok_or("the file has no requests")?) + 1;
    let width = arguments.width.clamp(1, ids.len());
    let future = future(&ids, universe, width)?;
    let accesses: usize = (0..future.len()).map(|request| future.members(request).len()).sum();
    let policies = match arguments.policies.as_slice() {
        [] => PolicyKind::all().iter().copied().filter(|kind| !kind.needs().bypass).collect(),
        named => named.to_vec(),
    };
    println!("policy,capacity,accesses,hits,seconds");
    for kind in policies {
        for &capacity in &arguments.capacities {
            let mut best = f64::INFINITY;
            let mut hits = 0;
            for _ in 0..arguments.repeats.max(1) {
                let policy = kind.build(PoolShape { layers: 1, experts: universe }, capacity, Some(&future))?;
                let mut cache = ExpertCache::new(policy, universe, capacity, Oversize::Waves)?;
                let start = Instant::now();
                hits = count(&mut cache, &ids, universe, width)?;
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("{kind},{capacity},{accesses},{hits},{best:.6}");
        }
    }
    Ok(())
}

fn count(
    cache: &mut ExpertCache<Box<dyn EvictionPolicy>>,
    ids: &[u16],
    universe: usize,
    width: usize,
) -> Result<usize, expert_cache::CacheError> {
    let mut wanted = ExpertSet::new(universe);
    let mut hits = 0;
    for request in ids.chunks(width) {
        request.iter().for_each(|&id| _ = wanted.insert(usize::from(id)));
        hits += cache.request(&wanted)?.hits().len();
        request.iter().for_each(|&id| _ = wanted.remove(usize::from(id)));
    }
    Ok(hits)
}

fn read_ids(path: &PathBuf) -> Result<Vec<u16>, Error> {
    let bytes = std::fs::read(path)?;
    let (records, []) = bytes.as_chunks::<RECORD_BYTES>() else {
        return Err(format!("{} has {} bytes, not a multiple of {RECORD_BYTES}", path.display(), bytes.len()).into());
    };
    let id = |record: &[u8; RECORD_BYTES]| {
        let id = u64::from_le_bytes(record[4..12].try_into()?);
        u16::try_from(id).map_err(|_| format!("id {id} is above {}", u16::MAX).into())
    };
    records.iter().map(id).collect()
}

fn future(ids: &[u16], universe: usize, width: usize) -> Result<Arc<Requests>, Error> {
    let geometry = Geometry::decoder(1, universe, width)?;
    let mut slots = Vec::new();
    for request in ids.chunks(width) {
        let distinct: BTreeSet<u16> = request.iter().copied().collect();
        slots.extend(distinct.into_iter().chain(std::iter::repeat(EMPTY_SLOT)).take(width));
    }
    let mut trace = MemoryTrace::new(geometry.clone());
    trace.push(SequenceBuf::from_experts(&geometry, slots, Phase::Decode)?)?;
    Ok(Arc::new(Requests::from_source(&trace, &Pool::model(&geometry))?))
}
