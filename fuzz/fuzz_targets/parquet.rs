#![no_main]
use std::sync::Once;

/// The decoder may panic, which the importer turns into an error; libFuzzer's hook would end the process before. A panic that
/// nobody catches still ends it.
static LET_PANICS_UNWIND: Once = Once::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    LET_PANICS_UNWIND.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    moe_trace_fuzz::import("parquet", bytes);
});
