//! What ran when, on which thread.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use moe_trace::{ExpertId, LayerId};
use serde::Serialize;
use serde_json::json;

/// What a thread of a bank does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Loads an expert that a call waits for.
    Load,
    /// Loads an expert before it is wanted.
    Prefetch,
    /// Computes experts from their slots; on a device that computes by itself, hands them to it.
    Compute,
    /// Computes an expert in host memory.
    HostCompute,
    /// Waits for a load.
    Stall,
}

/// One activity of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEvent {
    /// The thread, an index of [`RunTimeline::lanes`].
    pub lane: usize,
    /// What it does.
    pub activity: Activity,
    /// For which layer.
    pub layer: LayerId,
    /// With which expert, if it is one.
    pub expert: Option<ExpertId>,
    /// Nanoseconds from the making of the bank to the start.
    pub start_nanoseconds: u64,
    /// Nanoseconds from the making of the bank to the end.
    pub end_nanoseconds: u64,
}

/// A bounded record of what the threads of a bank do.
#[derive(Debug)]
pub struct RunTimeline {
    origin: Instant,
    most: usize,
    events: Mutex<Events>,
}

#[derive(Debug, Default)]
struct Events {
    kept: Vec<TimelineEvent>,
    dropped: u64,
    lanes: Vec<(ThreadId, String)>,
}

impl RunTimeline {
    pub(crate) fn new(most: usize) -> RunTimeline {
        RunTimeline { origin: Instant::now(), most, events: Mutex::default() }
    }

    pub(crate) fn record(
        &self,
        activity: Activity,
        layer: LayerId,
        expert: Option<ExpertId>,
        start: Instant,
        end: Instant,
    ) {
        let since = |instant: Instant| {
            let nanoseconds = instant.saturating_duration_since(self.origin).as_nanos();
            u64::try_from(nanoseconds).unwrap_or(u64::MAX)
        };
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.kept.len() == self.most {
            events.dropped += 1;
            return;
        }
        let thread = std::thread::current();
        let lane = events.lanes.iter().position(|(id, _)| *id == thread.id()).unwrap_or_else(|| {
            let number = events.lanes.len();
            let name = thread.name().map_or_else(|| format!("caller {number}"), str::to_owned);
            events.lanes.push((thread.id(), name));
            number
        });
        let (start_nanoseconds, end_nanoseconds) = (since(start), since(end));
        events.kept.push(TimelineEvent { lane, activity, layer, expert, start_nanoseconds, end_nanoseconds });
    }

    /// The events in the order in which they ended.
    pub fn events(&self) -> Vec<TimelineEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).kept.clone()
    }

    /// Names of the threads that had something to do.
    pub fn lanes(&self) -> Vec<String> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.lanes.iter().map(|(_, name)| name.clone()).collect()
    }

    /// Events that there was no room for.
    pub fn dropped(&self) -> u64 {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }

    /// Writes the events as a Chrome trace (JSON), which Perfetto and `chrome://tracing` show.
    ///
    /// # Errors
    /// What the writer says.
    #[expect(clippy::cast_precision_loss, reason = "microseconds, for the eye")]
    pub fn write_chrome_trace(&self, writer: impl Write) -> std::io::Result<()> {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let names = self.lanes().into_iter().enumerate().map(
            |(lane, name)| json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": lane, "args": { "name": name } }),
        );
        let events = self.events().into_iter().map(|event| {
            json!({
                "ph": "X",
                "name": event.activity,
                "cat": "moe-offload",
                "pid": 1,
                "tid": event.lane,
                "ts": microseconds(event.start_nanoseconds),
                "dur": microseconds(event.end_nanoseconds.saturating_sub(event.start_nanoseconds)),
                "args": { "layer": event.layer.0, "expert": event.expert.map(|expert| expert.0) },
            })
        });
        let events: Vec<_> = names.chain(events).collect();
        Ok(serde_json::to_writer(writer, &json!({ "traceEvents": events, "displayTimeUnit": "ms" }))?)
    }
}
