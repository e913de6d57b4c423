//! Both sides' movers, connected by the loopback queue pair or by iWARP, under sessions that do whatever they like:
//! reads, writes and bidirectional commands of all sizes, residuals, sense, aborts, and the loss of the connection at
//! any step. What is moved is compared byte by byte, and every buffer comes back once.

mod initiator;
mod link;
mod target;

use std::collections::HashSet;
use std::sync::Arc;

use iscsi_memory::{Buf, Region};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::tcp::Role;
use iser_transport::loopback::{Faults, LoopbackConfig};
use iser_transport::mover::{IserCounters, IserMoverConfig};

use initiator::Initiator;
use link::{Ends, Link};
use target::Target;

/// Commands at a time.
const TASKS: u16 = 16;

/// The sense data of a command that ends with CHECK CONDITION.
const SENSE: &[u8] = &[0x70, 0, 5, 0, 0];

fn region(bytes: &[u8]) -> Arc<Region> {
    let region = Region::heap(bytes.len().max(1));
    region.reserve_for_write(0, bytes.len() as u64).unwrap();
    region.write(0, bytes);
    region
}

fn buf(bytes: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn length(&mut self) -> u32 {
        [1, 512, 4096, 8191, 8192, 8193, 20_000, 70_001][self.below(8) as usize]
    }
}

/// What a command is to do; its CDB tells the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    /// Bytes that it writes.
    out: u32,
    /// Bytes that it has room for, and bytes that the target has for it.
    room: u32,
    actual: u32,
    /// What kinds of memory the target uses.
    memory: u8,
    /// It is never answered.
    silent: bool,
    /// It ends with CHECK CONDITION.
    sense: bool,
    seed: u8,
}

impl Order {
    fn of(rng: &mut Rng) -> Self {
        let kind = rng.below(4);
        let out = if kind & 1 == 0 { rng.length() } else { 0 };
        let room = if kind & 2 == 0 { 0 } else { rng.length() };
        let actual = match rng.below(4) {
            _ if room == 0 => 0,
            0 => rng.length(),
            _ => room,
        };
        let [silent, sense] = [rng.below(8) == 0, rng.below(8) == 0];
        Self { out, room, actual, memory: rng.below(4) as u8, silent, sense, seed: rng.below(256) as u8 }
    }

    fn cdb(self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = self.memory;
        cdb[1] = self.silent.into();
        cdb[2] = self.seed;
        cdb[3] = self.sense.into();
        cdb[4..8].copy_from_slice(&self.out.to_be_bytes());
        cdb[8..12].copy_from_slice(&self.room.to_be_bytes());
        cdb[12..].copy_from_slice(&self.actual.to_be_bytes());
        cdb
    }

    fn from_cdb(cdb: [u8; 16]) -> Self {
        let word = |at: usize| u32::from_be_bytes(*cdb[at..].first_chunk().unwrap());
        let [silent, sense] = [cdb[1] != 0, cdb[3] != 0];
        Self { memory: cdb[0], silent, sense, seed: cdb[2], out: word(4), room: word(8), actual: word(12) }
    }

    fn pattern(self, len: u32) -> Vec<u8> {
        (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8).wrapping_add(self.seed)).collect()
    }
}

/// The buffers that a mover has, by address.
#[derive(Debug, Default)]
struct Ledger(HashSet<usize>);

impl Ledger {
    fn give(&mut self, buf: Buf) -> Buf {
        assert!(self.0.insert(buf.as_ptr() as usize));
        buf
    }

    fn take(&mut self, buf: &Buf) {
        assert!(self.0.remove(&(buf.as_ptr() as usize)), "a buffer comes back once");
    }
}

/// What happens to the connection, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Never,
    InitiatorTerminates,
    InitiatorAborts,
    TargetTerminates,
    TargetAborts,
    Cut,
}

fn config(role: Role) -> IserMoverConfig {
    IserMoverConfig { max_tasks: TASKS, receive_slack: 24, ..IserMoverConfig::new(role) }
}

