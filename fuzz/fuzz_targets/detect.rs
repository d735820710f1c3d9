#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    moe_trace_fuzz::let_panics_unwind();
    moe_trace_fuzz::detect(bytes);
});
