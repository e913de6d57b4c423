//! What the fuzz targets run: one function for each, over any bytes.
//!
//! The targets in `fuzz/` are thin entries to these; the corpora there are replayed by `sim/tests/corpus.rs`, so that
//! every crash ever found is a test on stable Rust. What reads configuration files has its harness beside it, in
//! `examples::layout::fuzzed`.

mod cdb;
mod connection;
mod ends;
mod iser;
mod iwarp;
mod login;
mod pdu;
mod scsi;
mod sessions;
mod text;
mod url;
#[cfg(target_os = "linux")]
mod verbs;

pub use cdb::cdb;
pub use connection::{initiator_connection, target_connection};
pub use iser::{iser_initiator, iser_target};
pub use iwarp::{iwarp_accept, iwarp_connect};
pub use login::{login_initiator, login_target};
pub use pdu::pdu;
pub use scsi::scsi;
pub use sessions::target_sessions;
pub use text::text;
pub use url::url;
#[cfg(target_os = "linux")]
pub use verbs::verbs_queue;

/// A harness and the name of its target.
pub type Named = (&'static str, fn(&[u8]));

/// All harnesses.
pub const ALL: &[Named] = &[
    ("cdb", cdb),
    ("initiator_connection", initiator_connection),
    ("iser_initiator", iser_initiator),
    ("iser_target", iser_target),
    ("iwarp_accept", iwarp_accept),
    ("iwarp_connect", iwarp_connect),
    ("login_initiator", login_initiator),
    ("login_target", login_target),
    ("pdu", pdu),
    ("scsi", scsi),
    ("target_connection", target_connection),
    ("target_sessions", target_sessions),
    ("text", text),
    ("url", url),
    #[cfg(target_os = "linux")]
    ("verbs_queue", verbs_queue),
];