/// What becomes of a connection.
struct Story {
    orders: Vec<Order>,
    parameters: Parameters,
    ending: Ending,
    /// The step at which it ends.
    at: u64,
    /// Nothing goes wrong by itself: every command is done.
    faultless: bool,
    /// Tasks are aborted now and then.
    aborts: bool,
}

impl Story {
    /// Many commands, with nothing in their way but the initiator's aborts.
    fn of(rng: &mut Rng) -> Self {
        let parameters = Parameters {
            rdma_extensions: true,
            initial_r2t: rng.below(2) == 0,
            immediate_data: rng.below(4) > 0,
            iser_hello_required: rng.below(4) == 0,
            first_burst_length: [512, 8192, 65_536][rng.below(3) as usize],
            peer_max_recv_data_segment_length: [512, 8192, 9000][rng.below(3) as usize],
            ..Parameters::default()
        };
        let orders = (0..60).map(|_| Order::of(rng)).collect();
        Self { orders, parameters, ending: Ending::Never, at: 0, faultless: true, aborts: true }
    }

    /// The target's view of the initiator's parameters.
    fn mirrored(&self) -> Parameters {
        Parameters {
            max_recv_data_segment_length: self.parameters.peer_max_recv_data_segment_length,
            peer_max_recv_data_segment_length: self.parameters.max_recv_data_segment_length,
            ..self.parameters.clone()
        }
    }

    /// Runs one connection, and returns how many commands were answered, and what the initiator and the target counted.
    fn run<L: Link>(mut self, (active, passive, mut link): Ends<L>, seed: u64) -> (u64, [IserCounters; 2]) {
        let rng = &mut Rng(seed);
        let mut initiator = Initiator::new(active, config(Role::Initiator), &self.parameters);
        let mut target = Target::new(passive, config(Role::Target), &self.mirrored());
        let is_left_alone = self.faultless && self.ending == Ending::Never;
        let (mut steps, mut idle) = (0u64, 0);
        while !(initiator.is_over() && target.is_over()) {
            steps += 1;
            assert!(steps < 2_000_000, "seed {seed}: the connection neither moves nor ends\n{initiator}\n{target}");
            if steps == self.at {
                match self.ending {
                    Ending::Never => {}
                    Ending::InitiatorTerminates => initiator.terminate(),
                    Ending::InitiatorAborts => initiator.abort(),
                    Ending::TargetTerminates => target.terminate(),
                    Ending::TargetAborts => target.abort(),
                    Ending::Cut => link.cut(&mut initiator.mover, &mut target.mover),
                }
            }
            match rng.below(16) {
                0 if initiator.may_submit() => {
                    if let Some(order) = self.orders.pop() {
                        initiator.submit(order, rng);
                    }
                }
                1 if self.aborts && rng.below(4) == 0 => initiator.abort_a_task(rng),
                2 | 3 => initiator.run(),
                4 | 5 => target.run(rng),
                _ => idle = if link.step(&mut initiator.mover, &mut target.mover) { 0 } else { idle + 1 },
            }
            if self.orders.is_empty() && initiator.is_idle() && is_left_alone {
                initiator.terminate();
            }
            if idle > 1000 {
                // Nothing moves: what is not answered is given up, or the connection is, as the sessions' timers would.
                idle = 0;
                if is_left_alone {
                    initiator.abort_all();
                } else {
                    initiator.abort();
                    target.abort();
                }
            }
            if initiator.is_over() || target.is_over() {
                self.orders.clear();
            }
        }
        if is_left_alone {
            assert_eq!(initiator.left(), 0, "seed {seed}");
        }
        let counters = [initiator.counters(), target.counters()];
        (initiator.finish() + target.finish(), counters)
    }
}

fn peaceful(seed: u64) -> LoopbackConfig {
    LoopbackConfig { faults: Faults::default(), ..LoopbackConfig::hostile(seed) }
}

