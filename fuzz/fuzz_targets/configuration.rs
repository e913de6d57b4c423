#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| examples::layout::fuzzed::configuration(data));
