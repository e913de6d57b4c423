//! Between the tasks of an application and the task of a session's connection: a table of operations and a lock that is
//! held for moments.
//!
//! Submissions gather in a queue that the connection swaps out whole once per wake; completions are handed over in one
//! go per wake, too. A waiting operation occupies a place in a table that is sized once, so that nothing is allocated
//! for it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use iscsi_memory::{Buf, BufPool, Payload};
use portable_atomic::AtomicU64;

use iscsi_proto::time::Instant;
use scsi_proto::Lun;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError, oneshot};
use tokio::time::timeout;

use super::events::{Listeners, Reporter, SessionEvent};
use super::info::{SessionInfo, SessionStats};
use crate::application::{Application, Control, ControlAnswer, Counters, Event};
use crate::command::{Command, Completion, Failure, WaitsFor};
use crate::config::{Limits, Timeouts};
use crate::error::Error;
use crate::identity::{Difference, KnownDisk};

#[derive(Debug)]
enum State {
    Free,
    Waiting(Option<Waker>),
    Done(Completion),
    /// Its future was dropped; the place is free once the command is done.
    Abandoned,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    state: State,
}

#[derive(Debug)]
struct Inner {
    places: Vec<Place>,
    free: Vec<u32>,
    submitted: VecDeque<Command>,
    abandoned: Vec<u64>,
    controls: VecDeque<Control>,
    asked: Vec<(u32, oneshot::Sender<ControlAnswer>)>,
    next_control: u32,
    pool: BufPool,
    info: Option<SessionInfo>,
    stats: SessionStats,
    ended: Option<Error>,
    /// How disks differ from those that guards were made for.
    differences: Vec<(u32, Difference)>,
    /// Blocks that disks have grown to.
    sizes: Vec<(u32, u64)>,
}

/// What the handles and the connection's side share.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// One permit for each free place.
    permits: Semaphore,
    /// Commands wait in `submitted`.
    work: AtomicBool,
    /// Controls or abandoned tokens wait.
    side_work: AtomicBool,
    waker: AtomicWaker,
    /// How often a disk has grown.
    pub(super) grown: AtomicU64,
    /// How long all places may be taken without one command's end, while the session is connected.
    place_limit: Option<Duration>,
    /// The runtime of the session, for the timers of those who wait on another one, or on none.
    runtime: Option<Handle>,
    /// Woken when the session ends, and when it shall end.
    pub(super) ending: tokio::sync::Notify,
    pub(super) ended: tokio::sync::Notify,
    pub(super) listeners: Listeners,
    /// LUNs that the target spells in a way of its own.
    spelled: Mutex<Vec<Lun>>,
}

fn split(token: u64) -> (usize, u32) {
    ((token & 0xffff_ffff) as usize, (token >> 32) as u32)
}

