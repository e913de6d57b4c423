//! Requests that came ahead of their turn: a CmdSN before them is missing (RFC 7143 4.2.2.1).
//!
//! On a single connection only a faulty initiator, or one whose PDU was rejected for its digest, makes that happen.
//! Write data that come along are not held: the mover drops them, and they are asked for by R2T.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iscsi_proto::pdu::Bhs;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

/// What is held for a number.
#[derive(Debug)]
pub(super) enum Held {
    /// A request that an ABORT TASK has aborted, whether it came or not: its number counts as received (RFC 7143
    /// 11.6.1).
    Plugged,
    /// A request.
    Request {
        /// Its header.
        bhs: Bhs,
        /// Its AHS area.
        ahs: Box<[u8]>,
        /// Its data segment.
        data: Box<[u8]>,
    },
}

impl Held {
    fn bytes(&self) -> usize {
        match self {
            Self::Plugged => 64,
            Self::Request { ahs, data, .. } => 128 + ahs.len() + data.len(),
        }
    }
}

/// All that is held.
#[derive(Debug)]
pub(super) struct HeldRequests {
    entries: Vec<(Serial, Held)>,
    bytes: usize,
    most: usize,
    deadline: Option<Instant>,
}

impl HeldRequests {
    /// Holds at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: Vec::new(), bytes: 0, most, deadline: None }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the missing number must have come: the one that is next, whatever else is missing behind it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Another number is the next one: if it is missing, its own time begins.
    pub(super) fn head_moved(&mut self, deadline: Instant) {
        self.deadline = (!self.entries.is_empty()).then_some(deadline);
    }

    /// Holds a request; of two with one number the first stays. False when there is no room.
    pub(super) fn add(&mut self, cmd_sn: Serial, bhs: Bhs, ahs: &[u8], data: &[u8], deadline: Instant) -> bool {
        self.insert(cmd_sn, Held::Request { bhs, ahs: ahs.into(), data: data.into() }, deadline)
    }

    /// Counts a number as received. What is held for it is dropped.
    pub(super) fn plug(&mut self, cmd_sn: Serial, deadline: Instant) -> bool {
        drop(self.take(cmd_sn));
        self.insert(cmd_sn, Held::Plugged, deadline)
    }

    fn insert(&mut self, cmd_sn: Serial, held: Held, deadline: Instant) -> bool {
        if self.entries.iter().any(|(other, _)| *other == cmd_sn) {
            return true;
        }
        let bytes = held.bytes();
        if self.bytes + bytes > self.most {
            return false;
        }
        self.bytes += bytes;
        self.entries.push((cmd_sn, held));
        self.deadline.get_or_insert(deadline);
        true
    }

    /// Takes out what is held for a number.
    pub(super) fn take(&mut self, cmd_sn: Serial) -> Option<Held> {
        let at = self.entries.iter().position(|(other, _)| *other == cmd_sn)?;
        let (_, held) = self.entries.swap_remove(at);
        self.bytes -= held.bytes();
        if self.entries.is_empty() {
            self.deadline = None;
        }
        Some(held)
    }

    /// Drops what is held below a number.
    pub(super) fn drop_before(&mut self, cmd_sn: Serial) {
        self.entries.retain(|(other, _)| *other >= cmd_sn);
        self.bytes = self.entries.iter().map(|(_, held)| held.bytes()).sum();
        if self.entries.is_empty() {
            self.deadline = None;
        }
    }

    /// The number and header of a held request with that tag.
    pub(super) fn find(&self, itt: u32) -> Option<Serial> {
        self.entries.iter().find_map(|(cmd_sn, held)| match held {
            Held::Request { bhs, .. } if bhs.itt() == itt => Some(*cmd_sn),
            _ => None,
        })
    }
}
