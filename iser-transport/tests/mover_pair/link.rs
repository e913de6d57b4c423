//! What is between the two movers.

use std::collections::VecDeque;

use iscsi_memory::SendList;
use iscsi_proto::connection::{QueueMover, StreamEnd, StreamMover};
use iscsi_proto::datamover::Datamover;
use iscsi_proto::tcp::Role;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::loopback::{Fabric, LoopbackConfig, LoopbackQueue, pair};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::QueuePair;

/// A connection between two movers.
pub(crate) trait Link {
    type Queue: QueuePair;

    /// Moves something. False when nothing moves until an end is used again.
    fn step(&mut self, initiator: &mut IserMover<Self::Queue>, target: &mut IserMover<Self::Queue>) -> bool;

    /// The connection breaks.
    fn cut(&mut self, initiator: &mut IserMover<Self::Queue>, target: &mut IserMover<Self::Queue>);
}

pub(crate) type Ends<L> = (IserMover<<L as Link>::Queue>, IserMover<<L as Link>::Queue>, L);

fn config(role: Role) -> IserMoverConfig {
    IserMoverConfig { max_tasks: 8, receive_slack: 8, ..IserMoverConfig::new(role) }
}

pub(crate) fn loopback(config: &LoopbackConfig, seed: u64) -> Ends<Fabric> {
    let (active, passive, fabric) = pair(config.clone(), seed);
    let initiator = IserMover::new(active, self::config(Role::Initiator));
    (initiator, IserMover::new(passive, self::config(Role::Target)), fabric)
}

impl Link for Fabric {
    type Queue = LoopbackQueue;

    fn step(&mut self, initiator: &mut IserMover<LoopbackQueue>, target: &mut IserMover<LoopbackQueue>) -> bool {
        initiator.ring();
        target.ring();
        let mut moved = Fabric::step(self).is_some();
        moved |= initiator.handle_completions();
        moved |= target.handle_completions();
        moved
    }

    fn cut(&mut self, _: &mut IserMover<LoopbackQueue>, _: &mut IserMover<LoopbackQueue>) {
        Fabric::cut(self);
    }
}

/// Two byte pipes, which take and give bytes in pieces of the given sizes in turn.
pub(crate) struct Pipes {
    to_target: VecDeque<u8>,
    to_initiator: VecDeque<u8>,
    chunks: Vec<usize>,
    turn: usize,
    is_cut: bool,
    /// Each side has been told that the other closed its stream.
    closed: [bool; 2],
}

pub(crate) fn iwarp(config: &IwarpConfig, chunks: Vec<usize>) -> Ends<Pipes> {
    let private = |send_with_invalidate| PrivateData { zero_based: false, send_with_invalidate }.emit().into();
    let initiator = IwarpQueue::connect(IwarpConfig { private_data: private(true), ..config.clone() });
    let target = IwarpQueue::accept(IwarpConfig { private_data: private(false), seed: !config.seed, ..config.clone() });
    let pipes = Pipes {
        to_target: VecDeque::new(),
        to_initiator: VecDeque::new(),
        chunks,
        turn: 0,
        is_cut: false,
        closed: [false; 2],
    };
    (
        IserMover::new(initiator, self::config(Role::Initiator)),
        IserMover::new(target, self::config(Role::Target)),
        pipes,
    )
}

fn take(mover: &mut IserMover<IwarpQueue>, most: usize, pipe: &mut VecDeque<u8>) -> bool {
    mover.ring();
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
        let mut next = || {
            self.turn += 1;
            self.chunks[self.turn % self.chunks.len()]
        };
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