impl Shared {
    pub(super) fn new(limits: &Limits, timeouts: &Timeouts) -> Arc<Self> {
        // What has the places ends within these.
        let place_limit = timeouts.standstill + timeouts.command + timeouts.task_management * 2;
        let size = u32::from(limits.commands.clamp(1, 4096));
        let inner = Inner {
            places: (0..size).map(|_| Place { generation: 0, state: State::Free }).collect(),
            free: (0..size).rev().collect(),
            submitted: VecDeque::with_capacity(size as usize),
            abandoned: Vec::with_capacity(size as usize),
            controls: VecDeque::new(),
            asked: Vec::new(),
            next_control: 0,
            pool: BufPool::new(limits.pool_bytes),
            info: None,
            stats: SessionStats::default(),
            ended: None,
            differences: Vec::new(),
            sizes: Vec::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            permits: Semaphore::new(size as usize),
            work: AtomicBool::new(false),
            side_work: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            grown: AtomicU64::new(0),
            place_limit: Some(place_limit).filter(|_| !timeouts.standstill.is_zero()),
            runtime: Handle::try_current().ok(),
            ending: tokio::sync::Notify::new(),
            ended: tokio::sync::Notify::new(),
            listeners: Listeners::default(),
            spelled: Mutex::new(Vec::new()),
        })
    }

    /// Nothing under the lock panics half-way, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_buf(&self, len: usize) -> Buf {
        self.lock().pool.take(len)
    }

    pub(super) fn give_buf(&self, buf: Buf) {
        self.lock().pool.give(buf);
    }

    pub(super) fn give_back(&self, completion: Completion) {
        let mut inner = self.lock();
        inner.recycle(completion);
    }

    pub(super) fn info(&self) -> Option<SessionInfo> {
        self.lock().info.clone()
    }

    pub(super) fn stats(&self) -> SessionStats {
        self.lock().stats
    }

    pub(super) fn end_reason(&self) -> Option<Error> {
        self.lock().ended.clone()
    }

    /// The disk of a guard is at hand: what this is, and the number of the login under which it was found.
    pub(super) async fn guard(&self, disk: KnownDisk, login: u64) -> Result<u32, Error> {
        match self.ask(|id| Control::Guard { id, disk, login }).await? {
            ControlAnswer::Guarded(guard) => Ok(guard),
            _ => Err(self.end_reason().unwrap_or(Error::LoggedOut)),
        }
    }

    /// The disk of a guard does not look like the one that it was made for.
    /// What is handed over after this is sent only once the session has asked for itself.
    pub(super) async fn doubt(&self, guard: u32) -> Result<(), Error> {
        self.ask(|id| Control::Doubt { id, guard }).await.map(drop)
    }

    /// A handle is gone.
    pub(super) fn unguard(&self, guard: u32) {
        let mut inner = self.lock();
        inner.controls.push_back(Control::Unguard { guard });
        drop(inner);
        self.signal(&self.side_work);
    }

    /// How the disk of a guard differs from the one that was opened.
    pub(super) fn difference(&self, guard: u32) -> Option<Difference> {
        self.lock()
            .differences
            .iter()
            .rev()
            .find(|(other, _)| *other == guard)
            .map(|(_, difference)| difference.clone())
    }

    /// The blocks that the disk of a guard has grown to.
    pub(super) fn grown_to(&self, guard: u32) -> Option<u64> {
        self.lock().sizes.iter().rev().find(|(other, _)| *other == guard).map(|(_, blocks)| *blocks)
    }

    /// The number of logins so far.
    pub(super) fn logins(&self) -> u64 {
        self.lock().stats.reconnects + 1
    }

    /// The target lists these LUNs.
    pub(super) fn listed(&self, luns: impl Iterator<Item = Lun>) {
        let odd = |lun: &Lun| lun.number().and_then(Lun::new).is_some_and(|plain| !lun.is_spelled_as(plain));
        *self.spelled.lock().unwrap_or_else(PoisonError::into_inner) = luns.filter(odd).collect();
    }

    /// A LUN as the target spells it, as far as that is known.
    pub(super) fn spelled(&self, lun: Lun) -> Lun {
        let spelled = self.spelled.lock().unwrap_or_else(PoisonError::into_inner);
        spelled.iter().find(|other| **other == lun).copied().unwrap_or(lun)
    }

    /// Tells listeners of an answer that can be lived with.
    pub(super) fn odd(&self, command: &str, reason: String) {
        self.listeners.tell(SessionEvent::OddAnswer { command: command.to_owned(), reason });
    }

    fn signal(&self, flag: &AtomicBool) {
        if !flag.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Hands a command over and waits for its end, which brings its buffers back. The token is set here.
    pub(super) async fn execute(&self, mut command: Command) -> Completion {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return unsent(command, Failure::SessionEnded),
            Err(TryAcquireError::NoPermits) => match self.wait_for_place().await {
                Ok(Some(permit)) => permit,
                Ok(None) => return unsent(command, Failure::NotSent(WaitsFor::Place)),
                Err(_) => return unsent(command, Failure::SessionEnded),
            },
        };
        let token = {
            let mut inner = self.lock();
            if inner.ended.is_some() {
                return unsent(command, Failure::SessionEnded);
            }
            let Some(index) = inner.free.pop() else { return unsent(command, Failure::SessionEnded) };
            permit.forget();
            let place = &mut inner.places[index as usize];
            place.generation = place.generation.wrapping_add(1);
            place.state = State::Waiting(None);
            let token = u64::from(place.generation) << 32 | u64::from(index);
            command.token = token;
            inner.submitted.push_back(command);
            token
        };
        self.signal(&self.work);
        Operation { shared: self, token, done: false }.await
    }

    /// Waits for a place in the table; `None` when none becomes free within the limit.
    async fn wait_for_place(&self) -> Result<Option<SemaphorePermit<'_>>, Error> {
        let over = |_| self.end_reason().unwrap_or(Error::LoggedOut);
        let (Some(limit), Some(runtime)) = (self.place_limit, &self.runtime) else {
            return self.permits.acquire().await.map(Some).map_err(over);
        };
        let mut place = pin!(self.permits.acquire());
        loop {
            let before = self.stats();
            let waits = {
                let _timers = runtime.enter();
                timeout(limit, place.as_mut())
            };
            match waits.await {
                Ok(permit) => return permit.map(Some).map_err(over),
                Err(_) => {
                    let now = self.stats();
                    // Between connections the deadline of the reconnect bounds the wait.
                    let stands_still = (now.commands, now.reconnects) == (before.commands, before.reconnects);
                    if now.connected && stands_still {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Asks for something that is no command.
    pub(super) async fn ask(&self, control: impl FnOnce(u32) -> Control) -> Result<ControlAnswer, Error> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lock();
            if let Some(error) = &inner.ended {
                return Err(error.clone());
            }
            let id = inner.next_control;
            inner.next_control = id.wrapping_add(1);
            inner.controls.push_back(control(id));
            inner.asked.push((id, sender));
        }
        self.signal(&self.side_work);
        match receiver.await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.end_reason().unwrap_or(Error::LoggedOut)),
        }
    }

    /// Asks for the session's end. Many may ask.
    pub(super) fn log_out(&self) {
        self.lock().controls.push_back(Control::Logout);
        self.signal(&self.side_work);
        self.ending.notify_one();
    }

    /// The session is over for this reason; nothing is accepted any more.
    pub(super) fn end(&self, reason: Error) {
        let mut inner = self.lock();
        inner.stats.connected = false;
        let reason = inner.ended.get_or_insert(reason).clone();
        inner.asked.clear();
        inner.controls.clear();
        // Who handed a command over just before this may not have said so yet, and says so to nobody then.
        self.work.store(true, Ordering::Release);
        drop(inner);
        self.ended.notify_waiters();
        self.listeners.tell(SessionEvent::Ended(reason));
    }

    fn finish(&self, token: u64) -> Option<Completion> {
        let (index, _) = split(token);
        let mut inner = self.lock();
        let place = inner.places.get_mut(index)?;
        let State::Done(_) = place.state else { return None };
        let State::Done(completion) = std::mem::replace(&mut place.state, State::Free) else { return None };
        inner.free.push(index as u32);
        drop(inner);
        self.permits.add_permits(1);
        Some(completion)
    }
}

