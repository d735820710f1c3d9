//! Routing consistency of a running model.

mod bit_queue;
mod epoch;
mod layer_snapshot;
mod live_sequence;
mod options;
mod priority_cache;

pub use layer_snapshot::LayerSnapshot;
pub use options::MonitorOptions;

use std::collections::HashMap;

use epoch::Epoch;
use expert_cache::CacheError;
use live_sequence::LiveSequence;
use moe_trace::{EMPTY_SLOT, Geometry, LayerId, RouterObserver, RoutingEvent, TraceError};

use crate::error::{MetricError, Result};

/// Watches the routing of a running model, layer by layer, over its recent tokens.
///
/// Recent are the last `horizon` to `2 * horizon` tokens of a layer, of all sequences: counts are kept for a running
/// epoch of up to `horizon` tokens and for the one before. Sequences run side by side; windows and caches are those of
/// each sequence, as in [`Srp`](crate::Srp) and [`Curves`](crate::Curves), and a cache serves a token when the window that
/// SCH looks at is complete.
///
/// An event that cannot be right is left out, and the first such error is kept: [`Monitor::error`].
///
/// # Complexity
/// A token costs `O(k)` amortized a layer: two steps of window counts and two uses of each cache an expert, of a few word
/// operations each. Beyond that, `O(experts)` for each running sequence once in `horizon` tokens, and `O(sequences)` when
/// one more begins than may run. Memory is bounded: a layer of a running sequence has
/// `experts * (window / 4 + 60) + 2 * window * k` bytes, and a layer `O(experts + window)`.
///
/// # References
/// arXiv 2505.16056, sections 2.2 and 2.3.
///
/// ```
/// use expert_cache::curve::ColdStart;
/// use lrc_metrics::{Monitor, MonitorOptions};
/// use moe_trace::{Geometry, LayerId, Phase, RouterObserver, RoutingEvent};
///
/// // One layer of 3 experts, top-1, one slot: A A B A, one token after the other.
/// let geometry = Geometry::decoder(1, 3, 1)?;
/// let options = MonitorOptions { window: 2, slots: 1, horizon: 100, cold_start: ColdStart::Miss, sequences: 1 };
/// let mut monitor = Monitor::new(&geometry, &options)?;
/// for expert in [0, 0, 1, 0] {
///     monitor.routed(&RoutingEvent {
///         sequence: 0,
///         layer: LayerId(0),
///         phase: Phase::Decode,
///         token_ids: &[],
///         experts: &[expert],
///         weights: &[],
///         logits: None,
///     });
/// }
/// monitor.sequence_end(0);
/// let layer = monitor.layer(LayerId(0))?;
/// // Windows AA, AB, BA: F1 = 2 * 6 / (2 * 5 + 6).
/// assert_eq!((layer.windows, layer.srp.srp), (3, 0.75));
/// assert_eq!((layer.lru_hit_rate, layer.sch_hit_rate), (0.25, 0.25));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Monitor {
    geometry: Geometry,
    options: MonitorOptions,
    layers: Vec<MonitoredLayer>,
    sequences: HashMap<usize, Running>,
    /// Number of events so far.
    events: u64,
    error: Option<MetricError>,
    token: Vec<u16>,
    /// For every expert the last checked token that uses it.
    checked: Vec<u64>,
    /// Number of checked tokens.
    checks: u64,
}

/// A running sequence.
#[derive(Clone, Debug)]
struct Running {
    /// By layer.
    layers: Vec<LiveSequence>,
    /// Number of its last event.
    last: u64,
}

#[derive(Clone, Debug)]
struct MonitoredLayer {
    current: Epoch,
    previous: Epoch,
    /// Uses of each expert before the previous epoch.
    earlier: Vec<u64>,
}

impl Monitor {
    /// Creates a monitor that has seen nothing.
    ///
    /// # Errors
    /// [`MetricError::Window`] and [`MetricError::WindowLimit`] for a window of no or more than 4,096 tokens;
    /// [`MetricError::Horizon`]; [`MetricError::NoRunningSequences`]; [`CacheError::Capacity`] for slots out of `1..=experts`.
    pub fn new(geometry: &Geometry, options: &MonitorOptions) -> Result<Monitor> {
        options.check(geometry)?;
        let experts = geometry.experts();
        let epoch = Epoch::new(options.window, experts);
        let layer = MonitoredLayer { current: epoch.clone(), previous: epoch, earlier: vec![0; experts] };
        Ok(Monitor {
            geometry: geometry.clone(),
            options: options.clone(),
            layers: vec![layer; geometry.layers()],
            sequences: HashMap::new(),
            events: 0,
            error: None,
            token: Vec::new(),
            checked: vec![0; experts],
            checks: 0,
        })
    }

