//! How tokens are put together into requests.

use std::ops::Range;

use moe_trace::{LayerId, Phase, RoutingSource, Sequence};

use crate::pool::layers_in_order;
use crate::{CacheError, ExpertKey, Pool, Request, RequestBuffer, Result};

/// How many sequences and tokens are served together.
///
/// The prefill of a turn is one pass of its own. Then all sequences of the batch that decode do so in step, each by a
/// window of tokens (more than one where drafted tokens are verified together); the pass wants the union of their experts.
/// A sequence that has ended makes room for the next.
///
/// ```
/// use expert_cache::Serving;
/// assert_eq!(Serving::default(), Serving::new(1, 1)?);
/// assert!(Serving::new(0, 1).is_err());
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serving {
    batch: usize,
    window: usize,
}

/// One sequence at a time, decoded token by token.
impl Default for Serving {
    fn default() -> Serving {
        Serving { batch: 1, window: 1 }
    }
}

impl Serving {
    /// Serves up to `batch` sequences in step, each by up to `window` decoded tokens a pass.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if one of them is 0.
    pub fn new(batch: usize, window: usize) -> Result<Serving> {
        CacheError::at_least_one("sequences of a batch", batch)?;
        CacheError::at_least_one("tokens of a decode window", window)?;
        Ok(Serving { batch, window })
    }

    /// Sequences served in step.
    pub fn batch(self) -> usize {
        self.batch
    }

    /// Tokens that a sequence decodes in one pass.
    pub fn window(self) -> usize {
        self.window
    }
}

/// What happens to pools while a source is served.
#[derive(Clone, Copy, Debug)]
pub enum Demand<'a> {
    /// A layer wants experts.
    Request {
        /// The number of its pool.
        pool: usize,
        /// What it wants.
        request: Request<'a>,
    },
    /// A sequence has ended.
    SequenceEnd,
}

/// Calls `visit` with all that serving a source asks of pools, in order of execution, and stops at the first error.
///
/// A pass of the model asks once for every layer of the pools, also if no token of it wants an expert there.
///
/// ```
/// use expert_cache::{Demand, Pool, Serving, for_each_request};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// // Two sequences of top-1 routing over 4 experts, decoded in step.
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// for experts in [vec![0, 1, 2], vec![3, 1]] {
///     trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Decode)?)?;
/// }
/// let mut wanted = Vec::new();
/// for_each_request(&trace, &[Pool::model(&geometry)], Serving::new(2, 1)?, |demand| {
///     if let Demand::Request { request, .. } = demand {
///         wanted.push(request.wanted().iter().collect::<Vec<_>>());
///     }
///     Ok(())
/// })?;
/// assert_eq!(wanted, [vec![0, 3], vec![1], vec![2]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`CacheError::EmptyPool`], [`CacheError::Geometry`] if pools and source are not of one model,
/// [`CacheError::DuplicateLayer`], [`CacheError::Trace`] if a sequence cannot be read, and what `visit` returns.
pub fn for_each_request(
    source: &dyn RoutingSource,
    pools: &[Pool],
    serving: Serving,
    mut visit: impl FnMut(Demand<'_>) -> Result<()>,
) -> Result<()> {
    let mut requests = PassRequests::new(pools)?;
    if source.geometry() != pools[0].geometry() {
        return Err(CacheError::Geometry);
    }
    for_each_pass(source, serving, |step| match step {
        Step::Pass { phase, lanes } => requests.serve(lanes, phase, &mut visit),
        Step::SequenceEnd => visit(Demand::SequenceEnd),
    })
}

/// What happens to a model while a source is served.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a, 'b> {
    /// Some tokens go through all layers together.
    Pass {
        /// Whether they are prefilled or decoded.
        phase: Phase,
        /// The sequences of the batch; some may have no token in this pass.
        lanes: &'a [Lane<'b>],
    },
    /// A sequence has ended.
    SequenceEnd,
}

