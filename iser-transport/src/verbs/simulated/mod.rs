//! Queue pairs of verbs over devices in this process, moved step by step: what a simulator runs.
//!
//! Both ends are the queue pair that [`VerbsQueue`](super::VerbsQueue) is, with its registrations, its copies and its
//! way to end. Below it, in the place of a card, is a [`Device`] that keeps to what cards may do, and uses all of it:
//!
//! - data leave memory, and come to memory, in pieces of any size and in any order, at any time between the moment when
//!   a request is posted and its completion;
//! - what is on its way is still placed when the queue pair that sent it is gone;
//! - completions are told late, those of receives and those of work in any order to each other;
//! - a message that finds no receive waits or ends the connection, requests are refused or fail, connections are cut,
//!   and an end falls silent;
//! - where it is told to, the device goes on while the host takes completions.
//!
//! Each access is looked up in the table of registrations. A request that names memory that is not registered is a
//! fault of the queue pair: it panics. So do more completions in a row than a queue pair may give before it gives way,
//! more than one chunk of a region that is registered in one call, and zeroes that are copied though nobody wrote them.
//!
//! ```
//! use iscsi_memory::{Buf, Lease, Payload};
//! use iser_transport::loopback::{End, LoopbackConfig};
//! use iser_transport::queue::{Completion, QueuePair, Work};
//! use iser_transport::verbs::simulated::{Device, Make, pair};
//!
//! let devices = [Device::new(Make::default()), Device::new(Make::default())];
//! let (mut active, mut passive, fabric) = pair(&LoopbackConfig::default(), [&devices[0], &devices[1]], 1)?;
//! passive.post_receive(Buf::zeroed(100));
//! active.post(Work::Send { id: 7, message: Lease::whole(Payload::Buf(Buf::zeroed(50))), invalidate: None });
//! active.ring();
//! passive.ring();
//! let received = loop {
//!     fabric.step();
//!     while active.poll().is_some() {}
//!     if let Some(Completion::Received { len, .. }) = passive.poll() {
//!         break len;
//!     }
//! };
//! assert_eq!(received, 50);
//! # Ok::<(), iscsi_memory::RegisterFailure>(())
//! ```

mod port;
mod steps;
mod wire;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iscsi_memory::{Buf, Payload, RegisterFailure, RegistrationBudget};
use iscsi_proto::time::Instant;

use super::config::VerbsConfig;
use super::fake_domain::{FakeDomain, Table};
use super::state::{Activity, State};
use crate::loopback::{End, LoopbackConfig};
use crate::queue::{Completion, QueueLimits, QueuePair, RegisterError, RemoteAccess, RemoteBuffer, Stag, Work};
use port::SimulatedPort;
use wire::Wire;

pub use steps::Step;

/// Completions that a queue pair gives in a row at most.
const MOST_IN_A_ROW: usize = 256;

/// What a device is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Make {
    /// Pieces of memory in a Send or Write. Default 4, at least 1.
    pub pieces: usize,
    /// Pieces of memory in a Read. Default 1, at least 1.
    pub read_pieces: usize,
    /// Bytes that it copies while a request is posted. Default 64.
    pub inline: usize,
    /// Whether what a Read lands in has to be memory that the peer may write. Default no.
    pub read_sink_is_remote: bool,
    /// Bytes of an unsignaled Write from which on its memory is still read after a later request has completed. Default
    /// none are.
    pub lends_unsignaled: usize,
    /// Bytes that may be registered. Default 1 GiB.
    pub budget: u64,
    /// How many in 1000 registrations of 128 KiB and more are refused, of those that data can do without. Default none.
    pub refusals: u32,
    /// Bytes of each of the four buffers that what is not registered is copied through. Default 64 KiB, at least 4096.
    pub bounce_bytes: usize,
    /// How long the end of a connection may take. Default 1 s.
    pub linger: Duration,
    /// Whether the device goes on while the host takes completions. Default no.
    pub is_concurrent: bool,
    /// Whether nobody ever writes zeroes that it sends, so that none are to be copied. Default no.
    pub zeroes_are_unwritten: bool,
    /// What its refusals are drawn from.
    pub seed: u64,
}

