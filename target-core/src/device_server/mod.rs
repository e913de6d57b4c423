//! The SCSI device server: what each command means.
//!
//! One [table] lists every command with its CDB usage data and flags; what all commands have in common is checked from
//! that table here, then the command's own function reads its fields and answers with a [`Plan`]. Plans are carried out
//! by the [task executor](crate::task): no function here waits for data or for a store.

use alloc::vec::Vec;

use scsi_proto::{AdditionalSense, Cdb, Sense, SenseKey};

use crate::lu::{Attentions, LogicalUnit, LunMap};
use crate::task::Nexus;
use crate::task::job::Job;

pub(crate) mod absent;
mod capacity;
pub(crate) mod fault;
mod inquiry;
mod medium;
mod mode;
mod power;
mod provisioning;
mod report;
pub(crate) mod table;

pub(crate) use table::{Command, flags};

/// A command that passed the checks of the table.
pub(crate) struct Request<'a> {
    pub(crate) cdb: Cdb<'a>,
    pub(crate) unit: &'a LogicalUnit,
    /// The LUN is mapped read-only.
    pub(crate) read_only: bool,
    pub(crate) nexus: &'a Nexus,
    pub(crate) luns: &'a LunMap,
    pub(crate) attentions: &'a mut Attentions,
    /// Bytes that the initiator has to send.
    pub(crate) data_out: u32,
    /// Parameter data for the initiator; empty at first.
    pub(crate) out: &'a mut Vec<u8>,
}

impl Request<'_> {
    /// Whether the medium may not be written through this LUN.
    pub(crate) fn write_protected(&self) -> bool {
        self.read_only || self.unit.is_write_protected()
    }

    /// Answers with parameter data, of which at most `allocation` bytes are sent.
    pub(crate) fn answer(&mut self, data: &[u8], allocation: u32) -> Outcome {
        self.out.extend_from_slice(data);
        self.out.truncate(allocation as usize);
        Ok(Plan::Data)
    }
}

/// What is to be done for a command.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Nothing: GOOD.
    Good,
    /// [`Request::out`] goes to the initiator.
    Data,
    /// Blocks of the medium go to the initiator.
    Read {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// Store operations, without data from the initiator.
    Run(Job),
    /// Data are fetched from the initiator first.
    Receive {
        /// Bytes that the command wants. Fewer from the initiator will do, in whole blocks.
        len: u64,
        /// No other amount will do: the byte of the CDB that an error points to.
        exact: Option<u16>,
        /// What happens with them.
        then: Then,
    },
}

/// What happens with the data that came.
#[derive(Debug)]
pub(crate) enum Then {
    /// They go to the medium as they are.
    Write {
        /// First block.
        lba: u64,
        /// Make them durable before the status.
        flush: bool,
    },
    /// They belong to a job.
    Run(Job),
    /// They are a parameter list.
    Parameters(fn(&mut Request<'_>, &[u8]) -> Outcome),
}

/// A plan, or the sense data of a CHECK CONDITION.
pub(crate) type Outcome = Result<Plan, Sense>;

/// Finds the command and makes the checks that need no logical unit: is it known, and is every bit of its CDB one that
/// means something here (SPC-5 4.2.2: a reserved bit that is set may be refused).
#[inline]
pub(crate) fn find(cdb: &[u8], unit: &LogicalUnit) -> Result<&'static Command, Sense> {
    let command = table::find(cdb)?;
    let stray = command.stray_bits(cdb);
    if stray != 0 || command.flags & flags::CONDITIONAL != 0 {
        check_closely(command, stray, unit)?;
    }
    Ok(command)
}

#[cold]
fn check_closely(command: &Command, stray: u128, unit: &LogicalUnit) -> Result<(), Sense> {
    if !command.is_supported(unit) {
        return Err(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
    }
    // DPO and FUA mean something only with a volatile cache: DPOFUA of the mode parameters says so (SBC-4 6.5.1).
    match stray & !(u128::from(command.cache_bits(unit)) << 112) {
        0 => Ok(()),
        stray => {
            let first = stray.leading_zeros();
            Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB)
                .at_cdb_bit((first / 8) as u16, 7 - (first % 8) as u8))
        }
    }
}

/// The checks that need the logical unit's state, in SAM-5's order: unit attentions come before, in the executor.
#[inline]
pub(crate) fn check_state(command: &Command, unit: &LogicalUnit, read_only: bool) -> Result<(), Sense> {
    if command.flags & flags::MEDIUM != 0 && unit.is_stopped() {
        return Err(Sense::new(SenseKey::NotReady, AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED));
    }
    if command.flags & flags::WRITES != 0 && (read_only || unit.is_write_protected()) {
        return Err(Sense::new(SenseKey::DataProtect, AdditionalSense::WRITE_PROTECTED));
    }
    Ok(())
}
