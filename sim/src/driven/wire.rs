//! A stream in memory, with two ends that are sockets to the drivers: it delivers in pieces, late, after stalls, and is
//! cut.

use std::collections::VecDeque;
use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use iscsi_driver::StreamSocket;
use iscsi_memory::{ReceiveWindow, SendList};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Log;
use super::work::Meter;
use crate::link::Side;
use crate::rng::Rng;

/// How a stream behaves.
#[derive(Debug, Clone, Copy)]
pub struct WirePlan {
    /// Bytes come after this at the least, and after so much more at most.
    pub delay: (Duration, Duration),
    /// Sends in 1000 that stall, and for how long at most.
    pub stalls: (u64, Duration),
    /// Bytes under way in one direction at most.
    pub capacity: usize,
    /// Most bytes that are given at a time; `usize::MAX` for all there are.
    pub chunk: usize,
    /// It is cut when so many bytes were sent in both directions together.
    pub cut_after: Option<u64>,
    /// From so many bytes on nothing is delivered any more, and nobody is told.
    pub dead_after: Option<u64>,
}

impl WirePlan {
    /// A stream at which nothing is wrong and that takes no time.
    #[must_use]
    pub const fn plain() -> Self {
        Self {
            delay: (Duration::ZERO, Duration::ZERO),
            stalls: (0, Duration::ZERO),
            capacity: 1 << 20,
            chunk: usize::MAX,
            cut_after: None,
            dead_after: None,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// What was sent, and when it is there.
    pieces: VecDeque<(Instant, VecDeque<u8>)>,
    bytes: usize,
    /// The sender has closed it, and when that is there.
    closed: Option<Instant>,
    /// When the last of what was sent is there.
    last: Option<Instant>,
    /// Who waits for bytes, and when it is woken for those that are on their way.
    reader: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Who waits for room.
    writer: Option<Waker>,
}

#[derive(Debug)]
struct State {
    number: u64,
    plan: WirePlan,
    rng: Rng,
    log: Log,
    /// By who sends.
    ways: [Way; 2],
    sent: u64,
    broken: bool,
    /// The work that the target had done when it sent last.
    answered: Duration,
}

/// Ends of streams that are there: none is left when a run is over.
#[derive(Debug, Clone, Default)]
pub struct Ends(Arc<AtomicUsize>);

impl Ends {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One end of a stream.
#[derive(Debug)]
pub struct End {
    state: Arc<Mutex<State>>,
    side: Side,
    /// Work at this end costs.
    meter: Option<Meter>,
    ends: Ends,
}

/// A new stream: the end of the initiator, and that of the target.
#[must_use]
pub fn wire(number: u64, plan: WirePlan, rng: Rng, log: &Log, meter: &Meter, ends: &Ends) -> (End, End) {
    ends.0.fetch_add(2, Ordering::Relaxed);
    let state = State {
        number,
        plan,
        rng,
        log: log.clone(),
        ways: [Way::default(), Way::default()],
        sent: 0,
        broken: false,
        answered: Duration::ZERO,
    };
    let state = Arc::new(Mutex::new(state));
    let end = |side, meter| End { state: state.clone(), side, meter, ends: ends.clone() };
    (end(Side::Initiator, None), end(Side::Target, Some(meter.clone())))
}

/// Wakes somebody when the runtime looks at its sockets and timers next, as it does who waits for a socket.
fn wake_by_driver(waker: &Waker) {
    let _ = pin!(yield_now()).poll(&mut Context::from_waker(waker));
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Target)
}

impl Way {
    /// When the next thing for the reader is there: bytes, or the end.
    fn next(&self) -> Option<Instant> {
        self.pieces.front().map(|(due, _)| *due).or(self.closed)
    }

    /// Something for the reader was added.
    fn notify_reader(&mut self) {
        let (Some(waker), Some(due)) = (self.reader.take(), self.next()) else { return };
        if due <= Instant::now() {
            wake_by_driver(&waker);
        } else {
            self.wait(due, waker);
        }
    }

    /// Wakes `waker` at `due`.
    fn wait(&mut self, due: Instant, waker: Waker) {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        timer.as_mut().reset(due);
        if timer.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            wake_by_driver(&waker);
        }
        self.reader = Some(waker);
    }
}

impl State {
    fn cut(&mut self) {
        self.broken = true;
        self.log.event(format_args!("wire {} is cut after {} bytes", self.number, self.sent));
        for way in &mut self.ways {
            way.reader.take().iter().chain(way.writer.take().iter()).for_each(wake_by_driver);
        }
    }

    /// Most bytes to move now.
    fn piece(&mut self) -> usize {
        if self.plan.chunk == usize::MAX {
            return usize::MAX;
        }
        self.rng.between(self.plan.chunk as u64 / 8 + 1, self.plan.chunk as u64) as usize
    }

