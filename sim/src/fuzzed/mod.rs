//! What the fuzz targets run: one function for each, over any bytes.
//!
//! The targets in `fuzz/` are thin entries to these; the corpora there are replayed by `sim/tests/corpus.rs`, so that every crash ever found is a test
//! on stable Rust.

mod pdu;
mod scsi;

pub use pdu::pdu;
pub use scsi::scsi;

/// All harnesses by the names of their targets.
pub const ALL: &[(&str, fn(&[u8]))] = &[("pdu", pdu), ("scsi", scsi)];
