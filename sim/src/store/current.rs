//! The operations under way at a store, and what they tell of the task set above: the blocks that they write name the session, the command and its task
//! attribute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use iscsi_proto::pdu::TaskAttribute;
use iscsi_proto::time::Instant;

use crate::model::{Value, command_of, session_of};

/// Bytes that one command may have written at a store in one turn of its worker: the turn's own bound, and what was begun within it.
const MOST_IN_A_TURN: u64 = 2 << 20;

/// Bytes that one operation moves at most: what a store that answers at once does in well under a millisecond.
const MOST_AT_ONCE: usize = 1 << 20;

/// Operations that have ended and are kept.
const KEPT: usize = 512;
/// How much later than it was so a thing may be heard of.
const NOT_LONG: Duration = Duration::from_secs(2);

/// Names an operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OpId(u64);

#[derive(Debug, Clone, Copy)]
struct Op {
    came: Instant,
    /// It changes the medium.
    changes: bool,
    /// The first block of what it writes, if it says who writes it.
    value: Option<Value>,
    /// The first byte, and how many.
    place: (u64, u64),
    /// Its task was aborted, for certain.
    aborted: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Current {
    ops: BTreeMap<OpId, Op>,
    next: u64,
    /// Those that have ended, and when.
    ended: VecDeque<(Op, Instant)>,
    most: usize,
    broken: Option<String>,
    /// What commands have written in this turn.
    turn: BTreeMap<u64, u64>,
    /// Commands that are not SIMPLE.
    attributes: BTreeMap<u64, TaskAttribute>,
}

/// What the command of a block has written into its first one.
const fn first_of(value: Value) -> Value {
    command_of(value) << 20
}

/// The value of a block that names its writer.
fn named(data: &[u8]) -> Option<Value> {
    let value = Value::from_le_bytes(*data.first_chunk()?);
    session_of(value).map(|_| value)
}

impl Current {
    /// The process that had them under way is gone.
    pub(super) fn forget(&mut self) {
        self.ops.clear();
    }

    /// A command is to be sent that is not SIMPLE.
    pub(super) fn announce(&mut self, command: u64, attribute: TaskAttribute) {
        self.attributes.insert(command, attribute);
    }

    fn attribute_of(&self, value: Value) -> TaskAttribute {
        self.attributes.get(&command_of(value)).copied().unwrap_or_default()
    }

    /// An operation comes.
    pub(super) fn begin(&mut self, now: Instant, changes: bool, at: u64, data: Option<&[u8]>) -> OpId {
        let value = data.and_then(named);
        let place = (at, data.map_or(0, |data| data.len() as u64));
        self.moves(data.map_or(0, <[u8]>::len));
        if let Some(value) = value {
            self.check_order(value);
            self.check_alone(value, place);
            self.check_gate(value, place);
            let written = self.turn.entry(command_of(value)).or_default();
            *written += data.map_or(0, |data| data.len() as u64);
            if *written > MOST_IN_A_TURN {
                self.broken.get_or_insert_with(|| format!("one command wrote {written} bytes in one turn"));
            }
        }
        self.next += 1;
        let id = OpId(self.next);
        self.ops.insert(id, Op { came: now, changes, value, place, aborted: false });
        self.most = self.most.max(self.ops.len());
        id
    }

    /// An ORDERED task begins when all before it have ended, and none behind it, but those at the head of the queue, begins before it has (SAM-5 8.6).
    fn check_order(&mut self, value: Value) {
        let new = self.attribute_of(value);
        let of_session =
            |other: &Value| session_of(*other) == session_of(value) && command_of(*other) != command_of(value);
        for other in self.ops.values().filter_map(|op| op.value).filter(of_session) {
            let passed = match self.attribute_of(other) {
                TaskAttribute::Ordered => new != TaskAttribute::HeadOfQueue,
                // It may have come between two pieces of the ordered one.
                TaskAttribute::HeadOfQueue if value != first_of(value) => false,
                _ => new == TaskAttribute::Ordered,
            };
            if passed {
                let old = self.attribute_of(other);
                let what =
                    format!("a write of {value:#x}, {new:?}, came while one of {other:#x}, {old:?}, was under way");
                self.broken.get_or_insert(what);
            }
        }
    }

