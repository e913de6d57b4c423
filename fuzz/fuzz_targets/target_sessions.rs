#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sim::fuzzed::target_sessions(data));
