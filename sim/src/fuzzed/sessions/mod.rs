//! Several sessions at once on one unit, of one initiator and of two, over the TCP mover: which bytes come when, and
//! what becomes of the connections, is what the input says.
//!
//! Honest initiators read and write with a model as oracle: no acknowledged write is covered by an older one; a
//! function that is "complete" and a login in the place of a session are the end of what they ended. With garbage among
//! them there is no oracle. In either case nobody hangs or panics, no more memory is taken than there is, and nothing is
//! left behind.

mod peer;

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use backstore::Backstore as _;
use iscsi_memory::WorkerPool;
use iscsi_proto::connection::{Connection as _, StreamConnection as _, StreamEnd};
use iscsi_proto::pdu::{Bhs, DataIn, Opcode, ScsiResponse, TaskFunction, TaskManagementResponse, TaskResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use target_core::session::{self, TargetConnection};

use super::ends;
use crate::hostile::any_request;
use crate::input::Input;
use crate::link::{Link, LinkPlan, Side};
use crate::model::{Model, ReadId, WriteId, first_value};
use crate::network::Network;
use crate::pipe::{Bytes, Drive as _, Flag, Pipe};
use crate::rng::Rng;
use crate::served::Served;
use peer::Peer;

/// Initiators that the script speaks for at a time.
const PEERS: u8 = 3;
/// Connections of a script at most.
const MOST: u32 = 12;
/// Blocks that are read and written: few, so that they meet.
const BLOCKS: u8 = 24;

/// Connections, bytes and time for a target.
///
/// # Panics
/// If the target breaks a promise.
pub fn target_sessions(data: &[u8]) {
    play(data);
}

fn play(data: &[u8]) -> Tally {
    let mut input = Input::new(data);
    let mut bench = Bench::new(input.u8());
    while !input.is_empty() {
        bench.act(&mut input);
    }
    bench.finish()
}

/// A connection at the target, with its link.
struct Line {
    pipe: Pipe<TargetConnection<TcpMover>, Bytes>,
    network: Network,
    /// The initiator, while it looks after it.
    peer: Option<Peer>,
}

/// A write that is under way.
struct Write {
    connection: u32,
    nexus: usize,
    itt: u32,
    cmd_sn: u32,
    id: WriteId,
}

/// A read that is under way, and what has come.
struct Read {
    connection: u32,
    itt: u32,
    id: ReadId,
    data: Vec<u8>,
    came: usize,
}

/// A task management function that is under way, and the writes that end with it.
struct Function {
    connection: u32,
    itt: u32,
    ends: Vec<WriteId>,
}

/// How often what a script is about came to pass.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: usize,
    read: usize,
    /// Writes that a login in the place of their session ended, and those that a function did.
    replaced: usize,
    ended: usize,
}

struct Bench {
    served: Served,
    pool: WorkerPool,
    lines: Vec<Line>,
    made: u32,
    model: Model,
    writes: Vec<Write>,
    reads: Vec<Read>,
    functions: Vec<Function>,
    tally: Tally,
    /// All peers are honest.
    honest: bool,
    /// Looks after sessions whose connection has gone.
    attendant: (Arc<Flag>, Waker),
    now: Instant,
}

impl Bench {
    fn new(flags: u8) -> Self {
        // So little that sessions wait for buffers.
        let buffered = if flags & 1 != 0 { 128 << 10 } else { 64 << 20 };
        let limits = session::Limits { buffered, sessions: 8, ..session::Limits::default() };
        let served = ends::target(flags >> 1, limits);
        Self {
            model: Model::new(served.store.geometry().blocks, 512, false),
            pool: served.target.worker_pool(1),
            served,
            lines: Vec::new(),
            made: 0,
            writes: Vec::new(),
            reads: Vec::new(),
            functions: Vec::new(),
            tally: Tally::default(),
            honest: true,
            attendant: Flag::raised(),
            now: Instant::ZERO,
        }
    }

