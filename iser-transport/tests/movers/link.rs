//! What is between the two movers.

use std::collections::VecDeque;

use iscsi_memory::SendList;
use iscsi_proto::connection::{StreamEnd, StreamMover};
use iscsi_proto::datamover::Datamover;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::loopback::{Fabric, LoopbackConfig, LoopbackQueue, pair};
use iser_transport::mover::IserMover;
use iser_transport::queue::QueuePair;

use super::Rng;

/// A connection between two movers.
pub(crate) trait Link {
    type Queue: QueuePair;

    /// Moves something. False when nothing moves until an end is used again.
    fn step(&mut self, initiator: &mut IserMover<Self::Queue>, target: &mut IserMover<Self::Queue>) -> bool;

    /// The connection breaks.
    fn cut(&mut self, initiator: &mut IserMover<Self::Queue>, target: &mut IserMover<Self::Queue>);
}

/// The initiator's queue pair, the target's, and what is between them.
pub(crate) type Ends<L> = (<L as Link>::Queue, <L as Link>::Queue, L);

pub(crate) fn loopback(config: LoopbackConfig, seed: u64) -> Ends<Fabric> {
    pair(config, seed)
}

impl Link for Fabric {
    type Queue = LoopbackQueue;

    fn step(&mut self, _: &mut IserMover<LoopbackQueue>, _: &mut IserMover<LoopbackQueue>) -> bool {
        Self::step(self).is_some()
    }

    fn cut(&mut self, _: &mut IserMover<LoopbackQueue>, _: &mut IserMover<LoopbackQueue>) {
        Self::cut(self);
    }
}

/// Two byte pipes, which take and give bytes in pieces of any size.
pub(crate) struct Pipes {
    to_target: VecDeque<u8>,
    to_initiator: VecDeque<u8>,
    rng: Rng,
    /// The most that one piece has.
    most: u64,
    is_cut: bool,
    /// Each side has been told that the other closed its stream.
    closed: [bool; 2],
}

/// Only the initiator lets its STags be invalidated, as Linux does.
pub(crate) fn iwarp(seed: u64) -> Ends<Pipes> {
    let mut rng = Rng(seed);
    let (crc, revision_two) = (rng.below(2) == 0, rng.below(2) == 0);
    let config = |seed, send_with_invalidate| IwarpConfig {
        private_data: PrivateData { zero_based: false, send_with_invalidate }.emit().into(),
        crc,
        revision_two,
        seed,
        ..IwarpConfig::default()
    };
    let most = [60, 5000, 100_000][rng.below(3) as usize];
    let (to_target, to_initiator) = (VecDeque::new(), VecDeque::new());
    let pipes = Pipes { to_target, to_initiator, rng, most, is_cut: false, closed: [false; 2] };
    (IwarpQueue::connect(config(seed, true)), IwarpQueue::accept(config(!seed, false)), pipes)
}

fn take(mover: &mut IserMover<IwarpQueue>, most: usize, pipe: &mut VecDeque<u8>) -> bool {
    let mut bytes = Vec::new();
    let mut list = SendList::default();
    mover.fill_send_list(&mut list);
    for slice in list.as_slice() {
        let at = bytes.len();
        bytes.resize(at + slice.len(), 0);
        slice.copy_to(&mut bytes[at..]);
    }
    bytes.truncate(most);
    pipe.extend(&bytes);
    mover.handle_sent(bytes.len());
    !bytes.is_empty()
}

fn give(mover: &mut IserMover<IwarpQueue>, most: usize, pipe: &mut VecDeque<u8>) -> bool {
    let bytes: Vec<u8> = pipe.iter().take(most).copied().collect();
    let n = mover.receive_window().fill(&bytes);
    mover.handle_received(n);
    pipe.drain(..n);
    n > 0
}

impl Link for Pipes {
    type Queue = IwarpQueue;

    fn step(&mut self, initiator: &mut IserMover<IwarpQueue>, target: &mut IserMover<IwarpQueue>) -> bool {
        if self.is_cut {
            return false;
        }
        let mut next = || 1 + self.rng.below(self.most) as usize;
        let mut moved = take(initiator, next(), &mut self.to_target);
        moved |= give(target, next(), &mut self.to_target);
        moved |= take(target, next(), &mut self.to_initiator);
        moved |= give(initiator, next(), &mut self.to_initiator);
        // Who has nothing left to send or to wait for closes the stream.
        if initiator.is_closed() && self.to_target.is_empty() && !std::mem::replace(&mut self.closed[1], true) {
            target.handle_stream_end(StreamEnd::EndOfStream);
            moved = true;
        }
        if target.is_closed() && self.to_initiator.is_empty() && !std::mem::replace(&mut self.closed[0], true) {
            initiator.handle_stream_end(StreamEnd::EndOfStream);
            moved = true;
        }
        moved
    }

    fn cut(&mut self, initiator: &mut IserMover<IwarpQueue>, target: &mut IserMover<IwarpQueue>) {
        self.is_cut = true;
        initiator.handle_stream_end(StreamEnd::Broken);
        target.handle_stream_end(StreamEnd::Broken);
    }
}
