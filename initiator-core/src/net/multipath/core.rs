//! What carries the decisions of [`Paths`] out over sessions.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use iscsi_driver::Clock;
use iscsi_proto::pdu::{TaskFunction, TaskResponse};
use iscsi_proto::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::{Disk, DiskInfo};
use super::change::Request;
use super::path::{self, ask_access};
use crate::config::SessionConfig;
use crate::error::Error;
use crate::multipath::{Action, Operation, Outcome, Paths, Verdict};

/// A path: what it is made of, and its session.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) way: (SessionConfig, u16),
    pub(super) disk: Option<Disk>,
    pub(super) last_error: Option<Error>,
    /// Its session is to answer something.
    pub(super) prove: Arc<Notify>,
}

/// What an operation is to do next.
#[derive(Debug)]
enum Order {
    Send(Disk),
    End(Verdict),
}

#[derive(Debug, Default)]
struct Slot {
    order: Option<Order>,
    waker: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) paths: Paths,
    pub(super) links: Vec<Link>,
    slots: HashMap<u64, Slot>,
    /// Portal groups by target and tag; their places are their numbers.
    groups: Vec<(String, u16)>,
    armed: Option<Instant>,
    /// All paths are logged out of, and operations end.
    pub(super) closed: bool,
}

impl Inner {
    /// Whether a path's session is still this one.
    pub(super) fn is_still(&self, path: usize, disk: &Disk) -> bool {
        self.links[path].disk.as_ref().is_some_and(|own| own.session().is_same(disk.session()))
    }

    /// All paths are logged out of. Gives their disks.
    pub(super) fn log_out(&mut self) -> Vec<Disk> {
        self.closed = true;
        for slot in self.slots.values_mut() {
            slot.waker.take().into_iter().for_each(Waker::wake);
        }
        self.links.iter_mut().filter_map(|link| link.disk.take()).collect()
    }

    /// The number of the portal group that a session is logged in to.
    pub(super) fn group(&mut self, disk: &Disk) -> Option<u32> {
        let info = disk.session().info();
        let group = (info.target_name, info.tpgt?);
        let place = self.groups.iter().position(|other| *other == group).unwrap_or_else(|| {
            self.groups.push(group);
            self.groups.len() - 1
        });
        Some(place as u32)
    }
}

/// What all handles and the tasks of the paths share.
#[derive(Debug)]
pub(super) struct Core {
    inner: Mutex<Inner>,
    /// What the disk told about itself by the first path.
    pub(super) info: DiskInfo,
    runtime: Handle,
    /// `None` once the last handle is gone.
    tasks: Mutex<Option<JoinSet<()>>>,
    timer: Notify,
    /// A path is lost or back, or its port stands otherwise.
    pub(super) changed: Notify,
}

impl Core {
    pub(super) fn new(paths: Paths, links: Vec<Link>, info: DiskInfo) -> Arc<Self> {
        let inner = Inner { paths, links, slots: HashMap::new(), groups: Vec::new(), armed: None, closed: false };
        let core = Arc::new(Self {
            inner: Mutex::new(inner),
            info,
            runtime: Handle::current(),
            tasks: Mutex::new(Some(JoinSet::new())),
            timer: Notify::new(),
            changed: Notify::new(),
        });
        core.spawn(keep_time(core.clone()));
        core
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at how things stand.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.lock())
    }

    /// Tells the paths something, and does what they want done.
    pub(super) fn with<T>(self: &Arc<Self>, tell: impl FnOnce(&mut Inner, Instant) -> T) -> T {
        let (mut wakers, mut others) = (Vec::new(), Vec::new());
        let mut inner = self.lock();
        let before = inner.paths.changes();
        let told = tell(&mut inner, Clock::process().now());
        while let Some(action) = inner.paths.poll() {
            let (operation, order) = match action {
                Action::Send { operation, path } => match &inner.links[path].disk {
                    Some(disk) => (operation, Order::Send(disk.clone())),
                    None => (operation, Order::End(Verdict::Abandoned)),
                },
                Action::End { operation, verdict } => (operation, Order::End(verdict)),
                action => {
                    others.push(action);
                    continue;
                }
            };
            // One whose future is gone has none.
            if let Some(slot) = inner.slots.get_mut(&operation) {
                slot.order = Some(order);
                wakers.extend(slot.waker.take());
            }
        }
        let changed = inner.paths.changes() != before;
        let at = inner.paths.poll_timeout();
        let sooner = at.is_some_and(|at| inner.armed.is_none_or(|armed| at < armed));
        inner.armed = at;
        drop(inner);
        if sooner {
            self.timer.notify_one();
        }
        if changed {
            self.changed.notify_waiters();
        }
        wakers.into_iter().for_each(Waker::wake);
        others.into_iter().for_each(|action| self.act(action));
        told
    }

    fn act(self: &Arc<Self>, action: Action) {
        let core = self.clone();
        match action {
            Action::Send { .. } | Action::End { .. } => {}
            Action::Connect { path } => self.spawn(path::keep(core, path)),
            Action::AskAccess { path } => self.spawn(async move {
                let Some(disk) = core.disk(path) else { return };
                let access = ask_access(&disk).await.ok();
                core.with(|inner, now| {
                    if inner.is_still(path, &disk) {
                        inner.paths.told(path, access, now);
                    }
                });
            }),
            Action::Prove { path } => self.look(|inner| inner.links[path].prove.notify_one()),
            Action::Clear { path } => self.spawn(async move {
                let Some(disk) = core.disk(path) else { return };
                // A session that has ended keeps no list.
                let _ = disk.take_lost_writes().await;
                core.with(|inner, now| {
                    if inner.is_still(path, &disk) {
                        inner.paths.cleared(path, now);
                    }
                });
            }),
            Action::Reinstate { path, over } => self.spawn(async move {
                let done = path::reinstate(&core, path, over).await;
                core.with(|inner, now| inner.paths.reinstated(path, done, now));
            }),
            Action::Reset { over } => self.spawn(async move {
                let done = match core.disk(over) {
                    Some(disk) => {
                        let reset = disk.session().task_management(TaskFunction::LogicalUnitReset, disk.lun()).await;
                        matches!(reset, Ok(TaskResponse::Complete))
                    }
                    None => false,
                };
                core.with(|inner, now| inner.paths.reset_done(done, now));
            }),
        }
    }

    pub(super) fn disk(&self, path: usize) -> Option<Disk> {
        self.look(|inner| inner.links[path].disk.clone())
    }

    /// Runs a task that ends with the last handle.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = &mut *tasks {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    /// The last handle is gone, or logs out: nothing is kept up any more.
    pub(super) fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Takes an operation in, in its turn.
    pub(super) fn submit(self: &Arc<Self>, operation: Operation) -> Turn {
        let number = self.with(|inner, now| {
            let number = inner.paths.submit(operation, now);
            inner.slots.insert(number, Slot::default());
            number
        });
        Turn { core: self.clone(), number }
    }
}