    /// Sends from `side`: how many bytes of `len` are taken, and when they will be there.
    fn admit(&mut self, side: Side, len: usize) -> io::Result<(usize, Instant)> {
        let way = &self.ways[index(side)];
        if self.broken || way.closed.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = self.plan.capacity.saturating_sub(way.bytes);
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // As a socket: what is not taken has filled it.
        let n = len.min(room);
        let jitter = self.plan.delay.1.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        let mut due = Instant::now() + self.plan.delay.0 + jitter;
        if self.rng.permille(self.plan.stalls.0) {
            due += self.plan.stalls.1.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        }
        let due = self.ways[index(side)].last.map_or(due, |last| last.max(due));
        Ok((n, due))
    }

    fn sent(&mut self, side: Side, bytes: VecDeque<u8>, due: Instant) {
        self.sent += bytes.len() as u64;
        let is_dead = self.plan.dead_after.is_some_and(|after| self.sent > after);
        let way = &mut self.ways[index(side)];
        way.bytes += bytes.len();
        way.last = Some(due);
        if !is_dead {
            way.pieces.push_back((due, bytes));
            way.notify_reader();
        }
        if self.plan.cut_after.is_some_and(|after| self.sent >= after) {
            self.cut();
        }
    }

    /// Whether `side` has something to hear.
    fn has_news(&self, side: Side) -> bool {
        self.broken || self.ways[index(side.other())].next().is_some_and(|due| due <= Instant::now())
    }

    /// Gives at most so many bytes to `side`.
    fn take(&mut self, side: Side, room: usize) -> io::Result<Vec<u8>> {
        if self.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !self.has_news(side) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = room.min(self.piece());
        let now = Instant::now();
        let way = &mut self.ways[index(side.other())];
        let mut bytes = Vec::new();
        while bytes.len() < most
            && let Some((due, piece)) = way.pieces.front_mut()
            && *due <= now
        {
            let n = piece.len().min(most - bytes.len());
            bytes.extend(piece.drain(..n));
            if piece.is_empty() {
                way.pieces.pop_front();
            }
        }
        way.bytes -= bytes.len();
        if let Some(waker) = way.writer.take().filter(|_| !bytes.is_empty()) {
            wake_by_driver(&waker);
        }
        Ok(bytes)
    }
}

impl End {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, bytes: usize) {
        if let Some(meter) = &self.meter {
            meter.spend(bytes);
        }
    }

    /// The work that the target had done when it sent last by this stream.
    #[must_use]
    pub fn answered(&self) -> Duration {
        self.state().answered
    }

    /// The number of its stream.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.state().number
    }

    fn send_bytes(&self, len: usize, gather: impl FnOnce(usize) -> VecDeque<u8>) -> io::Result<usize> {
        let (n, due) = self.state().admit(self.side, len)?;
        self.spend(n);
        let mut state = self.state();
        if let Some(meter) = &self.meter {
            state.answered = meter.done();
        }
        state.sent(self.side, gather(n), due);
        Ok(n)
    }

    fn close(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let way = &mut state.ways[index(self.side)];
        let at = way.last.map_or(now, |last| last.max(now));
        if way.closed.is_none() {
            way.closed = Some(at);
            way.notify_reader();
        }
    }
}

impl StreamSocket for End {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if state.has_news(self.side) {
            return Poll::Ready(Ok(()));
        }
        let way = &mut state.ways[index(self.side.other())];
        match way.next() {
            Some(due) => way.wait(due, cx.waker().clone()),
            None => way.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let capacity = state.plan.capacity;
        let broken = state.broken;
        let way = &mut state.ways[index(self.side)];
        if broken || way.closed.is_some() || way.bytes < capacity {
            return Poll::Ready(Ok(()));
        }
        way.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn receive(&self, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
        let bytes = self.state().take(self.side, window.len())?;
        self.spend(bytes.len());
        Ok(window.fill(&bytes))
    }

    fn send(&self, list: &SendList<'_>) -> io::Result<usize> {
        self.send_bytes(list.len(), |n| {
            let mut bytes = VecDeque::with_capacity(n);
            for slice in list.as_slice() {
                let mut copy = vec![0; slice.len()];
                slice.copy_to(&mut copy);
                copy.truncate(n - bytes.len());
                bytes.extend(copy);
                if bytes.len() == n {
                    break;
                }
            }
            bytes
        })
    }

    fn unacknowledged(&self) -> Option<usize> {
        Some(self.state().ways[index(self.side)].bytes)
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.poll_read_ready(cx).is_pending() {
            return Poll::Pending;
        }
        let bytes = self.state().take(self.side, buf.remaining())?;
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.send_bytes(buf.len(), |n| buf[..n].iter().copied().collect()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // There was no room just now.
                let _ = self.poll_write_ready(cx);
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    /// What has not been read is lost, as it is with sockets, and then so is what was sent last.
    fn drop(&mut self) {
        self.ends.0.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.state();
        let unread = state.ways[index(self.side.other())].bytes > 0;
        let is_closed = state.ways[index(self.side.other())].closed.is_some();
        if state.broken {
            return;
        }
        if unread {
            return state.cut();
        }
        drop(state);
        self.close();
        if !is_closed {
            // Who sends to it from now on is told that nobody is there.
            let mut state = self.state();
            let way = &mut state.ways[index(self.side.other())];
            way.closed = Some(Instant::now());
            way.writer.take().iter().for_each(wake_by_driver);
        }
    }
}
