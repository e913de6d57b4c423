//! What lies between an initiator's connection and the target's: bytes under way, or queue pairs.

use iscsi_proto::time::Instant;

use crate::fabric::FabricLink;
use crate::link::{Link, Side};

/// A network between two sides.
#[derive(Debug)]
pub enum Network {
    /// A byte stream.
    Bytes(Box<Link>),
    /// Two queue pairs.
    Queues(Box<FabricLink>),
}

impl Network {
    /// Both sides have their digests on from now on.
    pub fn guard(&mut self) {
        if let Self::Bytes(link) = self {
            link.guard();
        }
    }

    /// No faults from now on.
    pub fn calm(&mut self) {
        match self {
            Self::Bytes(link) => link.calm(),
            Self::Queues(fabric) => fabric.calm(),
        }
    }

    /// Whether it was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Bytes(link) => link.is_cut(),
            Self::Queues(fabric) => fabric.is_cut(),
        }
    }

    /// Cuts it.
    pub fn cut(&mut self, now: Instant) {
        match self {
            Self::Bytes(link) => link.cut(now),
            Self::Queues(fabric) => fabric.cut_now(now),
        }
    }

    /// The initiator's side hears nothing any more; what it sends still arrives.
    pub fn deafen(&mut self, now: Instant) {
        match self {
            Self::Bytes(link) => link.deafen(Side::Initiator),
            Self::Queues(fabric) => fabric.deafen(Side::Initiator, now),
        }
    }

    /// The initiator's side sends nothing any more of what RDMA Reads ask it for, and goes on with all else. Byte
    /// streams know no Reads.
    pub fn withhold_reads(&mut self) {
        if let Self::Queues(fabric) = self {
            fabric.withhold_reads(Side::Initiator);
        }
    }

    /// A side hears that the network, which was cut, is gone.
    pub fn tell_of_cut(&mut self, side: Side, now: Instant) {
        match self {
            Self::Bytes(link) => link.tell_of_cut(side, now),
            Self::Queues(fabric) => fabric.tell_of_cut(side, now),
        }
    }

    /// Whether a planned bit has flipped.
    #[must_use]
    pub fn has_flipped(&self) -> bool {
        match self {
            Self::Bytes(link) => link.has_flipped(),
            Self::Queues(_) => false,
        }
    }

    /// When something will next come to `side`.
    #[must_use]
    pub fn next(&self, side: Side, now: Instant) -> Option<Instant> {
        match self {
            Self::Bytes(link) => link.next(side, now),
            Self::Queues(fabric) => fabric.next(now),
        }
    }

    /// Whether the device of a side has work of it.
    #[must_use]
    pub fn has_work(&self, side: Side) -> bool {
        match self {
            Self::Bytes(_) => false,
            Self::Queues(fabric) => fabric.has_work(side),
        }
    }

    /// `side` closes.
    pub fn close(&mut self, side: Side, now: Instant) {
        match self {
            Self::Bytes(link) => link.close(side, now),
            // Its queue pair has gone with its connection.
            Self::Queues(fabric) => fabric.stir(now),
        }
    }

    /// Drops what has come for `side`, which is over. Returns whether there was anything.
    pub fn discard(&mut self, side: Side, now: Instant) -> bool {
        match self {
            Self::Bytes(link) => {
                let arrived = link.arrived(side, now);
                let any = !arrived.is_empty();
                arrived.clear();
                any
            }
            Self::Queues(_) => false,
        }
    }

    /// `side` gives up for good.
    pub fn abandon(&mut self, side: Side, now: Instant) {
        if let Self::Bytes(link) = self {
            link.abandon(side, now);
        }
    }

    /// The fabric of queue pairs.
    pub fn as_fabric(&mut self) -> Option<&mut FabricLink> {
        match self {
            Self::Bytes(_) => None,
            Self::Queues(fabric) => Some(fabric),
        }
    }

    /// The link of a byte stream.
    pub fn as_link(&mut self) -> Option<&mut Link> {
        match self {
            Self::Bytes(link) => Some(link),
            Self::Queues(_) => None,
        }
    }
}
