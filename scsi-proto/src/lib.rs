//! SCSI as it travels: CDBs, statuses, sense data and the parameter data of the commands that a disk serves.
//!
//! These are wire types only. They know how bytes are laid out (SPC-5, SBC-4, SAM-5), not what a device does with them;
//! the device server of a target and the command layer of an initiator both stand on them.
//!
//! | what | where |
//! |---|---|
//! | logical unit numbers, statuses, task attributes | [`Lun`], [`Status`], [`TaskAttribute`] |
//! | operation codes and service actions | [`opcode`], [`service_action`] |
//! | a CDB that came, and one being made | [`Cdb`], [`CdbBuf`] |
//! | the fields of READ, WRITE and their family | [`BlockIo`] |
//! | the fields of each other command | [`command`] |
//! | sense data | [`Sense`], [`SenseKey`], [`AdditionalSense`] |
//! | parameter data | [`inquiry`], [`vpd`], [`mode`], [`capacity`], [`report`], [`provisioning`] |
//!
//! Two conventions hold throughout:
//!
//! - **Nothing panics on any bytes.** A parser returns an error when what it reads cannot be what it is asked for. A
//!   field past the end of data that is long enough to be recognised reads as zero, because a device of an older
//!   standard sends shorter pages, and an allocation length may cut an answer anywhere.
//! - **What is parsed can be emitted**: the same type serves both directions, and `parse(emit(x)) == x`.
//!
//! ```
//! use scsi_proto::command::Inquiry;
//! use scsi_proto::{Cdb, Sense, SenseKey, opcode};
//!
//! // A command as an initiator sends it, and as a target reads it.
//! let sent = Inquiry { page: None, allocation_length: 36 }.to_cdb();
//! let came = Cdb::new(sent.as_bytes())?;
//! assert_eq!(came.opcode(), opcode::INQUIRY);
//! assert_eq!(Inquiry::parse(came).allocation_length, 36);
//!
//! // What a target answers a command with that it does not know.
//! let sense = Sense::parse(&[0x70, 0, 0x05, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x20, 0x00, 0, 0, 0, 0])?;
//! assert_eq!(sense.key, SenseKey::IllegalRequest);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod capacity;
pub mod command;
pub mod inquiry;
pub mod mode;
pub mod opcode;
pub mod provisioning;
pub mod report;
pub mod service_action;
pub mod vpd;

mod additional_sense;
mod ascii;
mod block_io;
mod cdb;
mod field;
mod lun;
mod sense;
mod status;

pub use additional_sense::AdditionalSense;
pub use ascii::Ascii;
pub use block_io::BlockIo;
pub use cdb::{Cdb, CdbBuf, CdbError};
pub use lun::{Lun, LunError};
pub use sense::{Sense, SenseBytes, SenseFormat, SenseKey, SenseKeySpecific};
pub use status::{Status, TaskAttribute};

/// Parameter data that cannot be what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// The data ends before the fields without which it has no meaning.
    #[error("{what} needs at least {need} bytes, {got} came")]
    TooShort {
        /// What was being parsed.
        what: &'static str,
        /// The fewest bytes that have a meaning.
        need: usize,
        /// The bytes that came.
        got: usize,
    },
    /// A field that tells one kind of data from another holds another value.
    #[error("{what}: the {field} is {found:#04x}, expected {expected:#04x}")]
    Unexpected {
        /// What was being parsed.
        what: &'static str,
        /// The field, in the standard's words.
        field: &'static str,
        /// The value that this data must have.
        expected: u8,
        /// The value it has.
        found: u8,
    },
    /// A field holds a value that the standard reserves.
    #[error("{what}: the {field} holds the reserved or impossible value {found:#x}")]
    Reserved {
        /// What was being parsed.
        what: &'static str,
        /// The field, in the standard's words.
        field: &'static str,
        /// The value it has.
        found: u64,
    },
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