    /// The first event that was left out, if there was one.
    pub fn error(&self) -> Option<&MetricError> {
        self.error.as_ref()
    }

    /// The recent routing of a layer.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`].
    pub fn layer(&self, layer: LayerId) -> Result<LayerSnapshot> {
        let state = self.layers.get(layer.index()).ok_or_else(|| self.no_such_layer(layer))?;
        let mut recent = state.previous.clone();
        recent.merge(&state.current);
        self.sequences.values().for_each(|running| running.layers[layer.index()].add_to(&mut recent));
        Ok(LayerSnapshot::new(&recent, &state.earlier))
    }

    fn observe(&mut self, event: &RoutingEvent<'_>) -> Result<()> {
        let layer = event.layer.index();
        let top_k = self.geometry.top_k();
        if layer >= self.layers.len() {
            return Err(self.no_such_layer(event.layer));
        }
        if !event.experts.len().is_multiple_of(top_k) {
            let expected = event.experts.len().next_multiple_of(top_k);
            let error = TraceError::ColumnLength { column: "experts", len: event.experts.len(), expected };
            return Err(MetricError::Event(error));
        }
        for (token, chosen) in event.experts.chunks_exact(top_k).enumerate() {
            self.check_token(event.sequence, token, layer, chosen).map_err(MetricError::Event)?;
        }
        self.events += 1;
        if !self.sequences.contains_key(&event.sequence) {
            self.begin(event.sequence);
        }
        for token in event.experts.chunks_exact(top_k) {
            self.token.clear();
            self.token.extend(token.iter().filter(|&&expert| expert != EMPTY_SLOT));
            let state = &mut self.layers[layer];
            if let Some(running) = self.sequences.get_mut(&event.sequence) {
                running.last = self.events;
                running.layers[layer].push(&self.token, &mut state.current);
            }
            if state.current.tokens == self.options.horizon {
                self.next_epoch(layer);
            }
        }
        Ok(())
    }

    /// Begins a sequence, and ends another one if too many run.
    fn begin(&mut self, sequence: usize) {
        if self.sequences.len() == self.options.sequences {
            // Events have different numbers, so there is one that was idle longest.
            let idle = self.sequences.iter().min_by_key(|(_, running)| running.last).map(|(&sequence, _)| sequence);
            idle.into_iter().for_each(|sequence| self.end(sequence));
        }
        let layers = vec![LiveSequence::new(&self.options, self.geometry.experts()); self.geometry.layers()];
        self.sequences.insert(sequence, Running { layers, last: self.events });
    }

    fn end(&mut self, sequence: usize) {
        let layers = self.sequences.remove(&sequence).map(|running| running.layers);
        for (mut live, state) in layers.into_iter().flatten().zip(&mut self.layers) {
            live.end(&mut state.current);
        }
    }

    /// Ends all running sequences, such as those of a model whose pass has failed.
    pub fn end_all(&mut self) {
        let mut running: Vec<usize> = self.sequences.keys().copied().collect();
        running.sort_unstable();
        running.into_iter().for_each(|sequence| self.end(sequence));
    }

    /// Checks that the experts of a token exist and differ.
    fn check_token(&mut self, sequence: usize, token: usize, layer: usize, chosen: &[u16]) -> Result<(), TraceError> {
        let experts = self.checked.len();
        self.checks += 1;
        for &id in chosen.iter().filter(|id| **id != EMPTY_SLOT) {
            let expert = usize::from(id);
            let Some(checked) = self.checked.get_mut(expert) else {
                return Err(TraceError::ExpertOutOfRange { sequence, token, layer, expert, experts });
            };
            if std::mem::replace(checked, self.checks) == self.checks {
                return Err(TraceError::DuplicateExpert { sequence, token, layer, expert });
            }
        }
        Ok(())
    }