async fn keep_time(core: Arc<Core>) {
    loop {
        let at = core.look(|inner| inner.armed);
        let due = async {
            match at {
                Some(at) => tokio::time::sleep_until(Clock::process().std_instant(at).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = core.timer.notified() => {}
            () = due => core.with(|inner, now| inner.paths.handle_timeout(now)),
        }
    }
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Turn {
    core: Arc<Core>,
    pub(super) number: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let number = self.number;
        self.core.with(|inner, now| {
            inner.slots.remove(&number);
            inner.paths.abandon(number, now);
        });
    }
}

impl Turn {
    fn poll_order(&self, cx: &Context<'_>) -> Poll<Order> {
        let mut inner = self.core.lock();
        let closed = inner.closed;
        let Some(slot) = inner.slots.get_mut(&self.number) else { return Poll::Pending };
        match slot.order.take() {
            Some(order) => Poll::Ready(order),
            None if closed => Poll::Ready(Order::End(Verdict::Abandoned)),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Carries a request out by whatever paths it takes.
    pub(super) async fn run(self, request: &mut Request<'_>) -> Result<(), Error> {
        let mut last = Error::LoggedOut;
        loop {
            let disk = match poll_fn(|cx| self.poll_order(cx)).await {
                Order::Send(disk) => disk,
                Order::End(verdict) => return self.verdict(verdict, last),
            };
            let outcome = match request.send(&disk).await {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    let outcome = outcome(&error, disk.session().has_ended());
                    last = error;
                    outcome
                }
            };
            drop(disk);
            self.core.with(|inner, now| inner.paths.ended(self.number, outcome, now));
        }
    }

    fn verdict(&self, verdict: Verdict, last: Error) -> Result<(), Error> {
        match verdict {
            Verdict::Done => Ok(()),
            Verdict::AsTold => Err(last),
            Verdict::Abandoned => Err(Error::LoggedOut),
            Verdict::LostWrites => Err(Error::LostWrites { lun: self.core.look(|inner| inner.links[0].way.1) }),
            Verdict::NoPath => {
                let told = self.core.look(|inner| inner.links.iter().find_map(|link| link.last_error.clone()));
                let after = self.core.look(|inner| inner.paths.config().no_path);
                Err(Error::NoPath { after, last: Arc::new(told.unwrap_or(last)) })
            }
        }
    }
}

/// What an error of a path's disk says. `over`: its session has ended.
fn outcome(error: &Error, over: bool) -> Outcome {
    match error {
        Error::LostWrites { .. } => Outcome::LostWrites,
        Error::OtherDisk { .. } => Outcome::PathLost,
        Error::Command { failure, .. } => Outcome::of(&Err(*failure), over),
        Error::Scsi { outcome, .. } => Outcome::of(&Ok(*outcome), over),
        Error::Miscompare(_)
        | Error::Short { .. }
        | Error::Range { .. }
        | Error::Unsupported(_)
        | Error::BadAnswer { .. }
        | Error::Config(_) => Outcome::Failed { may_have_run: true },
        _ if over => Outcome::PathLost,
        _ => Outcome::Failed { may_have_run: true },
    }
}