impl Inner {
    fn recycle(&mut self, completion: Completion) {
        if let Some(Payload::Buf(buf)) = completion.data_out {
            self.pool.give(buf);
        }
        if let Some(Payload::Buf(buf)) = completion.data_in {
            self.pool.give(buf);
        }
    }
}

/// A command that nobody has taken.
fn unsent(command: Command, failure: Failure) -> Completion {
    let Command { token, data_out, data_in, .. } = command;
    Completion::failed(token, failure, data_out, data_in)
}

/// A command under way. Dropping it lets go of the command: it is not sent if it has not been, and not repeated.
struct Operation<'a> {
    shared: &'a Shared,
    token: u64,
    done: bool,
}

impl Future for Operation<'_> {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let (index, _) = split(self.token);
        {
            let mut inner = self.shared.lock();
            if let State::Waiting(waker) = &mut inner.places[index].state {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
        }
        self.done = true;
        match self.shared.finish(self.token) {
            Some(completion) => Poll::Ready(completion),
            None => Poll::Pending,
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (index, _) = split(self.token);
        let mut inner = self.shared.lock();
        if let State::Waiting(_) = inner.places[index].state {
            inner.places[index].state = State::Abandoned;
            inner.abandoned.push(self.token);
            drop(inner);
            self.shared.signal(&self.shared.side_work);
            return;
        }
        drop(inner);
        if let Some(completion) = self.shared.finish(self.token) {
            self.shared.give_back(completion);
        }
    }
}

