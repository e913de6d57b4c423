//! Both sides' movers, connected by the loopback queue pair, under sessions that do whatever they like: reads, writes and bidirectional commands of all
//! sizes, residuals, aborts, and the loss of the connection at any step. What is moved is compared byte by byte, and every buffer comes back once.

mod initiator;
mod target;

use std::collections::HashSet;

use iscsi_memory::Buf;
use iscsi_proto::parameters::Parameters;
use iscsi_proto::tcp::Role;
use iser_transport::loopback::{Faults, LoopbackConfig, pair};
use iser_transport::mover::{IserCounters, IserMoverConfig};

use initiator::Initiator;
use target::Target;

/// Commands at a time.
const TASKS: u16 = 16;

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
        Self { out, room, actual, memory: rng.below(4) as u8, silent: rng.below(8) == 0, seed: rng.below(256) as u8 }
    }

    fn cdb(self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = self.memory;
        cdb[1] = self.silent.into();
        cdb[2] = self.seed;
        cdb[4..8].copy_from_slice(&self.out.to_be_bytes());
        cdb[8..12].copy_from_slice(&self.room.to_be_bytes());
        cdb[12..].copy_from_slice(&self.actual.to_be_bytes());
        cdb
    }

    fn from_cdb(cdb: [u8; 16]) -> Self {
        let word = |at: usize| u32::from_be_bytes(*cdb[at..].first_chunk().unwrap());
        Self { memory: cdb[0], silent: cdb[1] != 0, seed: cdb[2], out: word(4), room: word(8), actual: word(12) }
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

/// Runs one connection, and returns how many commands were answered, and what each side counted.
fn run(
    network: LoopbackConfig,
    parameters: &Parameters,
    seed: u64,
    ending: (Ending, u64),
    faultless: bool,
) -> (u64, [IserCounters; 2]) {
    let rng = &mut Rng(seed);
    let (active, passive, fabric) = pair(network, seed);
    let mut initiator = Initiator::new(active, config(Role::Initiator), parameters);
    let mut target = Target::new(passive, config(Role::Target), parameters);
    let (mut orders, mut steps, mut idle) = (60, 0u64, 0);
    while !(initiator.is_over() && target.is_over()) {
        steps += 1;
        assert!(steps < 2_000_000, "seed {seed}: the connection neither moves nor ends\n{initiator}\n{target}");
        if steps == ending.1 {
            match ending.0 {
                Ending::Never => {}
                Ending::InitiatorTerminates => initiator.terminate(),
                Ending::InitiatorAborts => initiator.abort(),
                Ending::TargetTerminates => target.terminate(),
                Ending::TargetAborts => target.abort(),
                Ending::Cut => fabric.cut(),
            }
        }
        match rng.below(16) {
            0 if orders > 0 && initiator.may_submit() => {
                orders -= 1;
                initiator.submit(Order::of(rng), rng);
            }
            1 if rng.below(4) == 0 => initiator.abort_a_task(rng),
            2 | 3 => initiator.run(),
            4 | 5 => target.run(rng),
            _ => idle = if fabric.step().is_some() { 0 } else { idle + 1 },
        }
        if orders == 0 && initiator.is_idle() && ending.0 == Ending::Never && faultless {
            initiator.terminate();
        }
        if idle > 1000 {
            // Nothing moves: what is not answered is given up, or the connection is, as the sessions' timers would.
            idle = 0;
            if faultless && ending.0 == Ending::Never {
                initiator.abort_all();
            } else {
                initiator.abort();
                target.abort();
            }
        }
        if initiator.is_over() || target.is_over() {
            orders = 0;
        }
    }
    if faultless && ending.0 == Ending::Never {
        assert_eq!(initiator.left(), 0, "seed {seed}");
    }
    let counters = [initiator.counters(), target.counters()];
    (initiator.finish() + target.finish(), counters)
}

fn parameters(rng: &mut Rng) -> Parameters {
    Parameters {
        rdma_extensions: true,
        immediate_data: rng.below(4) > 0,
        first_burst_length: [512, 8192, 65_536][rng.below(3) as usize],
        ..Parameters::default()
    }
}

fn peaceful(seed: u64) -> LoopbackConfig {
    LoopbackConfig { faults: Faults::default(), ..LoopbackConfig::hostile(seed) }
}

#[test]
fn every_command_moves_what_it_is_to_move() {
    let mut answered = 0;
    for seed in 0..150 {
        let parameters = parameters(&mut Rng(seed));
        let (done, [initiator, target]) = run(peaceful(seed), &parameters, seed, (Ending::Never, 0), true);
        answered += done;
        // Immediate data are copied into their message, and nothing else is.
        assert_eq!(initiator.copied, initiator.immediate);
        assert!(target.read > 0 && target.written > 0);
    }
    assert!(answered > 150 * 30, "{answered}");
}

#[test]
fn an_end_at_any_step_loses_no_buffer() {
    use Ending::{Cut, InitiatorAborts, InitiatorTerminates, TargetAborts, TargetTerminates};
    for seed in 0..250 {
        for ending in [InitiatorTerminates, InitiatorAborts, TargetTerminates, TargetAborts, Cut] {
            let rng = &mut Rng(seed);
            let parameters = parameters(rng);
            let step = 1 + rng.below(4000);
            run(peaceful(seed), &parameters, seed, (ending, step), true);
        }
    }
}

#[test]
fn a_hostile_network_loses_no_buffer() {
    for seed in 0..400 {
        let parameters = parameters(&mut Rng(seed));
        run(LoopbackConfig::hostile(seed), &parameters, seed, (Ending::Never, 0), false);
    }
}

/// Few STags, and few places for work: commands wait for each other, and all are done in the end.
#[test]
fn scarce_resources_only_make_it_slower() {
    for seed in 0..60 {
        let mut network = peaceful(seed);
        network.active.advertisements = 2 + (seed % 3) as usize;
        network.active.limits.work = 2;
        network.passive.limits.work = 3;
        network.passive.read_depth = 1;
        run(network, &parameters(&mut Rng(seed)), seed, (Ending::Never, 0), true);
    }
}

/// RFC 7145 5.1.3.
#[test]
fn a_hello_exchange_comes_before_everything() {
    for seed in 0..40 {
        let parameters = Parameters { iser_hello_required: true, ..parameters(&mut Rng(seed)) };
        let (answered, _) = run(peaceful(seed), &parameters, seed, (Ending::Never, 0), true);
        assert!(answered > 0);
    }
}