    /// Begins a new epoch of a layer.
    fn next_epoch(&mut self, layer: usize) {
        let MonitoredLayer { current, previous, earlier } = &mut self.layers[layer];
        self.sequences.values_mut().for_each(|running| running.layers[layer].flush(current));
        earlier.iter_mut().zip(&previous.uses).for_each(|(sum, more)| *sum += more);
        *previous = std::mem::replace(current, Epoch::new(self.options.window, self.geometry.experts()));
    }

    fn no_such_layer(&self, layer: LayerId) -> MetricError {
        CacheError::LayerOutOfRange { layer: layer.index(), layers: self.layers.len() }.into()
    }
}

impl RouterObserver for Monitor {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if let Err(error) = self.observe(event) {
            self.error.get_or_insert(error);
        }
    }

    fn sequence_end(&mut self, sequence: usize) {
        self.end(sequence);
    }
}

#[cfg(test)]
mod tests {
    use expert_cache::curve::ColdStart;
    use moe_trace::Phase;

    use super::*;

    const OPTIONS: MonitorOptions =
        MonitorOptions { window: 2, slots: 1, horizon: 4, cold_start: ColdStart::Free, sequences: 9 };

    fn route(monitor: &mut Monitor, sequence: usize, experts: &[u16]) {
        let (layer, phase) = (LayerId(0), Phase::Decode);
        monitor.routed(&RoutingEvent { sequence, layer, phase, token_ids: &[], experts, weights: &[], logits: None });
    }

    #[test]
    fn drift_is_the_share_that_moved() {
        let mut monitor = Monitor::new(&Geometry::decoder(1, 3, 1).unwrap(), &OPTIONS).unwrap();
        let drift = |monitor: &Monitor| monitor.layer(LayerId(0)).unwrap().drift;
        route(&mut monitor, 0, &[0, 0, 1, 1]);
        assert_eq!(drift(&monitor), None);
        route(&mut monitor, 0, &[0, 0, 1, 1]);
        assert_eq!(drift(&monitor), Some(0.0));
        // Earlier is half 0, half 1; recent is 2 alone, then 0 as a third of it.
        route(&mut monitor, 0, &[2, 2, 2, 2]);
        assert_eq!(monitor.layer(LayerId(0)).unwrap().tokens, 4);
        assert_eq!(drift(&monitor), Some(1.0));
        route(&mut monitor, 0, &[0, 0]);
        assert!((drift(&monitor).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        monitor.sequence_end(0);
        assert!(monitor.sequences.is_empty());
    }

    #[test]
    fn the_sequence_that_was_idle_longest_ends() {
        let options = MonitorOptions { sequences: 2, horizon: 100, ..OPTIONS };
        let mut monitor = Monitor::new(&Geometry::decoder(1, 3, 1).unwrap(), &options).unwrap();
        for sequence in [0, 1, 0, 2, 3, 4] {
            route(&mut monitor, sequence, &[0]);
        }
        let mut running: Vec<usize> = monitor.sequences.keys().copied().collect();
        running.sort_unstable();
        assert_eq!(running, [3, 4]);
        // Only sequence 0 had two tokens, and so a window; it is the second use of its expert that hits.
        let layer = monitor.layer(LayerId(0)).unwrap();
        assert_eq!((layer.tokens, layer.windows), (6, 1));
        // A failed pass is no beginning of the next one.
        route(&mut monitor, 4, &[0]);
        monitor.end_all();
        route(&mut monitor, 4, &[0]);
        assert_eq!(monitor.layer(LayerId(0)).unwrap().windows, 2);
    }

    #[test]
    fn bad_events_are_left_out_and_the_first_error_is_kept() {
        let mut monitor = Monitor::new(&Geometry::decoder(1, 3, 2).unwrap(), &OPTIONS).unwrap();
        route(&mut monitor, 0, &[0, 1, 2, 2]);
        route(&mut monitor, 0, &[0]);
        route(&mut monitor, 0, &[0, 3]);
        assert_eq!(monitor.error().unwrap().to_string(), "a routing event is not valid");
        assert_eq!(monitor.layer(LayerId(0)).unwrap().tokens, 0);
        let error = monitor.layer(LayerId(1)).unwrap_err().to_string();
        assert_eq!(error, "layer 1 is out of range, the trace has 1 MoE layers");
        // A sequence that never ran ends quietly.
        monitor.sequence_end(5);
    }
}
