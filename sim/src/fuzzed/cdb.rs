//! Any commands against the device server and the task executor, over the three doors of a store.
//!
//! The input is a list of operations: start a task with any CDB, give it its data or not, abort it, let time pass. Each task that is not aborted must end
//! exactly once, with no more data than the initiator expected.

use iscsi_memory::Payload;
use std::sync::Arc;
use std::time::Duration;

use iscsi_proto::datamover::{DataError, Source, TaskHandle};
use iscsi_proto::pdu::TaskAttribute;
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit, LunMap, NexusId};
use target_core::task::{ExecutorConfig, NewTask, Nexus, Step, TargetPort, TaskExecutor};

use crate::input::Input;
use crate::rng::Rng;
use crate::store::{Door, SimStore, StorePlan};

const SLOTS: u16 = 8;

/// One task of the harness.
#[derive(Debug, Clone, Copy, Default)]
struct Task {
    live: bool,
    generation: u16,
    most: u64,
}

struct Bench {
    executor: TaskExecutor,
    stores: Vec<SimStore>,
    tasks: [Task; SLOTS as usize],
    /// Tasks whose data are still to come.
    fetching: Vec<(TaskHandle, Payload)>,
    now: Instant,
    /// Bytes that a mover has sent, and those that it has still to send.
    sent: u64,
    backlog: u64,
}

/// Bytes that leave in a microsecond.
const PACE: u64 = 32;

/// What a step asks for, without its borrow.
enum Ask {
    Nothing,
    Fetch(Payload),
    /// It is over but for so many bytes that are still to be sent.
    Done(u64),
}

fn plan(door: Door, unmap: bool) -> StorePlan {
    StorePlan {
        door,
        block_size: if unmap { 512 } else { 4096 },
        blocks: 96,
        unmap,
        delay: Duration::from_micros(30),
        slow: (100, Duration::from_millis(5)),
        read_errors: 50,
        write_errors: 50,
        full: 20,
        sync_errors: 0,
        mapped: None,
        lose_write: None,
    }
}

/// Runs the operations in `data`.
pub fn cdb(data: &[u8]) {
    let mut input = Input::new(data);
    let stores: Vec<SimStore> = [(Door::Memory, true), (Door::Easy, false), (Door::Queue, true)]
        .into_iter()
        .zip(0..)
        .map(|((door, unmap), part)| SimStore::new(plan(door, unmap), Rng::new(0, part)))
        .collect();
    let mut map = LunMap::builder();
    for (number, store) in (0..).zip(&stores) {
        let unit = LogicalUnit::new(Arc::new(store.clone()), Identity::from_seed("fuzzed")).expect("a disk");
        map = map.insert(number, Arc::new(unit), number == 5);
    }
    let nexus = Nexus {
        id: NexusId(1),
        initiator_name: "iqn.2026-11.example.sim:fuzz".into(),
        isid: [0x80, 0, 0, 0, 0, 1],
        target_name: "iqn.2026-11.example.sim:disk".into(),
        portal_group_tag: 1,
        ports: Arc::new([TargetPort { portal_group_tag: 1, relative: 1, group: 1 }]),
        protocol_level: 2,
    };
    let config = ExecutorConfig { slots: SLOTS, max_buffered: 1 << 20, max_idle: 1 << 18 };
    let executor = TaskExecutor::new(config, Arc::new(map.build()), nexus);
    let mut bench = Bench {
        executor,
        stores,
        tasks: [Task::default(); SLOTS as usize],
        fetching: Vec::new(),
        now: Instant::ZERO,
        sent: 0,
        backlog: 0,
    };
    while !input.is_empty() {
        match input.below(8) {
            0..4 => bench.start(&mut input),
            4 => bench.fetch(&mut input),
            5 => bench.abort(input.below(SLOTS as u8).into()),
            6 => {
                let wait = Duration::from_micros(input.u16().into());
                bench.pass(wait);
            }
            _ => bench.pass(Duration::ZERO),
        }
    }
    bench.finish();
}

impl Bench {
    fn start(&mut self, input: &mut Input<'_>) {
        let flags = input.u8();
        let slot = usize::from(input.below(SLOTS as u8));
        let lun = u64::from(input.below(4)) << 48;
        let expected = match input.below(6) {
            0 => 0,
            1 => 512,
            2 => 4096,
            3 => u32::from(input.u16()),
            4 => 96 * 512,
            _ => input.u32(),
        };
        let length = usize::from(input.u8());
        let mut cdb = input.bytes(length).to_vec();
        if cdb.len() < 16 {
            cdb.resize(16, 0);
        }
        if self.tasks[slot].live {
            return;
        }
        let attribute = match flags >> 3 & 7 {
            0..4 => TaskAttribute::Simple,
            4 => TaskAttribute::Ordered,
            5 => TaskAttribute::HeadOfQueue,
            6 => TaskAttribute::Aca,
            _ => TaskAttribute::Untagged,
        };
        let (read, write) = (flags & 1 != 0, flags & 2 != 0);
        let bidirectional = (read && write && flags & 0x40 != 0).then_some(expected / 2);
        let generation = self.tasks[slot].generation.wrapping_add(1);
        let most = u64::from(expected.max(bidirectional.unwrap_or(0)));
        self.tasks[slot] = Task { live: true, generation, most };
        let task = TaskHandle { slot: slot as u16, generation };
        self.executor.note_sends(self.sent, self.backlog as usize);
        let ask = ask(
            self.executor.start(NewTask {
                task,
                lun,
                itt: task.to_itt(),
                cdb: &cdb,
                attribute,
                read,
                write,
                immediate: false,
                unsolicited: write && flags & 0x80 != 0,
                expected_data_transfer_length: expected,
                bidirectional_read_length: bidirectional,
                direct_placement: flags & 4 != 0,
            }),
            most,
        );
        self.take(task, ask);
    }