impl Default for Make {
    fn default() -> Self {
        Self {
            pieces: 4,
            read_pieces: 1,
            inline: 64,
            read_sink_is_remote: false,
            lends_unsignaled: usize::MAX,
            budget: 1 << 30,
            refusals: 0,
            bounce_bytes: 64 << 10,
            linger: Duration::from_secs(1),
            is_concurrent: false,
            zeroes_are_unwritten: false,
            seed: 0,
        }
    }
}

/// A device with one protection domain. What is registered with it stays so from connection to connection, until it is
/// dropped.
#[derive(Debug, Clone)]
pub struct Device {
    make: Make,
    domain: Arc<FakeDomain>,
}

impl Device {
    /// A device of a make.
    #[must_use]
    pub fn new(make: Make) -> Self {
        let mut domain = FakeDomain::new(&Arc::<Table>::default(), make.budget);
        domain.refuse(make.refusals, make.seed);
        Self { make, domain: Arc::new(domain) }
    }

    /// What is registered with it, and may be.
    #[must_use]
    pub fn budget(&self) -> &Arc<RegistrationBudget> {
        &self.domain.budget
    }

    fn config(&self, network: &LoopbackConfig, end: End) -> VerbsConfig {
        let own = if end == End::Active { &network.active } else { &network.passive };
        VerbsConfig {
            work: own.limits.work,
            receives: own.limits.receives,
            transfer: own.limits.transfer,
            read_depth: own.read_depth.min(255) as u8,
            advertisements: own.advertisements,
            bounce_bytes: self.make.bounce_bytes,
            linger: self.make.linger,
            ..VerbsConfig::default()
        }
    }
}

/// Two connected queue pairs, the active end first, and what moves them, by a seed. Of the network, all counts that a
/// device can do; buffers that are advertised cannot be invalidated by the peer, so that private data must not allow
/// it.
///
/// # Errors
/// When a device's budget has no room for the buffers that a queue pair cannot do without.
pub fn pair(
    network: &LoopbackConfig,
    devices: [&Device; 2],
    seed: u64,
) -> Result<(SimulatedQueue, SimulatedQueue, SimulatedFabric), RegisterFailure> {
    let wire = Arc::new(Mutex::new(Wire::new(network.clone(), devices, seed)));
    let queue = |end: End| {
        let device = devices[end as usize];
        let port = SimulatedPort::new(wire.clone(), device, end);
        // Without its ring a queue pair cannot be.
        device.domain.let_refuse(false);
        let state = State::new(port, &device.config(network, end));
        device.domain.let_refuse(true);
        let state = state?;
        lock(&wire).set_ring(end, device.domain.last_key());
        Ok::<_, RegisterFailure>(SimulatedQueue { state, domain: device.domain.clone(), end, given: 0 })
    };
    let (active, passive) = (queue(End::Active)?, queue(End::Passive)?);
    let activities = [active.state.activity.clone(), passive.state.activity.clone()];
    Ok((active, passive, SimulatedFabric { wire, activities }))
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What moves a pair. Clones move the same pair.
#[derive(Debug, Clone)]
pub struct SimulatedFabric {
    wire: Arc<Mutex<Wire>>,
    activities: [Arc<Activity>; 2],
}

impl SimulatedFabric {
    /// It is `now`, for both ends.
    pub fn set_time(&self, now: Instant) {
        lock(&self.wire).now = now;
    }

    /// Does one of the things that may happen next, by the seed. `None` when nothing can happen until an end is used
    /// again.
    #[expect(clippy::must_use_candidate, reason = "most callers only move it on")]
    pub fn step(&self) -> Option<Step> {
        lock(&self.wire).step()
    }

    /// Whether an end is over and has yet to be given back what it posted.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        lock(&self.wire).is_flushing()
    }

    /// What this end has not yet been given back: work requests and receives that are posted, and buffers that are
    /// advertised.
    #[must_use]
    pub fn held(&self, end: End) -> (usize, usize, usize) {
        lock(&self.wire).held[end as usize]
    }

    /// Whether this end's device has work of it.
    #[must_use]
    pub fn has_work(&self, end: End) -> bool {
        lock(&self.wire).has_work(end)
    }

    /// Whether a queue pair has told its device anything: something may happen from then on, also where the queue pair
    /// had nothing to tell its own user, as between two requests of one transfer. Asking takes it back.
    #[must_use]
    pub fn was_used(&self) -> bool {
        std::mem::take(&mut lock(&self.wire).was_used)
    }

    /// Whether this end is ending, and wants to be polled every few milliseconds.
    #[must_use]
    pub fn is_ending(&self, end: End) -> bool {
        self.activities[end as usize].is_ending.load(Ordering::Relaxed)
    }

    /// Whether this end has done enough for a while. Asking takes it back.
    #[must_use]
    pub fn gives_way(&self, end: End) -> bool {
        self.activities[end as usize].gives_way.swap(false, Ordering::Relaxed)
    }

    /// Breaks the connection for both ends.
    pub fn cut(&self) {
        lock(&self.wire).cut();
    }

    /// Breaks the connection for one end; the other hears nothing of it by this.
    pub fn cut_end(&self, end: End) {
        lock(&self.wire).cut_end(end);
    }

    /// Nothing goes wrong from here on; what has stays so.
    pub fn calm(&self) {
        lock(&self.wire).calm();
    }

    /// From here on this end never hears of the other again: no message, no data, no end of the connection.
    pub fn mute(&self, end: End) {
        lock(&self.wire).mute(end);
    }

    /// From here on this end sends nothing of what Reads ask it for; all else goes on.
    pub fn withhold_reads(&self, end: End) {
        lock(&self.wire).withhold_reads(end);
    }
}

