//! The metrics against the definitions, written down naively, on random and on synthetic traces.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod bad_input;
mod intervals;
mod misses;
mod monitor;
mod reference_router;
mod similarity;
mod splits;
mod together;
mod traces;
