//! The odd target with its portals.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use initiator_core::{Connected, Connector};
use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{Instant as At, sleep_until};

use super::plan::{LibraryPlan, Trouble};
use crate::driven::wire::{End, Ends, WirePlan, wire};
use crate::driven::work::{Costs, Meter};
use crate::driven::{Fault, Log};
use crate::odd::disk::OddDisk;
use crate::odd::plan::{Comeback, Plan};
use crate::odd::target::Connection;
use crate::rng::Rng;

/// The port of the first portal.
pub(super) const FIRST_PORT: u16 = 3260;

#[derive(Debug)]
struct State {
    rng: Rng,
    disk: OddDisk,
    wires: u64,
    /// The number of the connection that stands, or stood last: older ones are over.
    current: u64,
    /// By which portal it came.
    came_by: usize,
    /// Until when each portal is away.
    away: Vec<At>,
    /// What the next connection is told at first.
    attention: Option<AdditionalSense>,
    /// All that the window allows has come, and it stays closed for now.
    is_shut: bool,
    /// Numbers of commands that have come.
    came: BTreeSet<u64>,
    /// Numbers of those that were dropped before they could be sent.
    never: BTreeSet<u64>,
    /// Where the next attempt has to go, where that is known.
    expected: Option<usize>,
    /// The last login was sent elsewhere; so was the one that stands.
    redirected: bool,
    by_redirection: bool,
    /// The portal to which the last attempt came to nothing.
    refused: Option<usize>,
    logins: u64,
}

#[derive(Debug)]
struct Inner {
    plan: Plan,
    portals: usize,
    redirects: Option<(usize, bool)>,
    seed: u64,
    begin: At,
    log: Log,
    fault: Fault,
    meter: Meter,
    ends: Ends,
    arrivals: mpsc::UnboundedSender<(End, u64, usize)>,
    /// The number of the connection that may go on.
    turn: watch::Sender<u64>,
    state: Mutex<State>,
}

/// The target, seen by who connects to it.
#[derive(Debug, Clone)]
pub(super) struct Host(Arc<Inner>);

impl Host {
    pub(super) fn open(plan: &LibraryPlan, seed: u64, log: &Log, fault: &Fault) -> (Self, JoinHandle<()>) {
        let (arrivals, mut inbox) = mpsc::unbounded_channel();
        let begin = At::now();
        let state = State {
            rng: Rng::new(seed, 4),
            disk: OddDisk::new(plan.odd.blocks, plan.odd.volatile),
            wires: 0,
            current: 0,
            came_by: 0,
            away: vec![begin; plan.portals],
            attention: None,
            is_shut: false,
            came: BTreeSet::new(),
            never: BTreeSet::new(),
            expected: None,
            redirected: false,
            by_redirection: false,
            refused: None,
            logins: 0,
        };
        let host = Self(Arc::new(Inner {
            plan: plan.odd.clone(),
            portals: plan.portals,
            redirects: plan.redirects,
            seed,
            begin,
            log: log.clone(),
            fault: fault.clone(),
            meter: Meter::new(Costs { call: Duration::ZERO, kib: Duration::ZERO }),
            ends: Ends::default(),
            arrivals,
            turn: watch::channel(0).0,
            state: Mutex::new(state),
        }));
        let (own, troubles) = (host.clone(), plan.troubles.clone());
        let serving = spawn_local(async move {
            let mut tasks = JoinSet::new();
            tasks.spawn_local(own.clone().trouble(troubles));
            while let Some((end, number, portal)) = inbox.recv().await {
                tasks.spawn_local(own.clone().serve(end, number, portal));
            }
        });
        (host, serving)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.0.begin.elapsed()
    }

    pub(super) fn logins(&self) -> u64 {
        self.state().logins
    }

    /// Looks at the disk.
    pub(super) fn with_disk<T>(&self, look: impl FnOnce(&OddDisk) -> T) -> T {
        look(&self.state().disk)
    }

    /// Nobody waits for a command any more. While the window is closed, and has been used up, what has not come by now
    /// was not sent, and is never to be.
    pub(super) fn dropped(&self, command: u64) {
        let state = &mut *self.state();
        if state.is_shut && !state.came.contains(&command) {
            state.never.insert(command);
        }
    }

    /// All connections are over.
    pub(super) fn end(&self) {
        self.0.turn.send_replace(u64::MAX);
    }

