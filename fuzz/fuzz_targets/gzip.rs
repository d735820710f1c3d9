#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moe_trace_fuzz::gzip(bytes));