/// Calls `visit` with the passes that serve a source, in order of execution, and stops at the first error.
///
/// # Errors
/// [`CacheError::Trace`] if a sequence cannot be read, and what `visit` returns.
pub fn for_each_pass<E: From<CacheError>>(
    source: &dyn RoutingSource,
    serving: Serving,
    mut visit: impl FnMut(Step<'_, '_>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(serving.batch.min(source.len()));
    let mut waiting = 0..source.len();
    loop {
        while lanes.len() < serving.batch
            && let Some(index) = waiting.next()
        {
            lanes.push(Lane { sequence: source.sequence(index).map_err(CacheError::from)?, at: 0, pass: 0 });
        }
        if lanes.is_empty() {
            return Ok(());
        }
        for lane in &mut lanes {
            if lane.take(Phase::Prefill, usize::MAX) {
                visit(Step::Pass { phase: Phase::Prefill, lanes: std::slice::from_ref(lane) })?;
            }
        }
        let mut decoding = false;
        for lane in &mut lanes {
            decoding |= lane.take(Phase::Decode, serving.window);
        }
        if decoding {
            visit(Step::Pass { phase: Phase::Decode, lanes: &lanes })?;
        }
        let before = lanes.len();
        lanes.retain(|lane| lane.at < lane.sequence.len());
        for _ in lanes.len()..before {
            visit(Step::SequenceEnd)?;
        }
    }
}

/// Returns true if a token of a source is decoded; what is said of decoding means nothing otherwise.
///
/// # Errors
/// [`CacheError::Trace`] if a sequence cannot be read.
///
/// ```
/// use expert_cache::has_decoded;
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1], Phase::Prefill)?)?;
/// assert!(!has_decoded(&trace)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn has_decoded(source: &dyn RoutingSource) -> Result<bool> {
    for index in 0..source.len() {
        let sequence = source.sequence(index)?;
        if (0..sequence.len()).any(|token| sequence.phase(token) == Phase::Decode) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A sequence that is being served.
#[derive(Clone, Debug)]
pub struct Lane<'a> {
    sequence: Sequence<'a>,
    /// Tokens served, those of the running pass included.
    at: usize,
    /// Tokens of the running pass.
    pass: usize,
}

impl<'a> Lane<'a> {
    /// The whole sequence.
    pub fn sequence(&self) -> &Sequence<'a> {
        &self.sequence
    }

    /// Its tokens in the running pass.
    pub fn tokens(&self) -> Range<usize> {
        self.at - self.pass..self.at
    }

    /// Takes the next run of tokens of a phase, at most `limit`, into the pass.
    fn take(&mut self, phase: Phase, limit: usize) -> bool {
        let tokens = (self.at..self.sequence.len()).take(limit);
        self.pass = tokens.take_while(|&token| self.sequence.phase(token) == phase).count();
        self.at += self.pass;
        self.pass > 0
    }
}

/// What passes ask of some pools.
struct PassRequests {
    /// Layers in order of execution, with the number of their pool and the key of their first expert.
    layers: Vec<(LayerId, usize, usize)>,
    /// One a pool.
    buffers: Vec<RequestBuffer>,
}

impl PassRequests {
    fn new(pools: &[Pool]) -> Result<PassRequests> {
        let first_key =
            |(layer, pool): (LayerId, usize)| (layer, pool, pools[pool].keys(layer).map_or(0, |keys| keys.start));
        Ok(PassRequests {
            layers: layers_in_order(pools)?.into_iter().map(first_key).collect(),
            buffers: pools.iter().map(|pool| RequestBuffer::new(pool.universe())).collect(),
        })
    }

    fn serve(
        &mut self,
        lanes: &[Lane<'_>],
        phase: Phase,
        visit: &mut impl FnMut(Demand<'_>) -> Result<()>,
    ) -> Result<()> {
        for &(layer, pool, first_key) in &self.layers {
            let buffer = &mut self.buffers[pool];
            buffer.clear();
            for lane in lanes {
                for token in lane.tokens() {
                    buffer.token();
                    match lane.sequence.weighted_experts(token, layer) {
                        Some(experts) => experts.for_each(|(expert, weight)| {
                            buffer.want(ExpertKey::from_index(first_key + expert.index()), Some(weight));
                        }),
                        None => lane.sequence.experts(token, layer).for_each(|expert| {
                            buffer.want(ExpertKey::from_index(first_key + expert.index()), None);
                        }),
                    }
                }
            }
            visit(Demand::Request { pool, request: buffer.request(layer, phase) })?;
        }
        Ok(())
    }
}