#[test]
fn every_command_moves_what_it_is_to_move() {
    let mut answered = 0;
    for seed in 0..150 {
        let (done, [initiator, target]) = Story::of(&mut Rng(seed)).run(link::loopback(peaceful(seed), seed), seed);
        answered += done;
        // Immediate data are copied into their message, and nothing else is.
        assert_eq!(initiator.copied, initiator.immediate);
        assert!(target.read > 0 && target.written > 0);
    }
    assert!(answered > 150 * 30, "{answered}");
}

#[test]
fn every_command_moves_what_it_is_to_move_over_iwarp() {
    let answered: u64 = (0..40).map(|seed| Story::of(&mut Rng(seed)).run(link::iwarp(seed), seed).0).sum();
    assert!(answered > 40 * 30, "{answered}");
}

fn ends_at_any_step<L: Link>(seeds: u64, ends: impl Fn(u64) -> Ends<L>) {
    use Ending::{Cut, InitiatorAborts, InitiatorTerminates, TargetAborts, TargetTerminates};
    for seed in 0..seeds {
        for ending in [InitiatorTerminates, InitiatorAborts, TargetTerminates, TargetAborts, Cut] {
            let rng = &mut Rng(seed);
            let at = 1 + rng.below(4000);
            Story { ending, at, ..Story::of(rng) }.run(ends(seed), seed);
        }
    }
}

#[test]
fn an_end_at_any_step_loses_no_buffer() {
    ends_at_any_step(150, |seed| link::loopback(peaceful(seed), seed));
}

#[test]
fn an_end_at_any_step_loses_no_buffer_over_iwarp() {
    ends_at_any_step(25, link::iwarp);
}

#[test]
fn a_hostile_network_loses_no_buffer() {
    for seed in 0..400 {
        let story = Story { faultless: false, ..Story::of(&mut Rng(seed)) };
        story.run(link::loopback(LoopbackConfig::hostile(seed), seed), seed);
    }
}

/// Few STags, few places for work, short work: commands wait for each other, and all are done in the end.
#[test]
fn scarce_resources_only_make_it_slower() {
    for seed in 0..60 {
        let mut network = peaceful(seed);
        network.active.advertisements = 2 + (seed % 3) as usize;
        network.active.limits.work = 2;
        network.passive.limits.work = 3;
        network.passive.limits.transfer = 5000;
        network.passive.read_depth = 1;
        Story::of(&mut Rng(seed)).run(link::loopback(network, seed), seed);
    }
}

/// RFC 7145 5.1.3.
#[test]
fn a_hello_exchange_comes_before_everything() {
    for seed in 0..40 {
        let mut story = Story::of(&mut Rng(seed));
        story.parameters.iser_hello_required = true;
        let (answered, _) = story.run(link::loopback(peaceful(seed), seed), seed);
        assert!(answered > 0);
    }
}

/// What the initiator and the target count for one command that moves so many bytes.
fn counted(out: u32, room: u32) -> [IserCounters; 2] {
    // Lent memory at the target.
    let order = Order { out, room, actual: room, memory: 3, silent: false, sense: false, seed: 1 };
    let order = if room > 0 { Order { memory: 2, ..order } } else { order };
    let parameters = Parameters::default();
    let story = Story { orders: vec![order], parameters, ending: Ending::Never, at: 0, faultless: true, aborts: false };
    story.run(link::loopback(LoopbackConfig::default(), 1), 1).1
}

/// What is above the immediate limit is never copied, in neither direction.
#[test]
fn large_data_are_not_copied() {
    for (out, room, written, read) in [(70_000, 0, 0, 70_000), (0, 70_000, 70_000, 0)] {
        let [initiator, target] = counted(out, room);
        assert_eq!((initiator.copied, target.copied), (0, 0));
        assert_eq!((target.written, target.read), (written, read));
    }
}

/// What is within it travels with its command.
#[test]
fn small_writes_are_one_message_each_way() {
    let [initiator, target] = counted(4096, 0);
    assert_eq!((target.read, target.immediate), (0, 4096));
    // A login PDU each, and the command with its response.
    assert_eq!((initiator.sends, target.sends), (2, 2));
}