    /// One operation of the script.
    fn act(&mut self, input: &mut Input<'_>) {
        let operation = input.below(16);
        let place = input.below(PEERS);
        match operation {
            0 => {
                let (nexus, chunk) = (input.u8(), input.u8());
                self.connect(place, nexus, if chunk == 0 { 64 << 10 } else { chunk.into() });
            }
            1..4 => self.command(place, input),
            4..6 => self.deliver(place, usize::MAX),
            6 => self.deliver(place, input.u8().into()),
            7 => self.function(place, input),
            8 => self.wait(Duration::from_millis(input.u16().into())),
            9 => self.wait(Duration::from_secs(input.u8().into())),
            10 => self.with_peer(place, Peer::pay),
            11 => self.with_peer(place, Peer::ping),
            12 => self.end(place, input.below(3)),
            13 => self.with_peer(place, Peer::log_out),
            14 => {
                self.honest = false;
                let garbage = input.chunk();
                self.with_peer(place, |peer| peer.say(garbage));
            }
            _ => {
                self.honest = false;
                let mut rng = Rng::new(input.u16().into(), 3);
                self.with_peer(place, |peer| {
                    let request = any_request(&mut rng, &mut peer.cmd_sn);
                    peer.say(&request);
                });
            }
        }
    }

    fn line(&mut self, place: u8) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.peer.as_ref().is_some_and(|peer| peer.place == place))
    }

    fn peer(&mut self, place: u8) -> Option<&mut Peer> {
        self.line(place)?.peer.as_mut()
    }

    fn with_peer(&mut self, place: u8, act: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.peer(place) {
            act(peer);
        }
    }

    /// A connection for the initiator at `place`. The one that it has stays, and nobody looks after it.
    fn connect(&mut self, place: u8, nexus: u8, chunk: usize) {
        if self.made == MOST {
            return;
        }
        self.end(place, 0);
        let config = TcpMoverConfig { max_tasks: 24, staging_size: 16 << 10, ..TcpMoverConfig::default() };
        let buffers = self.pool.session();
        let connection = self.served.accept_at(TcpMover::with_buffers(Role::Target, config, buffers), self.now);
        let plan = LinkPlan { delay: Duration::ZERO, chunk, ..LinkPlan::calm() };
        self.lines.push(Line {
            pipe: Pipe::new(connection, 0, Side::Target),
            network: Network::Bytes(Box::new(Link::new(plan, Rng::new(0, self.made.into())))),
            peer: Some(Peer::new(place, self.made, nexus)),
        });
        self.made += 1;
        self.settle();
    }

    /// The initiator at `place` leaves its connection, without a word, by closing it or by a reset.
    fn end(&mut self, place: u8, how: u8) {
        let now = self.now;
        let Some(line) = self.line(place) else { return };
        line.peer = None;
        match how {
            0 => return,
            1 => line.network.close(Side::Initiator, now),
            _ => line.pipe.connection.handle_stream_end(StreamEnd::Broken, now),
        }
        self.settle();
    }

    /// At most so many of the bytes that the initiator has to send come.
    fn deliver(&mut self, place: u8, most: usize) {
        let now = self.now;
        let Some(line) = self.line(place) else { return };
        let (Some(peer), Some(link)) = (&mut line.peer, line.network.as_link()) else { return };
        let bytes = peer.take(most.min(link.room(Side::Initiator)));
        link.send(Side::Initiator, bytes, now);
        self.settle();
    }

    fn command(&mut self, place: u8, input: &mut Input<'_>) {
        let (kind, lba, blocks) = (input.u8(), input.below(BLOCKS), 1 + input.below(12));
        let blocks = blocks.min(BLOCKS - lba);
        let (lba, blocks) = (u64::from(lba), u64::from(blocks));
        let Some(peer) = self.peer(place) else { return };
        let writes = kind & 1 != 0;
        let Some((itt, cmd_sn)) = peer.command(lba, blocks, kind) else { return };
        let (connection, nexus) = (peer.number, peer.nexus);
        if writes {
            let first = first_value(connection.into(), itt.into());
            let id = self.model.begin_write(lba, blocks, |at| first + at);
            self.writes.push(Write { connection, nexus, itt, cmd_sn, id });
        } else {
            let (id, data) = (self.model.begin_read(lba, blocks), vec![0; blocks as usize * 512]);
            self.reads.push(Read { connection, itt, id, data, came: 0 });
        }
    }

    fn function(&mut self, place: u8, input: &mut Input<'_>) {
        let kind = input.below(5);
        let functions = [
            TaskFunction::LogicalUnitReset,
            TaskFunction::ClearTaskSet,
            TaskFunction::TargetWarmReset,
            TaskFunction::AbortTaskSet,
            TaskFunction::AbortTask,
        ];
        let Some(Peer { number: own, .. }) = self.peer(place) else { return };
        let own = *own;
        // What is certain to be there when it comes: all of its own session, and of others what ExpCmdSN says has come.
        let received = |write: &&Write| {
            let mut peers = self.lines.iter().filter_map(|line| line.peer.as_ref());
            let peer = peers.find(|peer| peer.number == write.connection);
            write.connection == own || peer.is_some_and(|peer| peer.exp_cmd_sn > Serial(write.cmd_sn))
        };
        let own_writes = || self.writes.iter().filter(|write| write.connection == own);
        let last = own_writes().next_back().map(|write| (write.itt, write.cmd_sn, write.id));
        let ends: Vec<WriteId> = match kind {
            0..3 => self.writes.iter().filter(received).map(|write| write.id).collect(),
            3 => own_writes().map(|write| write.id).collect(),
            _ => last.iter().map(|(.., id)| *id).collect(),
        };
        let (task, ref_cmd_sn) = match last {
            Some((itt, cmd_sn, _)) if kind == 4 => (itt, cmd_sn),
            _ => (u32::MAX, 0),
        };
        let function = functions[usize::from(kind)];
        if let Some(itt) = self.peer(place).and_then(|peer| peer.function(function, task, ref_cmd_sn)) {
            self.functions.push(Function { connection: own, itt, ends });
        }
    }

    fn settle(&mut self) {
        for _ in 0..200_000 {
            self.served.store.advance(self.now);
            let mut any = false;
            for at in 0..self.lines.len() {
                any |= self.run(at);
            }
            if self.attendant.0.take() {
                self.served.target.registry().poll_unfinished(&self.attendant.1);
                any = true;
            }
            self.lines.retain(|line| !line.pipe.is_finished());
            let budget = self.served.target.buffers();
            assert!(budget.out() <= budget.total() + (256 << 10), "more than one command beyond it: {budget:?}");
            if !any {
                return;
            }
        }
        panic!("no rest");
    }

    /// Goes on with a line, and has its initiator hear what the target says before another one says something.
    fn run(&mut self, at: usize) -> bool {
        let line = &mut self.lines[at];
        let any = line.pipe.run(&mut line.network, self.now).expect("the driving contract");
        let (Some(link), Some(peer)) = (line.network.as_link(), &mut line.peer) else { return any };
        let came: Vec<u8> = link.arrived(Side::Initiator, self.now).drain(..).collect();
        let heard = peer.hear(&came);
        let (connection, nexus) = (peer.number, peer.nexus);
        for (bhs, data) in heard {
            self.note(connection, nexus, &bhs, &data);
        }
        any || !came.is_empty()
    }

    /// What the initiator of a connection has heard.
    fn note(&mut self, connection: u32, nexus: usize, bhs: &Bhs, data: &[u8]) {
        match bhs.opcode().expect("the target says what there is") {
            Opcode::LoginResponse if Peer::is_let_in(bhs) => {
                // RFC 7143 6.3.5: the session that was there has ended, with all of its tasks.
                let replaced = |write: &mut Write| write.nexus == nexus && write.connection != connection;
                for write in self.writes.extract_if(.., replaced) {
                    self.tally.replaced += 1;
                    self.model.fail(write.id);
                }
            }
            Opcode::ScsiResponse => {
                let response = ScsiResponse::parse(bhs).expect("a response");
                self.over(connection, response.itt, response.status);
            }
            Opcode::DataIn => {
                let data_in = DataIn::parse(bhs).expect("data");
                let of = |read: &&mut Read| read.connection == connection && read.itt == data_in.itt;
                if let Some(read) = self.reads.iter_mut().find(of) {
                    let at = data_in.buffer_offset as usize;
                    read.data[at..at + data.len()].copy_from_slice(data);
                    read.came += data.len();
                }
                if let Some(status) = data_in.status {
                    self.over(connection, data_in.itt, status.status);
                }
            }
            Opcode::TaskManagementResponse => {
                let response = TaskManagementResponse::parse(bhs).expect("a response");
                let of = |function: &mut Function| function.connection == connection && function.itt == response.itt;
                for function in self.functions.extract_if(.., of) {
                    if response.response == TaskResponse::Complete {
                        function.ends.iter().for_each(|write| self.model.fail(*write));
                        let ended = self.writes.extract_if(.., |write| function.ends.contains(&write.id));
                        self.tally.ended += ended.count();
                    }
                }
            }
            _ => {}
        }
    }

    /// A command has ended with a status.
    fn over(&mut self, connection: u32, itt: u32, status: u8) {
        for write in self.writes.extract_if(.., |write| write.connection == connection && write.itt == itt) {
            if status == 0 {
                self.tally.acknowledged += 1;
                self.model.acknowledge(write.id);
            } else {
                self.model.fail(write.id);
            }
        }
        for read in self.reads.extract_if(.., |read| read.connection == connection && read.itt == itt) {
            if status != 0 || !self.honest {
                self.model.forget(read.id);
                continue;
            }
            assert_eq!(read.came, read.data.len(), "GOOD, and all of the data");
            self.tally.read += 1;
            if let Err(wrong) = self.model.end_read(read.id, &read.data) {
                panic!("connection {connection}, task {itt}: {wrong}");
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..10_000 {
            let next = self.lines.iter().filter_map(|line| line.pipe.connection.poll_timeout());
            let Some(next) = next.chain(self.served.store.next()).filter(|at| *at <= until).min() else { break };
            self.now = self.now.max(next);
            self.settle();
        }
        self.now = self.now.max(until);
        self.settle();
    }

    /// All initiators go, and nothing is left of them but what they wrote.
    fn finish(mut self) -> Tally {
        let now = self.now;
        for line in &mut self.lines {
            line.network.close(Side::Initiator, now);
        }
        self.settle();
        self.wait(Duration::from_secs(400));
        assert!(self.lines.is_empty(), "a connection without a stream ends");
        self.served.check_over();
        let budget = self.served.target.buffers();
        assert_eq!((budget.out(), budget.waiting()), (0, 0), "{budget:?}");
        if self.honest {
            let mut data = vec![0; self.model.len() as usize * 512];
            self.served.store.peek(0, &mut data);
            let read = self.model.begin_read(0, self.model.len());
            if let Err(wrong) = self.model.end_read(read, &data) {
                panic!("on the medium, {wrong}");
            }
        }
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(name: &str) -> Tally {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/target_sessions/");
        play(&std::fs::read(format!("{corpus}{name}")).unwrap())
    }

    #[test]
    fn seeds_do_what_they_are_named_for() {
        let meet = seed("meet");
        assert!(meet.acknowledged > 1 && meet.read > 1, "{meet:?}");
        let replaced = seed("replaced");
        assert!(replaced.acknowledged > 0 && replaced.replaced > 0 && replaced.read > 0, "{replaced:?}");
        let ended = seed("ended");
        assert!(ended.acknowledged > 0 && ended.ended > 0 && ended.read > 0, "{ended:?}");
    }
}