    /// A command that comes again finds nothing of itself: what its first run left at the store is over, or could land over
    /// what comes after the second.
    fn check_alone(&mut self, value: Value, (at, len): (u64, u64)) {
        let same = |op: &&Op| {
            let (other, length) = op.place;
            op.value.is_some_and(|other| command_of(other) == command_of(value))
                && at < other + length
                && other < at + len
        };
        if let Some(op) = self.ops.values().find(same) {
            let came = op.came;
            self.broken
                .get_or_insert_with(|| format!("{value:#x} is written while its write of {came:?} is under way"));
        }
    }

    /// What an aborted task has left at the store may land at any time: nobody writes there until it has.
    fn check_gate(&mut self, value: Value, (at, len): (u64, u64)) {
        let in_the_way = |op: &&Op| op.aborted && at < op.place.0 + op.place.1 && op.place.0 < at + len;
        if let Some(Op { value: Some(older), came, .. }) = self.ops.values().find(in_the_way) {
            let what = format!("{value:#x} is written where an aborted task has {older:#x} under way since {came:?}");
            self.broken.get_or_insert(what);
        }
    }

    pub(super) fn end(&mut self, id: OpId, now: Instant) {
        let Some(op) = self.ops.remove(&id) else { return };
        if self.ended.len() == KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back((op, now));
    }

    /// What came before `since`, of a session or of anybody, is of tasks that are aborted.
    pub(super) fn abort(&mut self, session: Option<u64>, since: Instant) {
        for op in self.ops.values_mut().filter(|op| op.came < since && op.value.is_some()) {
            op.aborted |= session.is_none() || op.value.and_then(session_of) == session;
        }
    }

    /// Whether something was under way not long ago that came before `since`, or not long after.
    pub(super) fn was_busy(&self, since: Instant, now: Instant) -> bool {
        let old = |op: &Op| op.came < since + NOT_LONG;
        self.ops.values().any(old) || self.ended.iter().any(|(op, at)| old(op) && now < *at + NOT_LONG)
    }

    /// Sessions that have something under way which came before `since`, and when that came.
    pub(super) fn holders(&self, since: Instant) -> Vec<(u64, Instant)> {
        let older = self.ops.values().filter(|op| op.came < since);
        older.filter_map(|op| Some((op.value.and_then(session_of)?, op.came))).collect()
    }

    /// Commands that had something under way at `since` which has ended, and when that came.
    pub(super) fn ended_since(&self, since: Instant) -> Vec<(u64, Instant)> {
        let ended = self.ended.iter().filter(|(op, at)| op.came < since && *at > since);
        ended.filter_map(|(op, _)| Some((command_of(op.value?), op.came))).collect()
    }

    /// How many there are, and the most there ever were.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.ops.len(), self.most)
    }

    pub(super) fn older(&self, since: Instant) -> Option<String> {
        let op = self.ops.values().find(|op| op.changes && op.came < since)?;
        Some(match op.value {
            Some(value) => format!("a write of {value:#x} that came at {:?}", op.came),
            None => format!("a change that came at {:?}", op.came),
        })
    }

    pub(super) fn older_of(&self, session: u64, since: Instant) -> Option<String> {
        let of_session = |op: &&Op| op.came < since && op.value.and_then(session_of) == Some(session);
        let op = self.ops.values().find(of_session)?;
        Some(format!("a write of {:#x} that came at {:?}", op.value.unwrap_or_default(), op.came))
    }

    /// An operation moves so many bytes.
    pub(super) fn moves(&mut self, len: usize) {
        if len > MOST_AT_ONCE {
            self.broken.get_or_insert_with(|| format!("one operation moves {len} bytes"));
        }
    }

    pub(super) fn of_command(&self, command: u64) -> Option<String> {
        let op = self.ops.values().find(|op| op.value.map(command_of) == Some(command))?;
        Some(format!("a write of {:#x} that came at {:?}", op.value.unwrap_or_default(), op.came))
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.broken.clone()
    }

    pub(super) fn begin_turn(&mut self) {
        self.turn.clear();
    }
}
