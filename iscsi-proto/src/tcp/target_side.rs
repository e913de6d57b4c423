//! The target's side: what is known of the commands under way. Their write data are in `transfer`, their read data and
//! statuses in `answer`.

use crate::pdu::offset::{EXPECTED_DATA_TRANSFER_LENGTH, FLAGS};
use alloc::vec::Vec;

use super::TcpMover;
use crate::datamover::DataError;
use crate::pdu::Bhs;
use crate::unsolicited::UnsolicitedBurst;

mod answer;
mod transfer;

/// Tables beyond the tasks themselves have room for this many more entries: commands that were answered without taking
/// their unsolicited data.
const EXTRA_UNSOLICITED: usize = 64;

/// The SCSI Command notified last, until the next notification: the session may ask for its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurrentCommand {
    itt: u32,
    expected_length: u32,
    immediate: u32,
    is_final: bool,
    write: bool,
    read: bool,
    taken: Option<u16>,
}

/// One `get_data` under way. Write data come as one unsolicited burst (immediate data and Data-Out without tag), then
/// as the bursts of R2Ts.
#[derive(Debug, Default)]
struct Transfer {
    active: bool,
    generation: u16,
    /// Upper half of the next Target Transfer Tag; the lower half is the slot. It runs on over the slot's uses, so that
    /// stale tags are known.
    next_tag: u16,
    /// R2Ts ever sent from this slot, to tell a stale tag from one that never was.
    tags_used: u32,
    /// R2Ts sent and not yet fulfilled. Their tags are the last so many before `next_tag`; they are fulfilled in order
    /// (RFC 7143 11.8).
    outstanding: u16,
    lun: u64,
    itt: u32,
    /// Bytes wanted in all.
    wanted: u32,
    unsolicited: UnsolicitedBurst,
    /// Bytes of all bursts that have ended, and of the unsolicited burst under way. The oldest outstanding R2T begins
    /// here.
    received: u32,
    /// Bytes of the solicited burst under way.
    burst_received: u32,
    /// Offset of the next R2T.
    next_r2t: u32,
    data_sn: u32,
    r2t_sn: u32,
    bidirectional: bool,
    /// What the initiator did wrong: the transfer fails when the last burst that is on its way has ended.
    failed: Option<DataError>,
    /// Outstanding bursts that have ended since it failed.
    ended: u16,
    /// First bytes of a logical block whose rest comes in another PDU: see `landing`.
    begun: Vec<u8>,
}

/// A command whose unsolicited Data-Out PDUs have not ended with the F bit.
#[derive(Debug, Clone, Copy)]
struct Unsolicited {
    itt: u32,
    /// The transfer that takes them; none: they are dropped in silence.
    slot: Option<u16>,
}

/// Sequence numbers of a command that sends Data-In more than once, or both R2T and Data-In.
#[derive(Debug, Clone, Copy, Default)]
struct Numbering {
    itt: u32,
    /// Next DataSN or R2TSN, which share one sequence (RFC 7143 4.2.2.4).
    next: u32,
    /// Data-In PDUs sent, for ExpDataSN (RFC 7143 11.4.8).
    data_in: u32,
    /// The command has both directions, so its status never rides in a Data-In (RFC 7143 11.7.3).
    bidirectional: bool,
}

#[derive(Debug)]
pub(super) struct TargetSide {
    pub(super) current: Option<CurrentCommand>,
    transfers: Vec<Transfer>,
    unsolicited: Vec<Unsolicited>,
    numbering: Vec<Numbering>,
    /// Most entries of `unsolicited` and of `numbering`.
    most: usize,
}

impl TargetSide {
    /// The side as it is until login has ended.
    pub(super) fn new() -> Self {
        Self {
            current: None,
            transfers: Vec::new(),
            unsolicited: Vec::new(),
            numbering: Vec::new(),
            most: EXTRA_UNSOLICITED,
        }
    }

