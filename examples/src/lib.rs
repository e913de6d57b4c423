//! What the programs share: the load generator, the data pattern, reports, and how a program ends; and what
//! `ramdisk serve` can be told to export.
//!
//! The programs are `ramdisk` (serve and demo), `iscsi` (the initiator's tool) and `embed` (a store of one's own in
//! under 50 lines). None of them holds protocol logic: they are what a user of the libraries would write.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod carrier;
pub mod ending;
pub mod hidden;
pub mod layout;
pub mod load;
pub mod output;
pub mod pattern;
pub mod progress;
pub mod report;
pub mod watch;