/// The connection's side.
#[derive(Debug)]
pub(super) struct Mailbox {
    shared: Arc<Shared>,
    incoming: VecDeque<Command>,
    done: Vec<Completion>,
    wakers: Vec<Waker>,
    controls: VecDeque<Control>,
    abandoned: Vec<u64>,
    pub(super) ready: Option<oneshot::Sender<()>>,
    /// What is known of the session before its login is done.
    pub(super) draft: Option<SessionInfo>,
    pub(super) reporter: Reporter,
    logins: u64,
}

impl Mailbox {
    pub(super) fn new(shared: Arc<Shared>, limits: &Limits) -> Self {
        let size = usize::from(limits.commands.clamp(1, 4096));
        Self {
            shared,
            incoming: VecDeque::with_capacity(size),
            done: Vec::with_capacity(size),
            wakers: Vec::with_capacity(size),
            controls: VecDeque::new(),
            abandoned: Vec::with_capacity(size),
            ready: None,
            draft: None,
            reporter: Reporter::default(),
            logins: 0,
        }
    }

    fn take_side_work(&mut self) {
        if self.shared.side_work.swap(false, Ordering::AcqRel) {
            let mut inner = self.shared.lock();
            self.controls.append(&mut inner.controls);
            self.abandoned.append(&mut inner.abandoned);
        }
    }

    fn take_work(&mut self) {
        if self.incoming.is_empty() && self.shared.work.swap(false, Ordering::AcqRel) {
            std::mem::swap(&mut self.incoming, &mut self.shared.lock().submitted);
        }
    }
}