    /// There may be so many tasks.
    pub(super) fn enable(&mut self, tasks: usize) {
        self.most = tasks + EXTRA_UNSOLICITED;
    }

    fn transfer(&mut self, slot: u16) -> Option<&mut Transfer> {
        self.transfers.get_mut(usize::from(slot))
    }

    /// What has come of the block that a transfer is in the middle of.
    pub(super) fn block_begun(&mut self, slot: u16) -> Option<&mut Vec<u8>> {
        self.transfer(slot).map(|transfer| &mut transfer.begun)
    }

    /// Whether a transfer is in the middle of a block.
    pub(super) fn has_begun_block(&self, slot: u16) -> bool {
        self.transfers.get(usize::from(slot)).is_some_and(|transfer| !transfer.begun.is_empty())
    }

    fn expect_unsolicited(&mut self, itt: u32, slot: Option<u16>) {
        if self.unsolicited.len() >= self.most {
            // Data that nobody waits for give way first; a task's own entry never does while there are more of the
            // others than tasks.
            let oldest = self.unsolicited.iter().position(|entry| entry.slot.is_none()).unwrap_or(0);
            self.unsolicited.remove(oldest);
        }
        self.unsolicited.push(Unsolicited { itt, slot });
    }

    /// What still comes unsolicited for this slot is dropped.
    fn drop_unsolicited(&mut self, slot: u16) {
        for entry in &mut self.unsolicited {
            if entry.slot == Some(slot) {
                entry.slot = None;
            }
        }
    }

    fn numbering(&mut self, itt: u32) -> &mut Numbering {
        let at = match self.numbering.iter().position(|entry| entry.itt == itt) {
            Some(at) => at,
            None => {
                if self.numbering.len() >= self.most {
                    self.numbering.remove(0);
                }
                self.numbering.push(Numbering { itt, ..Numbering::default() });
                self.numbering.len() - 1
            }
        };
        #[allow(clippy::indexing_slicing, reason = "the entry was found or made just now")]
        &mut self.numbering[at]
    }

    /// The command is over.
    #[inline]
    pub(super) fn forget_numbering(&mut self, itt: u32) {
        if !self.numbering.is_empty() {
            self.numbering.retain(|entry| entry.itt != itt);
        }
    }
}

impl TcpMover {
    /// A SCSI Command's header came and is about to be notified.
    #[inline(always)]
    pub(super) fn begin_command(&mut self, bhs: &Bhs) {
        let flags = bhs.0[FLAGS];
        let write = flags & 0x20 != 0;
        let itt = bhs.itt();
        if !write && bhs.data_segment_len() == 0 {
            self.target.forget_numbering(itt);
            return;
        }
        self.begin_tag(itt);
        self.target.current = Some(CurrentCommand {
            itt,
            expected_length: bhs.u32_at::<EXPECTED_DATA_TRANSFER_LENGTH>(),
            immediate: bhs.data_segment_len(),
            is_final: flags & 0x80 != 0,
            write,
            read: flags & 0x40 != 0,
            taken: None,
        });
    }

    /// The tag is used anew: whatever was to come for its last use does not come any more.
    #[inline(always)]
    pub(super) fn begin_tag(&mut self, itt: u32) {
        self.target.forget_numbering(itt);
        if !self.target.unsolicited.is_empty() {
            self.target.unsolicited.retain(|entry| entry.itt != itt);
        }
    }

    /// The session has had its chance to ask for the last command's data.
    pub(super) fn settle_command(&mut self) {
        let Some(command) = self.target.current.take() else { return };
        let taken = command.taken.filter(|slot| {
            self.target.transfer(*slot).is_some_and(|transfer| transfer.active && transfer.itt == command.itt)
        });
        if command.taken.is_none() && command.write && !command.is_final {
            self.target.expect_unsolicited(command.itt, None);
        }
        self.settle_immediate(taken);
    }
}
