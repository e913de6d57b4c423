//! The deterministic simulator, and the harnesses of the fuzz targets.
#![forbid(unsafe_code)]

pub mod fuzzed;
pub mod input;
pub mod link;
pub mod model;
pub mod rng;
pub mod store;
pub mod trace;