/// One end: the queue pair of verbs over a [`Device`]. Dropping it ends the connection.
#[derive(Debug)]
pub struct SimulatedQueue {
    state: State<SimulatedPort>,
    domain: Arc<FakeDomain>,
    end: End,
    given: usize,
}

impl SimulatedQueue {
    /// Does something with the queue pair, in which at most one chunk of a region is registered.
    fn within_turn<R>(&mut self, what: impl FnOnce(&mut State<SimulatedPort>) -> R) -> R {
        let before = self.domain.chunks();
        let result = what(&mut self.state);
        let registered = self.domain.chunks() - before;
        assert!(registered <= 1, "{registered} chunks are registered without a turn for others");
        result
    }

    fn count(&self, change: impl FnOnce(&mut (usize, usize, usize))) {
        change(&mut lock(&self.state.port.wire).held[self.end as usize]);
    }
}

impl QueuePair for SimulatedQueue {
    fn limits(&self) -> QueueLimits {
        self.state.limits()
    }

    fn post_receive(&mut self, buf: Buf) {
        self.count(|held| held.1 += 1);
        self.state.post_receive(buf);
    }

    /// # Panics
    /// When more work is posted than the limits allow, or a transfer is too long.
    fn post(&mut self, work: Work) {
        let limits = self.state.limits();
        if let Work::Write { from: lease, .. } | Work::Read { into: lease, .. } = &work {
            assert!(lease.len <= limits.transfer, "a transfer of {} bytes is too long", lease.len);
        }
        self.count(|held| {
            held.0 += 1;
            assert!(held.0 <= limits.work, "more than {} work requests are posted", limits.work);
        });
        self.state.post(work);
    }

    fn ring(&mut self) {
        self.within_turn(State::ring);
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        let advertised = self.state.advertise(memory, access)?;
        self.count(|held| held.2 += 1);
        Ok(advertised)
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        let memory = self.state.withdraw(stag)?;
        self.count(|held| held.2 -= 1);
        Some(memory)
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.within_turn(State::poll);
        self.given = if completion.is_some() { self.given + 1 } else { 0 };
        assert!(self.given <= MOST_IN_A_ROW, "more than {MOST_IN_A_ROW} completions without a turn for others");
        match &completion {
            Some(Completion::Received { .. } | Completion::ReceiveFlushed(_)) => self.count(|held| held.1 -= 1),
            Some(Completion::Done { .. } | Completion::Flushed { .. }) => self.count(|held| held.0 -= 1),
            Some(Completion::Established(_) | Completion::Ended(_)) | None => {}
        }
        completion
    }

    fn disconnect(&mut self) {
        self.state.disconnect();
    }

    fn abort(&mut self) {
        self.state.abort();
    }

    fn copied(&self) -> u64 {
        self.state.copied()
    }
}

#[cfg(test)]
mod tests;