    async fn trouble(self, troubles: Vec<(Duration, Trouble)>) {
        for (at, trouble) in troubles {
            sleep_until(self.0.begin + at).await;
            self.0.log.event(format_args!("{trouble:?}"));
            let state = &mut *self.state();
            match trouble {
                Trouble::Cut => {}
                Trouble::Gone(span) => {
                    let gone = state.came_by;
                    // Another portal is up.
                    let now = At::now();
                    if (0..self.0.portals).any(|other| other != gone && state.away[other] <= now) {
                        state.away[gone] = now + span;
                    }
                }
                Trouble::Forgetful => {
                    state.disk.comes_back(Comeback::Forgetful);
                    state.attention = Some(AdditionalSense::POWER_ON_OCCURRED);
                }
            }
            self.0.turn.send_replace(state.current + 1);
        }
        pending::<()>().await;
    }

    /// An attempt goes to a portal: is that where it has to go?
    fn attempt(&self, state: &mut State, portal: usize) {
        if state.expected.take().is_some_and(|expected| expected != portal) {
            self.0.fault.found(format!("a login goes to portal {portal}, and not where the target is"));
        }
        if self.0.portals > 1 && state.refused == Some(portal) {
            self.0.fault.found(format!("a login goes to portal {portal} again, where nobody is, and not to another"));
        }
    }

    async fn serve(self, mut end: End, number: u64, portal: usize) {
        let mut turn = self.0.turn.subscribe();
        let attention = self.state().attention;
        let mut connection = Connection::new(attention);
        connection.redirect = self
            .0
            .redirects
            .filter(|_| portal == 0)
            .map(|(to, permanent)| (format!("127.0.0.1:{},1", FIRST_PORT + to as u16), permanent));
        let mut bytes = vec![0; 64 << 10];
        loop {
            if *turn.borrow_and_update() > number {
                self.0.log.event(format_args!("connection {number} is cut"));
                return;
            }
            let now = self.now();
            let out: Vec<u8> = {
                let state = &mut *self.state();
                connection.advance(&mut state.disk, &self.0.plan, &mut state.rng, now);
                self.look(state, &mut connection, portal);
                connection.outbox.drain(..).collect()
            };
            if !out.is_empty() && end.write_all(&out).await.is_err() {
                return;
            }
            if connection.is_over {
                let _ = end.shutdown().await;
                return;
            }
            let next = connection.next().map(|at| self.0.begin + (at - Instant::ZERO));
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = turn.changed() => {}
                read = end.read(&mut bytes) => match read {
                    Ok(n) if n > 0 => {
                        let now = self.now();
                        let state = &mut *self.state();
                        connection.receive(&bytes[..n], &state.disk, &self.0.plan, &mut state.rng, now);
                    }
                    _ => return,
                },
                () = due => {}
            }
        }
    }

    /// What a connection has come to.
    fn look(&self, state: &mut State, connection: &mut Connection, portal: usize) {
        state.redirected |= connection.redirect.is_some() && connection.is_over;
        if let Some(what) = connection.broken.take() {
            self.0.fault.found(what);
        }
        if connection.has_told {
            state.attention = None;
        }
        if connection.is_up && !std::mem::replace(&mut connection.is_counted, true) {
            state.logins += 1;
            // What the first portal says for good holds for later logins; what it says for now, for one.
            let for_now = state.by_redirection && matches!(self.0.redirects, Some((_, false)));
            state.expected = Some(if for_now { 0 } else { portal });
        }
        state.is_shut = connection.is_shut();
        for command in connection.take_commands() {
            state.came.insert(command);
            if state.never.contains(&command) {
                self.0.fault.found(format!("write {command} comes, which was dropped before it could be sent"));
            }
        }
    }
}

impl Connector for Host {
    type Stream = End;

    async fn connect(&self, to: SocketAddr) -> io::Result<Connected<End>> {
        let state = &mut *self.state();
        let portal = usize::from(to.port() - FIRST_PORT);
        self.0.log.event(format_args!("an attempt at portal {portal}"));
        self.attempt(state, portal);
        if state.away[portal] > At::now() {
            state.refused = Some(portal);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.refused = None;
        state.by_redirection = std::mem::take(&mut state.redirected);
        state.wires += 1;
        (state.current, state.came_by) = (state.wires, portal);
        let number = state.wires;
        let plan = WirePlan {
            delay: (self.0.plan.link.delay, self.0.plan.link.jitter),
            chunk: self.0.plan.link.chunk,
            ..WirePlan::plain()
        };
        let rng = Rng::new(self.0.seed, 10_000 + number);
        let (ours, theirs) = wire(number, plan, rng, &self.0.log, &self.0.meter, &self.0.ends);
        self.0.turn.send_replace(number);
        self.0.arrivals.send((theirs, number, portal)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let local = ([127, 0, 0, 1], 40_000 + number as u16).into();
        Ok(Connected { stream: ours, local, peer: to })
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.state().rng.fill(bytes);
        Ok(())
    }
}
