#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sim::fuzzed::initiator_connection(data));
