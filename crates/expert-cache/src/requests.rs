//! The requests of a whole trace to one pool, held in memory.

use moe_trace::{LayerId, Phase, RoutingSource};

use crate::{Demand, ExpertKey, Pool, Request, RequestBuffer, Result, Serving, for_each_request};

/// The requests of a whole trace to one pool, held in memory: what policies that know the future are built from, and what
/// many simulations can replay.
///
/// ```
/// use expert_cache::{Pool, Requests};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 4, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![3, 0, 1, 3], Phase::Decode)?)?;
/// let requests = Requests::from_source(&trace, &Pool::model(&geometry))?;
/// assert_eq!((requests.len(), requests.members(0), requests.members(1)), (2, &[0, 3][..], &[1, 3][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Requests {
    universe: usize,
    layers: usize,
    heads: Vec<Head>,
    /// Members of all requests, ascending within a request.
    members: Vec<u32>,
    /// Tokens that want each member.
    uses: Vec<u32>,
    /// Router weight of each member; NaN in requests without weights.
    mass: Vec<f32>,
    /// Requests made when each sequence ended.
    sequence_ends: Vec<usize>,
}

/// A request but for its members.
#[derive(Clone, Copy, Debug)]
struct Head {
    layer: LayerId,
    phase: Phase,
    weighted: bool,
    tokens: u32,
    /// End of its members.
    end: usize,
}

impl Requests {
    /// Collects the requests of a source whose sequences are served one after the other.
    ///
    /// # Errors
    /// As [`for_each_request`].
    pub fn from_source(source: &dyn RoutingSource, pool: &Pool) -> Result<Requests> {
        Requests::served(source, pool, Serving::default())
    }

    /// Collects the requests of a source.
    ///
    /// # Errors
    /// As [`for_each_request`].
    pub fn served(source: &dyn RoutingSource, pool: &Pool, serving: Serving) -> Result<Requests> {
        let mut requests = Requests {
            universe: pool.universe(),
            layers: pool.layers().len(),
            heads: Vec::new(),
            members: Vec::new(),
            uses: Vec::new(),
            mass: Vec::new(),
            sequence_ends: Vec::new(),
        };
        for_each_request(source, std::slice::from_ref(pool), serving, |demand| {
            match demand {
                Demand::Request { request, .. } => requests.push(&request),
                Demand::SequenceEnd => requests.sequence_ends.push(requests.heads.len()),
            }
            Ok(())
        })?;
        Ok(requests)
    }

    fn push(&mut self, request: &Request<'_>) {
        let mut weighted = true;
        for member in request.wanted().iter() {
            let key = ExpertKey::from_index(member);
            self.members.push(key.0);
            self.uses.push(request.uses(key));
            weighted &= request.mass(key).is_some();
            self.mass.push(request.mass(key).unwrap_or(f32::NAN));
        }
        let (layer, phase, tokens, end) = (request.layer(), request.phase(), request.tokens(), self.members.len());
        self.heads.push(Head { layer, phase, weighted, tokens, end });
    }

    /// Number of experts in the pool.
    pub fn universe(&self) -> usize {
        self.universe
    }

    /// Requests that one token makes: the number of layers in the pool.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Members of a request in ascending order; empty behind the last request.
    pub fn members(&self, request: usize) -> &[u32] {
        &self.members[self.range(request)]
    }

    /// The layer that makes a request; `None` behind the last request.
    pub fn layer(&self, request: usize) -> Option<LayerId> {
        self.heads.get(request).map(|head| head.layer)
    }

