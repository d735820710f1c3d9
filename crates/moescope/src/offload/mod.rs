//! Runs models whose experts do not fit, measures it, and compares with what the simulator predicts.

mod calibrate;
mod case;
pub(crate) mod correlate;
mod disk_probe;
mod excerpt;
mod expert_files;
pub(crate) mod generate_experts;
mod live;
mod page;
pub(crate) mod quantize;
mod relation;
mod relation_page;
mod report;
pub(crate) mod run;
mod steps;
mod stores;
mod workload;
