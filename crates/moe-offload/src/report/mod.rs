//! Counters, latencies, reports and timelines.

mod bank_report;
mod counters;
mod latency;
mod timeline;

pub use bank_report::{BankReport, HostReport, HostReports, LayerReport, PhaseReport};
pub use counters::{HostCounters, LayerCounters, PhaseCounters, PrefetchCounters, ReadAheadCounters};
pub use latency::Latency;
pub use timeline::{Activity, RunTimeline, TimelineEvent};

pub(crate) use latency::Times;
