//! metrics

fn main() {}
