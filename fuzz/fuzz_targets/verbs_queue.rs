#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sim::fuzzed::verbs_queue(data));
