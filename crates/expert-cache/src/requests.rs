//! The stream of expert sets that a cache is asked for.

use moe_trace::{Geometry, Phase, RoutingSource, Sequence};

use crate::{CacheError, Pool, Request, RequestBuffer, Result};

/// Calls `visit` with every request that serving `sequence` makes to a pool, in order of execution.
///
/// A run of prefill tokens asks once a layer, for the union of the tokens' experts; a decode token asks once a layer
/// for its own. `buffer` is scratch over the pool's universe.
///
/// # Panics
/// If `set` is over another universe, or the pool's layer does not exist.
pub fn for_each_request(
    sequence: &Sequence<'_>,
    pool: Pool,
    buffer: &mut RequestBuffer,
    mut visit: impl FnMut(&Request<'_>),
) {
    let geometry = sequence.geometry();
    let mut start = 0;
    while start < sequence.len() {
        let phase = sequence.phase(start);
        let mut end = start + 1;
        while phase == Phase::Prefill && end < sequence.len() && sequence.phase(end) == phase {
            end += 1;
        }
        for layer in pool.layers(geometry) {
            buffer.clear();
            for token in start..end {
                match sequence.weighted_experts(token, layer) {
                    Some(experts) => experts.for_each(|(expert, weight)| {
                        buffer.want(pool.key(geometry, layer, expert), Some(weight));
                    }),
                    None => sequence.experts(token, layer).for_each(|expert| {
                        buffer.want(pool.key(geometry, layer, expert), None);
                    }),
                }
            }
            visit(&buffer.request(layer, phase));
        }
        start = end;
    }
}

/// The requests of a whole trace to one pool, held in memory: what policies that know the future are built from.
#[derive(Clone, Debug)]
pub struct Requests {
    universe: usize,
    layers: usize,
    /// Members of all sets, ascending within a set.
    members: Vec<u32>,
    /// End of each set among the members.
    ends: Vec<usize>,
}

impl Requests {
    /// Collects the requests of a source, its sequences served one after the other.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`]; [`CacheError::Trace`] if a sequence cannot be read.
    pub fn from_source(source: &dyn RoutingSource, pool: Pool) -> Result<Requests> {
        check_pool(source.geometry(), pool)?;
        let universe = pool.universe(source.geometry());
        let mut requests = Requests {
            universe,
            layers: pool.layers(source.geometry()).count(),
            members: Vec::new(),
            ends: Vec::new(),
        };
        let mut buffer = RequestBuffer::new(universe);
        for index in 0..source.len() {
            for_each_request(&source.sequence(index)?, pool, &mut buffer, |request| {
                let members = request.wanted().iter().map(|member| u32::try_from(member).expect("keys are u32"));
                requests.members.extend(members);
                requests.ends.push(requests.members.len());
            });
        }
        Ok(requests)
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
        self.ends.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Members of a request in ascending order; empty behind the last request.
    pub fn members(&self, request: usize) -> &[u32] {
        let Some(&end) = self.ends.get(request) else { return &[] };
        let start = if request == 0 { 0 } else { self.ends[request - 1] };
        &self.members[start..end]
    }
}

pub(crate) fn check_pool(geometry: &Geometry, pool: Pool) -> Result<()> {
    match pool {
        Pool::Layer(layer) if layer.index() >= geometry.layers() => {
            Err(CacheError::LayerOutOfRange { layer: layer.index(), layers: geometry.layers() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{LayerId, MemoryTrace, SequenceBuf};

    use super::*;

    /// Two layers of 4 experts, top-1: a prompt of two tokens, then two decoded tokens.
    #[test]
    fn prefill_asks_once_and_decode_token_by_token() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let mut buf = SequenceBuf::from_experts(&geometry, vec![0, 3, 2, 3, 1, 1, 0, 2], Phase::Prefill).unwrap();
        buf.phases = vec![0, 0, 1, 1];
        let mut trace = MemoryTrace::new(geometry);
        trace.push(buf).unwrap();
        let sets = |pool| {
            let requests = Requests::from_source(&trace, pool).unwrap();
            (0..requests.len()).map(|i| requests.members(i).to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(sets(Pool::Layer(LayerId(0))), [vec![0, 2], vec![1], vec![0]]);
        assert_eq!(sets(Pool::Layer(LayerId(1))), [vec![3], vec![1], vec![2]]);
        assert_eq!(sets(Pool::Model), [vec![0, 2], vec![7], vec![1], vec![5], vec![0], vec![6]]);
    }
}
