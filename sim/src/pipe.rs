//! Drives one sans-IO connection over its side of a network, by the driving contract of `iscsi-proto`, and checks that the connection keeps its part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use initiator_core::{ConnectionEnd, Engine, InitiatorConnection};
use iscsi_memory::{SendList, SendSlice};
use iscsi_proto::connection::{Connection, QueueConnection, StreamConnection, StreamEnd};
use iscsi_proto::datamover::Datamover;
use iscsi_proto::time::Instant;
use target_core::session::{EndReason, TargetConnection};

use crate::fabric::FabricLink;
use crate::link::{Link, Side};
use crate::network::Network;
use crate::watch::Watch;
use crate::workload::Workload;

/// A waker that remembers.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// One that was woken already, and its waker.
    #[must_use]
    pub fn raised() -> (Arc<Self>, Waker) {
        let flag = Arc::new(Self(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        (flag, waker)
    }

    /// Whether it was woken since this was last asked.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Timeouts handled at one instant at most: more is a timer that does not move on.
const MOST_TIMEOUTS: u32 = 100;

/// A connection at its side of a network, which is driven by way of `X`.
#[derive(Debug)]
pub struct Pipe<C, X> {
    /// The connection.
    pub connection: C,
    link: usize,
    side: Side,
    exchange: X,
    flag: Arc<Flag>,
    waker: Waker,
    timeouts: (Instant, u32),
}

/// A way to move what a connection has to say.
pub trait Exchange<C>: Default {
    /// Does what can be done now. Returns whether anything was.
    fn run(&mut self, connection: &mut C, network: &mut Network, side: Side, now: Instant) -> bool;

    /// Whether the connection has had its turn, and goes on when others have had theirs. Asking takes it back.
    fn gave_way(&mut self) -> bool {
        false
    }

    /// Something was done with the connection.
    fn touched(&mut self, _network: &mut Network, _now: Instant) {}

    /// What the connection has said and may not say.
    fn broken(&mut self) -> Option<String> {
        None
    }

    /// What the network still holds of a connection that is over.
    fn held(&self, _network: &Network, _side: Side) -> Option<String> {
        None
    }

    /// When the network has something for this side next.
    fn next(&self, network: &Network, side: Side, now: Instant) -> Option<Instant>;
}

/// A connection that is driven, whatever it runs over.
pub trait Drive {
    /// Wakes it.
    fn wake(&self);

    /// Does what can be done now. Returns whether anything was.
    ///
    /// # Errors
    /// A rule of the driving contract that the connection broke.
    fn run(&mut self, network: &mut Network, now: Instant) -> Result<bool, String>;

    /// When something of this side is due next.
    fn next(&self, network: &Network, now: Instant) -> Option<Instant>;

    /// Whether it is over.
    fn is_finished(&self) -> bool;

    /// The network's number.
    fn link(&self) -> usize;
}

/// An initiator's.
pub trait DriveInitiator: Drive {
    /// What uses the session.
    fn app(&mut self) -> &mut Workload;

    /// Since when it is logged in.
    fn logged_in_at(&self) -> Option<Instant>;

    /// Takes the connection apart when it is over.
    fn into_parts(self: Box<Self>, now: Instant) -> (Engine<Workload>, ConnectionEnd, Option<Duration>);
}

/// A target's.
pub trait DriveTarget: Drive {
    /// Why it ends, once it does.
    fn ends(&self) -> Option<&EndReason>;

    /// Why it has ended.
    fn end_reason(&self) -> String;
}

impl<C: Connection, X: Exchange<C>> Pipe<C, X> {
    /// The connection has just begun.
    pub fn new(connection: C, link: usize, side: Side) -> Self {
        let (flag, waker) = Flag::raised();
        Self { connection, link, side, exchange: X::default(), flag, waker, timeouts: (Instant::ZERO, 0) }
    }

    /// The same, driven in this way.
    #[must_use]
    pub fn by(mut self, exchange: X) -> Self {
        self.exchange = exchange;
        self
    }
}

impl<C: Connection, X: Exchange<C>> Drive for Pipe<C, X> {
    fn wake(&self) {
        self.flag.0.store(true, Ordering::Relaxed);
    }

    fn run(&mut self, network: &mut Network, now: Instant) -> Result<bool, String> {
        let mut any = false;
        if self.flag.0.swap(false, Ordering::Relaxed) {
            self.connection.handle_wake(&mut Context::from_waker(&self.waker), now);
            any = true;
        }
        if self.connection.poll_timeout().is_some_and(|due| due <= now) {
            let count = if self.timeouts.0 == now { self.timeouts.1 + 1 } else { 1 };
            if count > MOST_TIMEOUTS {
                return Err(format!("the {:?}'s timeout does not move on", self.side));
            }
            self.timeouts = (now, count);
            self.connection.handle_timeout(now);
            any = true;
        }
        if any {
            self.exchange.touched(network, now);
        }
        for _ in 0..64 {
            if !self.exchange.run(&mut self.connection, network, self.side, now) {
                break;
            }
            any = true;
        }
        any |= self.exchange.gave_way();
        if let Some(broken) = self.exchange.broken() {
            return Err(broken);
        }
        if self.connection.has_more_work() {
            self.flag.0.store(true, Ordering::Relaxed);
            any = true;
        }
        if !any && self.connection.poll_timeout().is_some_and(|due| due <= now) && !self.connection.is_finished() {
            return Err(format!("the {:?}'s timeout is in the past after a drain", self.side));
        }
        match self.exchange.held(network, self.side) {
            Some(held) if self.connection.is_finished() => {
                Err(format!("the {:?}'s connection is over, and its queue pair holds {held}", self.side))
            }
            _ => Ok(any),
        }
    }

    fn next(&self, network: &Network, now: Instant) -> Option<Instant> {
        [self.exchange.next(network, self.side, now), self.connection.poll_timeout()].into_iter().flatten().min()
    }

    fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }

    fn link(&self) -> usize {
        self.link
    }
}

impl<M: Datamover, X: Exchange<InitiatorConnection<M, Workload>>> DriveInitiator
    for Pipe<InitiatorConnection<M, Workload>, X>
{
    fn app(&mut self) -> &mut Workload {
        self.connection.app()
    }

    fn logged_in_at(&self) -> Option<Instant> {
        self.connection.logged_in_at()
    }

    fn into_parts(self: Box<Self>, now: Instant) -> (Engine<Workload>, ConnectionEnd, Option<Duration>) {
        self.connection.into_parts(now)
    }
}

impl<M: Datamover, X: Exchange<TargetConnection<M>>> DriveTarget for Pipe<TargetConnection<M>, X> {
    fn ends(&self) -> Option<&EndReason> {
        self.connection.end_reason()
    }

    fn end_reason(&self) -> String {
        format!("{:?}", self.connection.end_reason())
    }
}

/// By bytes over a [`Link`].
#[derive(Debug, Default)]
pub struct Bytes {
    told: Option<StreamEnd>,
    watch: Option<Watch>,
    broken: Option<String>,
}

impl<C: StreamConnection> Exchange<C> for Bytes {
    fn run(&mut self, connection: &mut C, network: &mut Network, side: Side, now: Instant) -> bool {
        let Network::Bytes(link) = network else { return false };
        let received = self.receive(connection, link, side, now);
        let sent = self.send(connection, link, side, now);
        received || sent
    }

    fn broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    fn next(&self, network: &Network, side: Side, now: Instant) -> Option<Instant> {
        network.next(side, now).filter(|_| self.told != Some(StreamEnd::Broken))
    }
}

impl Bytes {
    /// With somebody who listens.
    #[must_use]
    pub fn watched(watch: Watch) -> Self {
        Self { watch: Some(watch), ..Self::default() }
    }

    fn receive<C: StreamConnection>(&mut self, connection: &mut C, link: &mut Link, side: Side, now: Instant) -> bool {
        if connection.is_finished() || self.told == Some(StreamEnd::Broken) {
            return false;
        }
        let room = connection.receive_window().len();
        let waiting = link.arrived(side, now).len();
        if room > 0 && waiting > 0 {
            let n = link.chunk(room.min(waiting));
            let arrived = link.arrived(side, now);
            let bytes: Vec<u8> = arrived.iter().take(n).copied().collect();
            // Where blocks may not land now there is room in staging only.
            let n = connection.receive_window().fill(&bytes);
            let bytes: Vec<u8> = arrived.drain(..n).collect();
            if let Some(watch) = &mut self.watch {
                watch.comes(&bytes, now);
            }
            connection.handle_received(n, now);
            return true;
        }
        match link.end(side, now) {
            Some(end) if self.told.is_none() || (end == StreamEnd::Broken && self.told != Some(end)) => {
                self.told = Some(end);
                connection.handle_stream_end(end, now);
                true
            }
            _ => false,
        }
    }

    fn send<C: StreamConnection>(&mut self, connection: &mut C, link: &mut Link, side: Side, now: Instant) -> bool {
        if connection.is_finished() || self.told == Some(StreamEnd::Broken) {
            return false;
        }
        let room = link.room(side);
        if room == 0 {
            return false;
        }
        let mut list = SendList::default();
        connection.fill_send_list(&mut list);
        let n = link.chunk(list.len().min(room));
        if n == 0 {
            return false;
        }
        let mut bytes = Vec::with_capacity(n);
        for slice in list.as_slice() {
            let (at, wanted) = (bytes.len(), n - bytes.len());
            if wanted == 0 {
                break;
            }
            let slice = match *slice {
                SendSlice::Private(all) => SendSlice::Private(&all[..wanted.min(all.len())]),
                SendSlice::Lent(all, start, end) => SendSlice::Lent(all, start, end.min(start + wanted)),
            };
            bytes.resize(at + slice.len(), 0);
            slice.copy_to(&mut bytes[at..]);
        }
        if let Some(watch) = &mut self.watch
            && let Err(broken) = watch.goes(&bytes, now)
        {
            self.broken.get_or_insert(broken);
        }
        connection.handle_sent(n, now);
        link.send(side, bytes, now);
        true
    }
}

/// By the completions of a queue pair.
#[derive(Debug, Default)]
pub struct Completions;

impl<C: QueueConnection> Exchange<C> for Completions {
    fn run(&mut self, connection: &mut C, network: &mut Network, side: Side, now: Instant) -> bool {
        let Network::Queues(fabric) = network else { return false };
        let moved = fabric.advance(now);
        let ready = fabric.is_ready(side) && !connection.is_finished();
        if ready {
            assert!(connection.handle_completions(now), "a queue pair that is ready has a completion");
            fabric.stir(now);
        }
        moved || ready
    }

    fn touched(&mut self, network: &mut Network, now: Instant) {
        if let Network::Queues(fabric) = network {
            FabricLink::stir(fabric, now);
        }
    }

    fn held(&self, network: &Network, side: Side) -> Option<String> {
        match network {
            Network::Queues(fabric) => fabric.held(side),
            Network::Bytes(_) => None,
        }
    }

    fn next(&self, network: &Network, side: Side, now: Instant) -> Option<Instant> {
        network.next(side, now)
    }
}

/// By what a queue pair of verbs has to say when it is polled.
#[derive(Debug, Default)]
pub struct Polls {
    gave_way: bool,
}

impl<C: QueueConnection> Exchange<C> for Polls {
    fn run(&mut self, connection: &mut C, network: &mut Network, side: Side, now: Instant) -> bool {
        let Network::Queues(fabric) = network else { return false };
        let mut any = fabric.advance(now);
        if connection.is_finished() {
            return any;
        }
        if connection.handle_completions(now) {
            any = true;
            fabric.stir(now);
        }
        fabric.stir_if_used(now);
        self.gave_way = fabric.gives_way(side);
        any && !self.gave_way
    }

    fn gave_way(&mut self) -> bool {
        std::mem::take(&mut self.gave_way)
    }

    fn touched(&mut self, network: &mut Network, now: Instant) {
        Exchange::<C>::touched(&mut Completions, network, now);
    }

    fn held(&self, network: &Network, side: Side) -> Option<String> {
        Exchange::<C>::held(&Completions, network, side)
    }

    fn next(&self, network: &Network, side: Side, now: Instant) -> Option<Instant> {
        network.next(side, now)
    }
}
