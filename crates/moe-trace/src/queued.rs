//! A sink behind a bounded queue and a writer thread.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::{Geometry, Result, SequenceBuf, SequenceSink, TraceError};

/// What happens to a sequence that ends while the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackPressure {
    /// Who hands it over waits until there is room: nothing is lost.
    Block,
    /// It is dropped and counted: who hands it over never waits.
    DropAndCount,
}

/// Hands sequences to another thread, which writes them: who records never waits for a disk.
///
/// ```
/// use moe_trace::{BackPressure, Geometry, MemoryTrace, Phase, QueuedSink, RoutingSource, SequenceBuf, SequenceSink};
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let mut sink = QueuedSink::new(MemoryTrace::new(geometry.clone()), 8, BackPressure::Block);
/// sink.accept(SequenceBuf::from_experts(&geometry, vec![3], Phase::Decode)?)?;
/// let (trace, dropped) = sink.finish()?;
/// assert_eq!((trace.len(), dropped), (1, 0));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Debug)]
pub struct QueuedSink<S> {
    geometry: Geometry,
    queue: SyncSender<SequenceBuf>,
    /// Gives the sink back, and the first error.
    writer: JoinHandle<(S, Option<TraceError>)>,
    back_pressure: BackPressure,
    dropped: u64,
}

impl<S: SequenceSink + Send + 'static> QueuedSink<S> {
    /// Starts a thread that hands to `sink` what comes through a queue of `capacity` sequences (at least 1).
    pub fn new(sink: S, capacity: usize, back_pressure: BackPressure) -> QueuedSink<S> {
        let geometry = sink.geometry().clone();
        let (queue, received) = sync_channel(capacity.max(1));
        let writer = std::thread::spawn(move || write(sink, &received));
        QueuedSink { geometry, queue, writer, back_pressure, dropped: 0 }
    }

    /// Sequences dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Waits until everything is written; returns the sink and how many sequences were dropped.
    ///
    /// # Errors
    /// The first error of the sink; to keep what was accepted before it, use [`into_parts`](Self::into_parts).
    pub fn finish(self) -> Result<(S, u64)> {
        match self.into_parts() {
            (sink, dropped, None) => Ok((sink, dropped)),
            (_, _, Some(error)) => Err(error),
        }
    }

    /// Waits until everything is written; returns the sink, how many sequences were dropped, and the first error of the
    /// sink if there was one.
    ///
    /// # Panics
    /// If the sink panicked.
    pub fn into_parts(self) -> (S, u64, Option<TraceError>) {
        let QueuedSink { queue, writer, dropped, .. } = self;
        drop(queue);
        match writer.join() {
            Ok((sink, error)) => (sink, dropped, error),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The writer thread. After an error it ends, so that the other side notices.
fn write<S: SequenceSink>(mut sink: S, queue: &Receiver<SequenceBuf>) -> (S, Option<TraceError>) {
    while let Ok(sequence) = queue.recv() {
        if let Err(error) = sink.accept(sequence) {
            return (sink, Some(error));
        }
    }
    (sink, None)
}

impl<S> SequenceSink for QueuedSink<S> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn accept(&mut self, sequence: SequenceBuf) -> Result<()> {
        let ended = match self.back_pressure {
            BackPressure::Block => self.queue.send(sequence).is_err(),
            BackPressure::DropAndCount => match self.queue.try_send(sequence) {
                Ok(()) => false,
                Err(TrySendError::Full(_)) => {
                    self.dropped += 1;
                    false
                }
                Err(TrySendError::Disconnected(_)) => true,
            },
        };
        // The error itself waits for `finish`.
        if ended { Err(TraceError::WriterEnded) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::{MemoryTrace, Phase};

    fn geometry() -> Geometry {
        Geometry::decoder(1, 4, 1).unwrap()
    }

    fn sequence(id: u16) -> SequenceBuf {
        SequenceBuf::from_experts(&geometry(), vec![id], Phase::Decode).unwrap()
    }

    /// Takes a sequence when it is told to.
    struct Gated {
        trace: MemoryTrace,
        gate: Receiver<()>,
        entered: std::sync::mpsc::Sender<()>,
    }

    impl SequenceSink for Gated {
        fn geometry(&self) -> &Geometry {
            SequenceSink::geometry(&self.trace)
        }

        fn accept(&mut self, sequence: SequenceBuf) -> Result<()> {
            self.entered.send(()).unwrap();
            self.gate.recv().unwrap();
            self.trace.accept(sequence)
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (open, gate) = channel();
        let (entered, inside) = channel();
        let sink = Gated { trace: MemoryTrace::new(geometry()), gate, entered };
        let mut queued = QueuedSink::new(sink, 2, BackPressure::DropAndCount);
        queued.accept(sequence(0)).unwrap();
        inside.recv().unwrap(); // the writer holds sequence 0, the queue is empty
        for id in [1, 2, 3, 3] {
            queued.accept(sequence(id)).unwrap();
        }
        assert_eq!(queued.dropped(), 2);
        (0..3).for_each(|_| open.send(()).unwrap());
        let (sink, dropped) = queued.finish().unwrap();
        assert_eq!((sink.trace.sequences(), dropped), (&[sequence(0), sequence(1), sequence(2)][..], 2));
    }

    #[test]
    fn blocking_loses_nothing() {
        let mut queued = QueuedSink::new(MemoryTrace::new(geometry()), 1, BackPressure::Block);
        (0..200).for_each(|id| queued.accept(sequence(id % 4)).unwrap());
        let (trace, dropped) = queued.finish().unwrap();
        let expected: Vec<SequenceBuf> = (0..200).map(|id| sequence(id % 4)).collect();
        assert_eq!((trace.sequences(), dropped), (&expected[..], 0));
    }

    #[test]
    fn an_error_of_the_sink_ends_the_queue_and_is_kept() {
        let mut queued = QueuedSink::new(MemoryTrace::new(geometry()), 1, BackPressure::Block);
        queued.accept(sequence(1)).unwrap();
        queued.accept(sequence(9)).unwrap();
        let refused = (0..).find_map(|_| queued.accept(sequence(2)).err()).unwrap();
        assert_eq!(refused.to_string(), "the writer thread has ended; its error is told when the sink is finished");
        let (trace, _, error) = queued.into_parts();
        assert_eq!(trace.sequences(), [sequence(1)]);
        let message = "sequence 1, token 0, layer 0: expert 9 is out of range, the layer has 4";
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(message));
    }
}