    fn take(&mut self, task: TaskHandle, (ask, back): (Ask, Option<iscsi_memory::Buf>)) {
        if let Some(buf) = back {
            self.executor.give(buf);
        }
        match ask {
            Ask::Nothing => {}
            Ask::Fetch(sink) => {
                assert!(
                    sink.len() as u64 <= self.tasks[usize::from(task.slot)].most,
                    "no more is fetched than there is"
                );
                assert!(sink.len() <= 1 << 20, "what a task holds is bounded");
                self.fetching.push((task, sink));
            }
            Ask::Done(bytes) => {
                self.backlog += bytes;
                let own = &mut self.tasks[usize::from(task.slot)];
                assert!(own.live && own.generation == task.generation, "a task ends once");
                own.live = false;
            }
        }
    }

    fn fetch(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        let data = input.chunk();
        if self.fetching.is_empty() {
            return;
        }
        let (task, mut sink) = self.fetching.swap_remove(usize::from(how >> 4) % self.fetching.len());
        match &mut sink {
            Payload::Buf(buf) => {
                for (to, from) in buf.iter_mut().zip(data.iter().cycle()) {
                    *to = *from;
                }
            }
            Payload::Region(slice) => slice.write(0, &data[..data.len().min(slice.len())]),
        }
        let most = self.tasks[usize::from(task.slot)].most;
        let step = if how & 7 == 0 {
            ask(self.executor.data_failed(task, sink, DataError::IncorrectAmountOfData), most)
        } else {
            ask(self.executor.data_arrived(task, sink), most)
        };
        self.take(task, step);
    }

    fn abort(&mut self, slot: usize) {
        let own = &mut self.tasks[slot];
        if !own.live {
            return;
        }
        own.live = false;
        let task = TaskHandle { slot: slot as u16, generation: own.generation };
        self.executor.abort(task);
        // The mover gives the sink back.
        if let Some(at) = self.fetching.iter().position(|(other, _)| *other == task)
            && let (_, Payload::Buf(buf)) = self.fetching.swap_remove(at)
        {
            self.executor.give(buf);
        }
    }

    fn pass(&mut self, wait: Duration) {
        self.now = self.now + wait;
        for store in &self.stores {
            store.advance(self.now);
        }
        let now = self.backlog.min(wait.as_micros() as u64 * PACE);
        (self.sent, self.backlog) = (self.sent + now, self.backlog - now);
        self.executor.note_sends(self.sent, self.backlog as usize);
        self.executor.set_waker(core::task::Waker::noop());
        self.executor.submit();
        let mut steps = 0;
        loop {
            let tasks = &self.tasks;
            let Some((task, step)) =
                self.executor.poll().map(|(task, step)| (task, ask(step, tasks[usize::from(task.slot)].most)))
            else {
                break;
            };
            self.take(task, step);
            steps += 1;
            assert!(steps < 1000, "a poll comes to an end");
        }
    }

    /// Everything still under way comes to its end.
    fn finish(&mut self) {
        while let Some((task, sink)) = self.fetching.pop() {
            let most = self.tasks[usize::from(task.slot)].most;
            let step = ask(self.executor.data_arrived(task, sink), most);
            self.take(task, step);
        }
        for _ in 0..2000 {
            self.pass(Duration::from_millis(1));
            while let Some((task, sink)) = self.fetching.pop() {
                let most = self.tasks[usize::from(task.slot)].most;
                let step = ask(self.executor.data_arrived(task, sink), most);
                self.take(task, step);
            }
            if self.tasks.iter().all(|task| !task.live) && self.executor.busy(None) == 0 && self.backlog == 0 {
                break;
            }
        }
        assert!(self.tasks.iter().all(|task| !task.live), "every task ends: {:?}", self.tasks);
        assert_eq!((self.executor.busy(None), self.executor.awaits_sends()), (0, false), "nobody waits for anything");
        assert!(self.stores.iter().all(|store| store.under_way().0 == 0), "no store operation is left");
    }
}

fn ask(step: Step<'_>, most: u64) -> (Ask, Option<iscsi_memory::Buf>) {
    match step {
        Step::Pending => (Ask::Nothing, None),
        Step::GetData { sink } => (Ask::Fetch(sink), None),
        Step::Send { data, offset } => {
            assert!(
                u64::from(offset) + (data.len() as u64) < most,
                "there is something left to be sent with the status"
            );
            (Ask::Nothing, if let Source::Buf(buf) = data { Some(buf) } else { None })
        }
        Step::Respond { data, offset, status } => {
            assert!(u64::from(offset) + data.len() as u64 <= most, "no more is sent than the initiator expects");
            assert!(status.sense.len() <= 252);
            (Ask::Done(data.len() as u64), if let Source::Buf(buf) = data { Some(buf) } else { None })
        }
    }
}
