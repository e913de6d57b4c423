//! The ends of connections that are fuzzed over more than one mover: a target with a disk that errs, and an initiator
//! under load.

use std::time::Duration;

use initiator_core::{Engine, Limits, LoginConfig, Timeouts};
use iscsi_proto::login::Offer;
use iscsi_proto::pdu::TaskFunction;
use target_core::session;

use crate::disk::{Disk, DiskPlan};
use crate::rng::Rng;
use crate::served::Served;
use crate::store::{Door, StorePlan};
use crate::trace::Trace;
use crate::transport::Transport;
use crate::workload::{Verdict, WorkPlan, Workload};

pub(super) const TARGET: &str = "iqn.2026-11.example.sim:fuzzed";

/// A target that [`TARGET`] names; `door` chooses the door of its disk.
pub(super) fn target(door: u8, limits: session::Limits) -> Served {
    let plan = StorePlan {
        delay: Duration::from_micros(200),
        slow: (100, Duration::from_secs(2)),
        read_errors: 20,
        write_errors: 20,
        ..StorePlan::sound([Door::Easy, Door::Queue, Door::Memory][usize::from(door) % 3])
    };
    Served::new(TARGET, plan, session::Limits { command_window: 16, ..limits })
}

/// An engine with operations for a disk of 128 blocks, each of at most so many, and the verdict on them.
pub(super) fn engine(seed: u8, most_blocks: u64) -> (Engine<Workload>, Verdict) {
    let work = WorkPlan {
        operations: 40,
        depth: 8,
        think: Duration::from_millis(5),
        most_blocks,
        reads: 500,
        others: 200,
        unmaps: 0,
        functions: 50,
        function_kinds: &[TaskFunction::AbortTaskSet, TaskFunction::LogicalUnitReset],
        abandons: 50,
        texts: 50,
        unmap: true,
        store_fails: true,
        untrusted: true,
        flips: false,
        wrong: 0,
        leaves: false,
        undisturbed: false,
        patience: Duration::ZERO,
        one_node: true,
        simple: false,
        function_within: None,
        drain: session::Limits::default().drain_timeout,
        within: None,
    };
    let verdict = Verdict::default();
    let store = StorePlan { blocks: 128, ..StorePlan::sound(Door::Memory) };
    let disk = Disk::new((0, None), DiskPlan::single(store), (Transport::Loopback, false), Rng::new(0, 0));
    let outside = (Trace::default(), verdict.clone());
    let rng = Rng::new(seed.into(), 4);
    let app = Workload::new(("fuzzed", 0), vec![disk], work, rng, outside, Default::default());
    (Engine::new(app, Timeouts::default(), Limits { commands: 16, ..Limits::default() }, 0), verdict)
}

/// What the initiator logs in with.
pub(super) fn login(offer: Offer) -> LoginConfig {
    let initiator = "iqn.2026-11.example.sim:fuzz";
    LoginConfig { offer, ..LoginConfig::new(initiator, TARGET, [0x80, 0, 0, 0, 0, 1], [7; 64]) }
}
