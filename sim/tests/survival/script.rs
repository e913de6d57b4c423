//! An application that does what it is told, command by command.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use initiator_core::application::{Application, Control};
use initiator_core::command::{Command, Completion};
use initiator_core::{Engine, InitiatorConnection, Limits, LoginConfig, Timeouts};
use iscsi_memory::{Payload, Region};

use iscsi_proto::tcp::Role;
use iscsi_proto::time::Instant;
use iser_transport::loopback::LoopbackQueue;
use iser_transport::mover::{IserMover, IserMoverConfig};
use scsi_proto::{CdbBuf, Lun};
use sim::by_hand::{FILL, cdb10};
use sim::served::Served;
use sim::store::{Door, StorePlan};
use target_core::session::{self, TargetConnection};

pub(crate) const TARGET: &str = "iqn.2026-11.example.sim:survives";
const GUARD: usize = 256;

/// Waves of commands, each when the one before it is done; then a logout.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) waves: VecDeque<Vec<Command>>,
    pub(crate) issued: usize,
    pub(crate) completed: Vec<Completion>,
    pub(crate) stays: bool,
    pub(crate) said_bye: bool,
}

impl Application for Script {
    fn register(&mut self, _: &Waker) {}

    fn next_command(&mut self, _: Instant) -> Option<Command> {
        while self.waves.front().is_some_and(Vec::is_empty) && self.issued == self.completed.len() {
            self.waves.pop_front();
        }
        let command = self.waves.front_mut()?.pop()?;
        self.issued += 1;
        Some(command)
    }

    fn next_control(&mut self) -> Option<Control> {
        let done = self.waves.iter().all(Vec::is_empty) && self.issued == self.completed.len();
        (done && !self.stays && !std::mem::replace(&mut self.said_bye, true)).then_some(Control::Logout)
    }

    fn complete(&mut self, completion: Completion, _: Instant) {
        self.completed.push(completion);
    }
}

/// Memory with guards around it, full of [`FILL`].
#[derive(Debug, Clone)]
pub(crate) struct Guarded(pub(crate) Arc<Region>, usize);

impl Guarded {
    pub(crate) fn new(len: usize) -> Self {
        let region = Region::heap(len + 2 * GUARD);
        region.reserve_for_write(0, region.len()).unwrap();
        region.write(0, &vec![FILL; len + 2 * GUARD]);
        Self(region, len)
    }

    pub(crate) fn sink(&self) -> Payload {
        Payload::Region(self.0.slice(GUARD as u64, self.1))
    }

    pub(crate) fn data(&self) -> Payload {
        Payload::Region(self.0.slice(GUARD as u64, self.1))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.1];
        self.0.read(GUARD as u64, &mut bytes);
        bytes
    }

    pub(crate) fn fill(&self, bytes: &[u8]) {
        self.0.write(GUARD as u64, bytes);
    }

    pub(crate) fn guards_hold(&self) -> bool {
        let mut all = vec![0; self.1 + 2 * GUARD];
        self.0.read(0, &mut all);
        all[..GUARD].iter().chain(&all[GUARD + self.1..]).all(|byte| *byte == FILL)
    }

    pub(crate) fn is_untouched(&self) -> bool {
        self.guards_hold() && self.bytes().iter().all(|byte| *byte == FILL)
    }
}

pub(crate) fn reads(token: u64, lba: u8, into: &Guarded) -> Command {
    let cdb = CdbBuf::new(&cdb10(false, lba, (into.1 / 512) as u8)[..10]).unwrap();
    Command { data_in: Some(into.sink()), ..Command::new(token, Lun::new(0).unwrap(), cdb) }
}

pub(crate) fn writes(token: u64, lba: u8, from: &Guarded) -> Command {
    let cdb = CdbBuf::new(&cdb10(true, lba, (from.1 / 512) as u8)[..10]).unwrap();
    Command { data_out: Some(from.data()), ..Command::new(token, Lun::new(0).unwrap(), cdb) }
}

pub(crate) fn mover_config(role: Role) -> IserMoverConfig {
    IserMoverConfig { max_tasks: 12, receive_slack: 12, ..IserMoverConfig::new(role) }
}

pub(crate) type Initiator = InitiatorConnection<IserMover<LoopbackQueue>, Script>;

pub(crate) fn initiator(queue: LoopbackQueue, script: Script) -> Initiator {
    let login = LoginConfig::new("iqn.2026-11.example.sim:script", TARGET, [0x80, 0, 0, 0, 0, 1], [7; 64]);
    let engine = Engine::new(script, Timeouts::default(), Limits { commands: 12, ..Limits::default() }, 0);
    let mover = IserMover::new(queue, mover_config(Role::Initiator));
    InitiatorConnection::new(mover, engine, login, Duration::from_secs(15), Instant::ZERO)
}

/// A target with one disk of 128 KiB, and its connection over a queue pair.
pub(crate) fn serve(queue: LoopbackQueue, door: Door) -> (TargetConnection<IserMover<LoopbackQueue>>, Served) {
    serve_with(queue, door, mover_config(Role::Target))
}

pub(crate) fn serve_with(
    queue: LoopbackQueue,
    door: Door,
    mover: IserMoverConfig,
) -> (TargetConnection<IserMover<LoopbackQueue>>, Served) {
    let plan = StorePlan { delay: Duration::from_micros(20), ..StorePlan::sound(door) };
    let limits = session::Limits { command_window: 8, immediate_commands: 4, ..session::Limits::default() };
    let served = Served::new(TARGET, plan, limits);
    (served.accept(IserMover::new(queue, mover)), served)
}
