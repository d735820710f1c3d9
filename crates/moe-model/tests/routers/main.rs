//! Every router, and the layers that OLMoE does not have: choices against their definitions, one result whichever way
//! the model is run, gradients, files.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod choices;
#[path = "../common/mod.rs"]
mod common;
mod dropping;
mod gradients;
mod models;
mod variants;