    /// Calls `visit` with every request and sequence end, as [`for_each_request`] does; the pool has number 0.
    ///
    /// # Errors
    /// What `visit` returns.
    pub fn replay(&self, mut visit: impl FnMut(Demand<'_>) -> Result<()>) -> Result<()> {
        let mut buffer = RequestBuffer::new(self.universe);
        let mut ends = self.sequence_ends.iter().copied().peekable();
        for (number, head) in self.heads.iter().enumerate() {
            while ends.next_if_eq(&number).is_some() {
                visit(Demand::SequenceEnd)?;
            }
            let range = self.range(number);
            let mass = head.weighted.then(|| &self.mass[range.clone()]);
            buffer.set(head.tokens, &self.members[range.clone()], &self.uses[range.clone()], mass);
            visit(Demand::Request { pool: 0, request: buffer.request(head.layer, head.phase) })?;
        }
        ends.try_for_each(|_| visit(Demand::SequenceEnd))
    }

    fn range(&self, request: usize) -> std::ops::Range<usize> {
        match self.heads.get(request) {
            Some(head) => request.checked_sub(1).map_or(0, |before| self.heads[before].end)..head.end,
            None => 0..0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use moe_trace::{Geometry, MemoryTrace, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::Partition;

    /// Two layers of 4 experts, top-1: a prompt of two tokens, then two decoded tokens.
    #[test]
    fn prefill_asks_once_and_decode_token_by_token() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let mut buf = SequenceBuf::from_experts(&geometry, vec![0, 3, 2, 3, 1, 1, 0, 2], Phase::Prefill).unwrap();
        buf.phases = vec![0, 0, 1, 1];
        let mut trace = MemoryTrace::new(geometry.clone());
        trace.push(buf).unwrap();
        let sets = |layers: &[u16]| {
            let pool = Pool::new(&geometry, layers.iter().copied().map(LayerId)).unwrap();
            let requests = Requests::from_source(&trace, &pool).unwrap();
            (0..requests.len()).map(|i| requests.members(i).to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(sets(&[0]), [vec![0, 2], vec![1], vec![0]]);
        assert_eq!(sets(&[1]), [vec![3], vec![1], vec![2]]);
        assert_eq!(sets(&[0, 1]), [vec![0, 2], vec![7], vec![1], vec![5], vec![0], vec![6]]);
    }

    /// A demand, owned: pool, layer, phase, tokens, and key, uses and mass of every member.
    type Owned = Option<(usize, LayerId, Phase, u32, Vec<(usize, u32, Option<f32>)>)>;

    fn owned(demand: Demand<'_>) -> Owned {
        let Demand::Request { pool, request } = demand else { return None };
        let member = |key: usize| {
            let expert = ExpertKey::from_index(key);
            (key, request.uses(expert), request.mass(expert))
        };
        let members = request.wanted().iter().map(member).collect();
        Some((pool, request.layer(), request.phase(), request.tokens(), members))
    }

    /// What one pass over `(sequence, token)` pairs asks, every member counted anew.
    fn naive_pass(trace: &MemoryTrace, pools: &[Pool], tokens: &[(usize, usize)], phase: Phase) -> Vec<Owned> {
        let mut demands = Vec::new();
        for layer in trace.geometry().layer_ids() {
            let Some(pool) = pools.iter().position(|pool| pool.layers().contains(&layer)) else { continue };
            let mut members = BTreeMap::new();
            for &(sequence, token) in tokens {
                let sequence = trace.sequence(sequence).unwrap();
                for (expert, weight) in sequence.weighted_experts(token, layer).unwrap() {
                    let key = pools[pool].key(layer, expert).unwrap().index();
                    let (uses, mass) = members.entry(key).or_insert((0, 0.0));
                    (*uses, *mass) = (*uses + 1, *mass + weight);
                }
            }
            let members = members.into_iter().map(|(key, (uses, mass))| (key, uses, Some(mass))).collect();
            demands.push(Some((pool, layer, phase, u32::try_from(tokens.len()).unwrap(), members)));
        }
        demands
    }

    /// The definition, with lists of tokens still to come.
    fn naive(trace: &MemoryTrace, pools: &[Pool], serving: Serving) -> Vec<Owned> {
        let tokens = |(index, sequence): (usize, &SequenceBuf)| {
            sequence.phases.iter().enumerate().map(|(token, &phase)| (index, token, phase)).collect::<VecDeque<_>>()
        };
        let mut waiting: VecDeque<_> = trace.sequences().iter().enumerate().map(tokens).collect();
        let mut running: Vec<VecDeque<(usize, usize, u8)>> = Vec::new();
        let mut demands = Vec::new();
        while !running.is_empty() || !waiting.is_empty() {
            let room = serving.batch() - running.len();
            running.extend(waiting.drain(..room.min(waiting.len())));
            for tokens in &mut running {
                let mut pass = Vec::new();
                while let Some(&(sequence, token, 0)) = tokens.front() {
                    pass.push((sequence, token));
                    tokens.pop_front();
                }
                if !pass.is_empty() {
                    demands.extend(naive_pass(trace, pools, &pass, Phase::Prefill));
                }
            }
            let mut pass = Vec::new();
            for tokens in &mut running {
                for _ in 0..serving.window() {
                    if let Some(&(sequence, token, 1)) = tokens.front() {
                        pass.push((sequence, token));
                        tokens.pop_front();
                    }
                }
            }
            if !pass.is_empty() {
                demands.extend(naive_pass(trace, pools, &pass, Phase::Decode));
            }
            let before = running.len();
            running.retain(|tokens| !tokens.is_empty());
            demands.extend((running.len()..before).map(|_| None));
        }
        demands
    }

    proptest! {
        /// Batches and windows, live and replayed, ask what the definition asks.
        #[test]
        fn batches_and_windows_agree_with_the_definition(
            raw in proptest::collection::vec(proptest::collection::vec((0u16..4, 0u16..4, 0u8..2), 0..12), 0..6),
            (batch, window) in (1usize..4, 1usize..4),
            together in any::<bool>(),
        ) {
            let geometry = Geometry::decoder(2, 4, 1).unwrap();
            let mut trace = MemoryTrace::new(geometry.clone());
            for tokens in raw {
                let experts: Vec<u16> = tokens.iter().flat_map(|&(first, second, _)| [first, second]).collect();
                let weights = experts.iter().map(|&expert| f32::from(expert) + 0.5).collect();
                let phases = tokens.iter().map(|&(_, _, phase)| phase).collect();
                trace.push(SequenceBuf { experts, weights: Some(weights), phases, ..SequenceBuf::default() }).unwrap();
            }
            let serving = Serving::new(batch, window).unwrap();
            let pools = if together { Partition::global(&geometry) } else { Partition::per_layer(&geometry) }.into_pools();
            let mut demands = Vec::new();
            for_each_request(&trace, &pools, serving, |demand| { demands.push(owned(demand)); Ok(()) }).unwrap();
            prop_assert_eq!(&demands, &naive(&trace, &pools, serving));
            for (number, pool) in pools.iter().enumerate() {
                let mut replayed = Vec::new();
                let requests = Requests::served(&trace, pool, serving).unwrap();
                requests.replay(|demand| { replayed.push(owned(demand)); Ok(()) }).unwrap();
                let ours = demands.iter().filter(|demand| demand.as_ref().is_none_or(|demand| demand.0 == number));
                let as_first = |demand: &Owned| demand.clone().map(|demand| (0, demand.1, demand.2, demand.3, demand.4));
                let ours: Vec<Owned> = ours.map(as_first).collect();
                prop_assert_eq!(replayed, ours);
            }
        }
    }
}