impl Drop for Mailbox {
    /// Nobody carries out commands when the connection's side is gone: its task has ended, or its runtime has and took
    /// the task with it.
    fn drop(&mut self) {
        self.shared.end(Error::RuntimeGone);
        self.shared.permits.close();
        let mut inner = self.shared.lock();
        inner.submitted.clear();
        for (index, place) in (0u64..).zip(&mut inner.places) {
            if let State::Waiting(waker) = &mut place.state {
                self.wakers.extend(waker.take());
                let token = u64::from(place.generation) << 32 | index;
                place.state = State::Done(Completion::failed(token, Failure::SessionEnded, None, None));
            }
        }
        drop(inner);
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

impl Application for Mailbox {
    fn register(&mut self, waker: &Waker) {
        self.shared.waker.register(waker);
    }

    fn next_command(&mut self, _now: Instant) -> Option<Command> {
        self.take_work();
        self.incoming.pop_front()
    }

    fn next_control(&mut self) -> Option<Control> {
        self.take_side_work();
        self.controls.pop_front()
    }

    fn next_abandoned(&mut self) -> Option<u64> {
        self.take_side_work();
        loop {
            let token = self.abandoned.pop()?;
            self.take_work();
            // What has not been handed on yet ends here, be it that it waits behind what has been taken in before.
            let is_it = |command: &Command| command.token == token;
            let found = match self.incoming.iter().position(is_it) {
                Some(at) => self.incoming.remove(at),
                None => {
                    let submitted = &mut self.shared.lock().submitted;
                    submitted.iter().position(is_it).and_then(|at| submitted.remove(at))
                }
            };
            let Some(command) = found else { return Some(token) };
            self.done.push(unsent(command, Failure::Aborted));
        }
    }

    fn complete(&mut self, completion: Completion, _now: Instant) {
        self.done.push(completion);
    }

    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        let mut inner = self.shared.lock();
        if let Some(at) = inner.asked.iter().position(|(other, _)| *other == id) {
            let (_, sender) = inner.asked.swap_remove(at);
            // Who has dropped the receiver does not want to know.
            let _ = sender.send(answer);
        }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::LoggedIn(summary) => {
                self.logins += 1;
                let mut inner = self.shared.lock();
                inner.stats.connected = true;
                inner.stats.reconnects = self.logins - 1;
                inner.stats.mover = summary.mover;
                if let Some(mut info) = self.draft.take() {
                    info.tsih = summary.tsih;
                    info.read_depth = summary.mover.map(|mover| mover.read_depth);
                    info.tpgt = summary.target_portal_group_tag;
                    info.target_alias.clone_from(&summary.target_alias);
                    info.parameters = summary.parameters.clone();
                    inner.info = Some(info);
                }
                drop(inner);
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(());
                }
            }
            Event::Disconnected(_) => self.shared.lock().stats.connected = false,
            Event::OtherDisk { guard, difference, .. } => {
                self.shared.lock().differences.push((guard, difference.clone()));
            }
            Event::Resized { guard, blocks, .. } => {
                let sizes = &mut self.shared.lock().sizes;
                sizes.retain(|(other, _)| *other != guard);
                sizes.push((guard, blocks));
                self.shared.grown.fetch_add(1, Ordering::Release);
            }
            _ => {}
        }
        self.reporter.report(&event, |event| self.shared.listeners.tell(event));
    }

    fn flush(&mut self, counters: &Counters) {
        if self.done.is_empty() {
            return;
        }
        let mut freed = 0;
        {
            let mut inner = self.shared.lock();
            let inner = &mut *inner;
            inner.stats.commands = counters.commands;
            inner.stats.repeated = counters.repeated;
            inner.stats.unit_attentions = counters.unit_attentions;
            inner.stats.mover = counters.mover.or(inner.stats.mover);
            for completion in self.done.drain(..) {
                let (index, generation) = split(completion.token);
                let Some(place) = inner.places.get_mut(index).filter(|place| place.generation == generation) else {
                    continue;
                };
                match std::mem::replace(&mut place.state, State::Free) {
                    State::Waiting(waker) => {
                        place.state = State::Done(completion);
                        self.wakers.extend(waker);
                    }
                    State::Abandoned => {
                        inner.free.push(index as u32);
                        inner.recycle(completion);
                        freed += 1;
                    }
                    other @ (State::Free | State::Done(_)) => place.state = other,
                }
            }
        }
        if freed > 0 {
            self.shared.permits.add_permits(freed);
        }
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use scsi_proto::BlockIo;

    use super::*;

    fn under_way(shared: &Shared) -> Pin<Box<impl Future<Output = Completion> + '_>> {
        let mut command = Command::new(0, Lun::ZERO, BlockIo::new(0, 1).write());
        command.data_out = Some(Payload::Buf(Buf::zeroed(512)));
        let mut operation = Box::pin(shared.execute(command));
        assert!(operation.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        operation
    }

    fn end_of(mut operation: Pin<Box<impl Future<Output = Completion>>>) -> Completion {
        match operation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(completion) => completion,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_that_comes_with_the_end_completes() {
        let limits = Limits::default();
        let shared = Shared::new(&limits, &Timeouts::default());
        let mut mailbox = Mailbox::new(shared.clone(), &limits);
        let operation = under_way(&shared);
        // Its thread has handed it over, and is stopped before it says so.
        shared.work.store(false, Ordering::Release);
        shared.end(Error::LoggedOut);
        let command = mailbox.next_command(Instant::ZERO).expect("the command");
        let Command { token, data_out, .. } = command;
        mailbox.complete(Completion::failed(token, Failure::SessionEnded, data_out, None), Instant::ZERO);
        mailbox.flush(&Counters::default());
        assert!(end_of(operation).data_out.is_some());
    }

    #[test]
    fn a_dropped_command_is_not_handed_on_wherever_it_waits() {
        let limits = Limits::default();
        let shared = Shared::new(&limits, &Timeouts::default());
        let mut mailbox = Mailbox::new(shared.clone(), &limits);
        let operations: Vec<_> = (0..3).map(|_| under_way(&shared)).collect();
        // The target's window has room for one: two wait here, and those that come now wait behind them.
        assert!(mailbox.next_command(Instant::ZERO).is_some());
        let later: Vec<_> = (0..2).map(|_| under_way(&shared)).collect();
        drop(later);
        assert_eq!(mailbox.next_abandoned(), None, "the session has not heard of them");
        assert!(mailbox.next_command(Instant::ZERO).is_some() && mailbox.next_command(Instant::ZERO).is_some());
        assert!(mailbox.next_command(Instant::ZERO).is_none(), "what was dropped is not sent");
        mailbox.flush(&Counters::default());
        assert_eq!(shared.lock().free.len(), usize::from(limits.commands) - operations.len());
    }

    #[tokio::test]
    async fn who_waits_for_a_place_that_does_not_become_free_hears_of_it() {
        let limits = Limits { commands: 1, ..Limits::default() };
        let short = Duration::from_millis(1);
        let timeouts = Timeouts { standstill: short, command: short, task_management: short, ..Timeouts::default() };
        let shared = Shared::new(&limits, &timeouts);
        let mut mailbox = Mailbox::new(shared.clone(), &limits);
        let operation = under_way(&shared);
        let command = mailbox.next_command(Instant::ZERO).expect("the command");
        let read = || shared.execute(Command::new(0, Lun::ZERO, BlockIo::new(0, 1).read()));
        // Between two connections the limit is another.
        assert!(timeout(short * 20, read()).await.is_err());
        shared.lock().stats.connected = true;
        match read().await {
            Completion { result: Err(failure), .. } => assert_eq!(failure, Failure::NotSent(WaitsFor::Place)),
            other => panic!("{other:?}"),
        }
        mailbox.complete(Completion::failed(command.token, Failure::Aborted, None, None), Instant::ZERO);
        mailbox.flush(&Counters::default());
        assert!(end_of(operation).result.is_err());
        assert!(timeout(short, read()).await.is_err(), "there is a place, and nobody answers");
    }

    #[test]
    fn who_waits_when_the_connections_side_goes_away_hears_of_it() {
        let limits = Limits { commands: 1, ..Limits::default() };
        let shared = Shared::new(&limits, &Timeouts::default());
        let mut mailbox = Mailbox::new(shared.clone(), &limits);
        let operation = under_way(&shared);
        assert!(mailbox.next_command(Instant::ZERO).is_some());
        let mut second = Box::pin(shared.execute(Command::new(0, Lun::ZERO, BlockIo::new(0, 1).read())));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(&mut cx).is_pending(), "there is one place");
        drop(mailbox);
        assert_eq!(end_of(operation).result, Err(Failure::SessionEnded));
        assert!(matches!(
            second.as_mut().poll(&mut cx),
            Poll::Ready(Completion { result: Err(Failure::SessionEnded), .. })
        ));
        assert!(matches!(shared.end_reason(), Some(Error::RuntimeGone)));
    }
}
