//! Drives one sans-IO connection over one side of a link, by the driving contract of `iscsi-proto`, and checks that the connection keeps its part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use iscsi_memory::{SendList, SendSlice};
use iscsi_proto::connection::{StreamConnection, StreamEnd};
use iscsi_proto::time::Instant;

use crate::link::{Link, Side};

/// A waker that remembers.
#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Timeouts handled at one instant at most: more is a timer that does not move on.
const MOST_TIMEOUTS: u32 = 100;

/// A connection at its side of a link.
#[derive(Debug)]
pub struct Pipe<C> {
    /// The connection.
    pub connection: C,
    /// The link's number.
    pub link: usize,
    side: Side,
    flag: Arc<Flag>,
    waker: Waker,
    told: Option<StreamEnd>,
    timeouts: (Instant, u32),
}

impl<C: StreamConnection> Pipe<C> {
    /// The connection has just begun.
    pub fn new(connection: C, link: usize, side: Side) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        Self { connection, link, side, flag, waker, told: None, timeouts: (Instant::ZERO, 0) }
    }

    /// Wakes it.
    pub fn wake(&self) {
        self.flag.0.store(true, Ordering::Relaxed);
    }

    /// Does what can be done now. Returns whether anything was.
    ///
    /// # Errors
    /// A rule of the driving contract that the connection broke.
    pub fn run(&mut self, link: &mut Link, now: Instant) -> Result<bool, String> {
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
        for _ in 0..64 {
            let received = self.receive(link, now);
            let sent = self.send(link, now);
            if !received && !sent {
                break;
            }
            any = true;
        }
        if !any && self.connection.poll_timeout().is_some_and(|due| due <= now) && !self.connection.is_finished() {
            return Err(format!("the {:?}'s timeout is in the past after a drain", self.side));
        }
        Ok(any)
    }

    fn receive(&mut self, link: &mut Link, now: Instant) -> bool {
        if self.connection.is_finished() || self.told == Some(StreamEnd::Broken) {
            return false;
        }
        let room = self.connection.receive_window().len();
        let waiting = link.arrived(self.side, now).len();
        if room > 0 && waiting > 0 {
            let n = link.chunk(room.min(waiting));
            let arrived = link.arrived(self.side, now);
            let bytes: Vec<u8> = arrived.drain(..n).collect();
            let filled = self.connection.receive_window().fill(&bytes);
            assert_eq!(filled, n, "a window does not shrink while it is looked at");
            self.connection.handle_received(n, now);
            return true;
        }
        match link.end(self.side, now) {
            Some(end) if self.told.is_none() || (end == StreamEnd::Broken && self.told != Some(end)) => {
                self.told = Some(end);
                self.connection.handle_stream_end(end, now);
                true
            }
            _ => false,
        }
    }

    fn send(&mut self, link: &mut Link, now: Instant) -> bool {
        if self.connection.is_finished() || self.told == Some(StreamEnd::Broken) {
            return false;
        }
        let room = link.room(self.side);
        if room == 0 {
            return false;
        }
        let mut list = SendList::default();
        self.connection.fill_send_list(&mut list);
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
        self.connection.handle_sent(n, now);
        link.send(self.side, bytes, now);
        true
    }

    /// When something of this side is due next.
    #[must_use]
    pub fn next(&self, link: &Link, now: Instant) -> Option<Instant> {
        let arrival = link.next(self.side, now).filter(|_| self.told != Some(StreamEnd::Broken));
        [arrival, self.connection.poll_timeout()].into_iter().flatten().min()
    }
}
