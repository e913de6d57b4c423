//! The oracle: a disk that knows, for each block, which writes a read may see.
//!
//! Blocks hold a value: a number from which the whole block's content is made, so that a block in the wrong place, half
//! a block, or a block of an old write is told apart. A write is *pending* from the moment that it was handed to the
//! initiator; it *ends* with its status, and a failed one of unknown fate ends when nothing can be left of it in the
//! target. A read may see a block's write unless another one that was acknowledged before the read began was handed in
//! after the first had ended. Values of writes that were handed in while the read was under way may be seen too.
//!
//! A successful COMPARE AND WRITE says more: what it has found was there until its own data replaced it. A write that
//! was handed in after the value that it found had been written is therefore the later of the two.
//!
//! Beside it, the model knows what may be left after a crash: a flush that was acknowledged covers every write that was
//! acknowledged before it was handed in, and so does an acknowledged write with FUA itself.

use std::collections::{BTreeMap, BTreeSet};

/// The content of a block, as a number. Zero is all zeroes. Others name who wrote them: the session plus 1 in the first
/// eight bits, the command in 36, and the block of the command in 20.
pub type Value = u64;

/// The value of a command's first block; those of the others follow.
#[must_use]
pub const fn first_value(session: u64, command: u64) -> Value {
    (session + 1) << 56 | command << 20
}

/// The session that wrote it, if it is of one.
#[must_use]
pub const fn session_of(value: Value) -> Option<u64> {
    (value >> 56).checked_sub(1)
}

/// The command that wrote it, with its session.
#[must_use]
pub const fn command_of(value: Value) -> u64 {
    value >> 20
}

/// Names a write of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(u64);

/// Names a read of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(u64);

/// When the write had ended that put a value into a block, if that can hold it only once.
pub type Once = Option<u64>;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    write: WriteId,
    value: Value,
    ended: Option<u64>,
    /// It replaced what a write had put there that had ended then, and nothing came in between.
    follows: Option<u64>,
    /// It was acknowledged.
    done: bool,
}

impl Candidate {
    /// Whether a write that was handed in at `begun` and has certainly been done is the later one.
    const fn is_before(&self, begun: u64) -> bool {
        match (self.ended, self.follows) {
            (_, Some(followed)) if followed < begun => true,
            (Some(ended), _) => ended < begun,
            _ => false,
        }
    }
}

/// What a block may hold after a crash.
#[derive(Debug, Clone, Copy)]
struct Survivor {
    write: WriteId,
    value: Value,
    ended: Option<u64>,
    acknowledged: Option<u64>,
}

/// Names a flush of the model: when it was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushId(u64);

#[derive(Debug)]
struct Read {
    lba: u64,
    /// For each block what it may hold.
    allowed: Vec<Vec<Value>>,
    /// For each block whether a write of it has been under way meanwhile.
    changing: Vec<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Write {
    lba: u64,
    blocks: u64,
    begun: u64,
}

/// A read saw what it cannot have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The block.
    pub lba: u64,
    /// What it held, if it is a block of any write at all.
    pub found: Option<Value>,
    /// What it may hold.
    pub allowed: Vec<Value>,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.found {
            Some(value) => write!(f, "block {} holds the data of write {value}, ", self.lba)?,
            None => write!(f, "block {} holds data that nobody wrote, ", self.lba)?,
        }
        write!(f, "it may hold those of {:?}", self.allowed)
    }
}

/// The model of one logical unit.
#[derive(Debug)]
pub struct Model {
    block_size: usize,
    blocks: Vec<Vec<Candidate>>,
    writes: BTreeMap<WriteId, Write>,
    reads: BTreeMap<ReadId, Read>,
    survivors: Vec<Vec<Survivor>>,
    /// Something was promised to be durable since the last look.
    promised: bool,
    /// Blocks and values that an atomic command has found and replaced, and that cannot come back.
    replaced: BTreeSet<(u64, Value)>,
    /// Writes that their session gave up, and when.
    given_up: BTreeMap<WriteId, u64>,
    /// When it crashed last.
    crashed: u64,
    /// When it was last known that a flush has failed and dropped what it was to make durable.
    dropped: u64,
    clock: u64,
    torn: bool,
}

impl Model {
    /// A disk of zeroes. `torn`: a device reads the store's memory when it likes, so that a block that is read while a
    /// write of it is under way may have bytes of each value that it may hold; else it has one of them whole, as it has
    /// in any case once no write is under way.
    #[must_use]
    pub fn new(blocks: u64, block_size: usize, torn: bool) -> Self {
        let zero = Candidate { write: WriteId(0), value: 0, ended: Some(0), follows: None, done: true };
        let first = Survivor { write: WriteId(0), value: 0, ended: Some(0), acknowledged: Some(0) };
        Self {
            survivors: vec![vec![first]; blocks as usize],
            promised: false,
            replaced: BTreeSet::new(),
            given_up: BTreeMap::new(),
            block_size,
            blocks: vec![vec![zero]; blocks as usize],
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            clock: 0,
            torn,
            crashed: 0,
            dropped: 0,
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Whether it has no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of these values is handed in.
    pub fn begin_write(&mut self, lba: u64, blocks: u64, value: impl Fn(u64) -> Value) -> WriteId {
        let begun = self.tick();
        let write = WriteId(begun);
        for at in 0..blocks {
            let value = value(at);
            self.blocks[(lba + at) as usize].push(Candidate { write, value, ended: None, follows: None, done: false });
            self.survivors[(lba + at) as usize].push(Survivor { write, value, ended: None, acknowledged: None });
            for read in self.reads.values_mut() {
                let Some(place) = (lba + at).checked_sub(read.lba).map(|at| at as usize) else { continue };
                if let (Some(allowed), Some(changing)) = (read.allowed.get_mut(place), read.changing.get_mut(place)) {
                    allowed.push(value);
                    *changing = true;
                }
            }
        }
        self.writes.insert(write, Write { lba, blocks, begun });
        write
    }

    /// The write was acknowledged: it is what later reads see, and so is nothing that had ended before it began.
    ///
    /// Unless the disk has crashed since it was handed in: the answer may be of the time before, and the data are gone.
    pub fn acknowledge(&mut self, write: WriteId) {
        if write.0 < self.crashed {
            return self.fail(write);
        }
        self.acknowledge_where(write, |_| None);
    }

    /// An atomic command was acknowledged that had found these values in its blocks; `once` is of [`Self::once`].
    ///
    /// # Errors
    /// The first block in which something else was certain to be by then.
    pub fn acknowledge_replacing(&mut self, write: WriteId, expected: &[Value], once: &[Once]) -> Result<(), Wrong> {
        let Some(Write { lba, .. }) = self.writes.get(&write).copied() else { return Ok(()) };
        if write.0 < self.crashed {
            self.fail(write);
            return Ok(());
        }
        self.replace(lba, expected, once)?;
        self.acknowledge_where(write, |at| once.get((at - lba) as usize).copied().flatten());
        Ok(())
    }

    fn acknowledge_where(&mut self, write: WriteId, follows: impl Fn(u64) -> Option<u64>) {
        let now = self.tick();
        let Some(Write { lba, blocks, begun }) = self.writes.remove(&write) else { return };
        // Nobody knows whether one that was handed in before came to the medium before it, too.
        let acknowledged = (write.0 > self.dropped).then_some(now);
        self.end_survivors(write, lba, blocks, now, acknowledged);
        for (at, block) in (lba..).zip(&mut self.blocks[lba as usize..(lba + blocks) as usize]) {
            let follows = follows(at);
            // What it followed may be overwritten by now, for certain, by somebody who came in between: then so is it.
            let covered = follows.is_some_and(|followed| {
                block.iter().any(|other| other.write != write && other.write.0 > followed && other.done)
            });
            // Its candidate may be gone already: overwritten by one that was handed in later and acknowledged earlier
            // can not be, as it had not ended.
            block.retain_mut(|candidate| {
                if candidate.write == write {
                    (candidate.ended, candidate.follows, candidate.done) = (Some(now), follows, true);
                    return !covered;
                }
                !candidate.is_before(begun)
            });
        }
    }

    /// The write failed, and nothing of it is under way any more: each of its blocks holds the old data or the new.
    pub fn fail(&mut self, write: WriteId) {
        let now = self.tick();
        let Some(Write { lba, blocks, .. }) = self.writes.remove(&write) else { return };
        self.end_survivors(write, lba, blocks, now, None);
        for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
            for candidate in block.iter_mut().filter(|candidate| candidate.write == write) {
                candidate.ended = Some(now);
            }
        }
    }

    /// The write certainly did nothing.
    pub fn withdraw(&mut self, write: WriteId) {
        let Some(Write { lba, blocks, .. }) = self.writes.remove(&write) else { return };
        for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
            block.retain(|candidate| candidate.write != write);
        }
        for block in &mut self.survivors[lba as usize..(lba + blocks) as usize] {
            block.retain(|survivor| survivor.write != write);
        }
    }

    /// The session of the write has given it up: from here on it is not to land over what the same session writes
    /// later.
    pub fn give_up(&mut self, write: WriteId) {
        let now = self.tick();
        self.given_up.insert(write, now);
    }

    /// `later` is acknowledged, a write of the session that has given up `write`: nothing of that is left where both
    /// meet, if it was given up before.
    pub fn supersede(&mut self, write: WriteId, later: WriteId) {
        let Some(Write { lba, blocks, begun }) = self.writes.get(&later).copied() else { return };
        if begun > self.crashed && self.given_up.get(&write).is_some_and(|at| *at < begun) {
            for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
                block.retain(|candidate| candidate.write != write);
            }
        }
    }

    fn end_survivors(&mut self, write: WriteId, lba: u64, blocks: u64, now: u64, acknowledged: Option<u64>) {
        for block in &mut self.survivors[lba as usize..(lba + blocks) as usize] {
            for survivor in block.iter_mut().filter(|survivor| survivor.write == write) {
                (survivor.ended, survivor.acknowledged) = (Some(now), acknowledged);
            }
        }
    }

    /// A flush is handed in.
    pub fn begin_flush(&mut self) -> FlushId {
        FlushId(self.tick())
    }

    /// The flush was acknowledged: what was acknowledged before it was handed in survives a crash. One that a crash has
    /// come between is an initiator's repetition, and the target has nothing left of what it was to cover.
    pub fn end_flush(&mut self, FlushId(begun): FlushId) {
        if begun < self.crashed {
            return;
        }
        self.promised = true;
        for block in &mut self.survivors {
            keep(block, |survivor| survivor.acknowledged.is_some_and(|at| at < begun));
        }
    }

    /// The write was acknowledged, and had FUA: it survives a crash.
    pub fn acknowledge_durable(&mut self, write: WriteId) {
        let Some(Write { lba, blocks, .. }) = self.writes.get(&write).copied() else { return };
        self.acknowledge_where(write, |_| None);
        self.promised = true;
        for block in &mut self.survivors[lba as usize..(lba + blocks) as usize] {
            keep(block, |survivor| survivor.write == write);
        }
    }

    /// A flush has failed, and the medium has dropped what it was to make durable: no later flush covers what was written
    /// before.
    pub fn dropped(&mut self) {
        self.dropped = self.tick();
        for survivor in self.survivors.iter_mut().flatten() {
            survivor.acknowledged = None;
        }
    }

    /// The disk has crashed, and may hold whatever was not certain to survive.
    pub fn crash(&mut self) {
        let now = self.tick();
        self.crashed = now;
        self.replaced.clear();
        // Of what was acknowledged before, only that is certain from now on which is the only one left.
        for survivor in self.survivors.iter_mut().flatten() {
            survivor.acknowledged = None;
        }
        for (block, survivors) in self.blocks.iter_mut().zip(&self.survivors) {
            let of = |survivor: &Survivor| Candidate {
                write: survivor.write,
                value: survivor.value,
                ended: survivor.ended.map(|_| now),
                follows: None,
                done: false,
            };
            *block = survivors.iter().map(of).collect();
        }
        for read in self.reads.values_mut() {
            for (lba, allowed) in (read.lba..).zip(&mut read.allowed) {
                allowed.extend(self.survivors[lba as usize].iter().map(|survivor| survivor.value));
            }
        }
    }

    /// The disk has told that a block's content is lost: what it holds is what is there.
    ///
    /// # Panics
    /// If nobody wrote that, or the block is outside of the disk.
    pub fn lose(&mut self, lba: u64, block: &[u8]) {
        let now = self.tick();
        let value = value_of(block).expect("a block holds what somebody wrote");
        let left = Candidate { write: WriteId(0), value, ended: Some(now), follows: None, done: true };
        // What an atomic command replaced is back.
        self.replaced.remove(&(lba, value));
        let block = &mut self.blocks[lba as usize];
        block.retain(|candidate| candidate.ended.is_none());
        block.push(left);
        for read in self.reads.values_mut() {
            let place = lba.checked_sub(read.lba).and_then(|at| read.allowed.get_mut(at as usize));
            place.into_iter().for_each(|allowed| allowed.push(value));
        }
    }

    /// It has so many more blocks, of zeroes.
    pub fn grow(&mut self, blocks: u64) {
        let zero = Candidate { write: WriteId(0), value: 0, ended: Some(0), follows: None, done: true };
        let first = Survivor { write: WriteId(0), value: 0, ended: Some(0), acknowledged: Some(0) };
        let len = self.blocks.len() + blocks as usize;
        self.blocks.resize(len, vec![zero]);
        self.survivors.resize(len, vec![first]);
    }

    /// Whether something was promised to be durable since this was last asked.
    pub fn take_promised(&mut self) -> bool {
        std::mem::take(&mut self.promised)
    }

    /// The medium holds these bytes after a crash.
    ///
    /// # Errors
    /// The first block that was promised to hold something else.
    pub fn survives(&self, data: &[u8]) -> Result<(), Wrong> {
        for ((lba, block), data) in (0..).zip(&self.survivors).zip(data.chunks(self.block_size)) {
            let found = value_of(data);
            if !found.is_some_and(|value| block.iter().any(|survivor| survivor.value == value)) {
                return Err(Wrong { lba, found, allowed: block.iter().map(|survivor| survivor.value).collect() });
            }
        }
        Ok(())
    }

    /// What of these values each block can hold only once. To be asked when an atomic command is handed in.
    #[must_use]
    pub fn once(&self, lba: u64, expected: &[Value]) -> Vec<Once> {
        let once = |(lba, value): (u64, &Value)| {
            let mut holding = self.blocks[lba as usize].iter().filter(|candidate| candidate.value == *value);
            let ended = holding.next().filter(|_| *value != 0)?.ended;
            ended.filter(|_| holding.next().is_none())
        };
        (lba..).zip(expected).map(once).collect()
    }

    /// An atomic command has found these values and replaced them; `once` is of [`Self::once`].
    ///
    /// # Errors
    /// The first block of which another one has said the same.
    fn replace(&mut self, lba: u64, expected: &[Value], once: &[Once]) -> Result<(), Wrong> {
        for ((lba, value), once) in (lba..).zip(expected).zip(once) {
            if once.is_some() && !self.replaced.insert((lba, *value)) {
                return Err(Wrong { lba, found: Some(*value), allowed: Vec::new() });
            }
        }
        Ok(())
    }

    /// A read is handed in.
    pub fn begin_read(&mut self, lba: u64, blocks: u64) -> ReadId {
        let read = ReadId(self.tick());
        let range = &self.blocks[lba as usize..(lba + blocks) as usize];
        let allowed = range.iter().map(|block| block.iter().map(|candidate| candidate.value).collect()).collect();
        let changing = range.iter().map(|block| block.iter().any(|candidate| candidate.ended.is_none())).collect();
        self.reads.insert(read, Read { lba, allowed, changing });
        read
    }

    /// The read brought nothing.
    pub fn forget(&mut self, read: ReadId) {
        self.reads.remove(&read);
    }

    /// The read brought these bytes.
    ///
    /// # Errors
    /// The first block that it cannot have seen.
    pub fn end_read(&mut self, read: ReadId, data: &[u8]) -> Result<(), Wrong> {
        let Some(read) = self.reads.remove(&read) else { return Ok(()) };
        let may_hold = read.allowed.into_iter().zip(read.changing);
        for ((at, (allowed, changing)), block) in (read.lba..).zip(may_hold).zip(data.chunks(self.block_size)) {
            let found = value_of(block);
            let whole = found.is_some_and(|value| allowed.contains(&value));
            if !(whole || self.torn && changing && is_mix(block, &allowed)) {
                return Err(Wrong { lba: at, found, allowed });
            }
        }
        Ok(())
    }

    /// An atomic compare found these values: was that possible? Ends the read.
    ///
    /// # Errors
    /// A block for which it was not.
    pub fn end_equal(&mut self, read: ReadId, expected: &[Value]) -> Result<(), Wrong> {
        let Some(read) = self.reads.remove(&read) else { return Ok(()) };
        for ((at, allowed), value) in (read.lba..).zip(read.allowed).zip(expected) {
            if !allowed.contains(value) {
                return Err(Wrong { lba: at, found: Some(*value), allowed });
            }
        }
        Ok(())
    }

    /// An atomic compare found other values than these; `own` are those that it would have written itself. Was that
    /// possible? Ends the read.
    ///
    /// # Errors
    /// The first block, when every block can only have held what was expected.
    pub fn end_different(
        &mut self,
        read: ReadId,
        expected: &[Value],
        own: impl Fn(Value) -> bool,
    ) -> Result<(), Wrong> {
        let Some(read) = self.reads.remove(&read) else { return Ok(()) };
        let sure = read
            .allowed
            .iter()
            .zip(expected)
            .all(|(allowed, value)| allowed.iter().all(|other| other == value || own(*other)));
        if sure { Err(Wrong { lba: read.lba, found: None, allowed: expected.to_vec() }) } else { Ok(()) }
    }

    /// Something that the block may hold now, the last that was handed in.
    #[must_use]
    pub fn likely(&self, lba: u64) -> Value {
        self.blocks[lba as usize].last().map_or(0, |candidate| candidate.value)
    }

    /// The read came before an ORDERED write of the same session, on one connection that nothing disturbs: it sees none
    /// of these values, which that writes from `lba` on. To be told right after [`Self::begin_write`].
    pub fn not_seen_by(&mut self, read: ReadId, lba: u64, values: &std::ops::Range<Value>) {
        let Some(read) = self.reads.get_mut(&read) else { return };
        for (at, allowed) in (read.lba..).zip(&mut read.allowed) {
            if at.checked_sub(lba).is_some_and(|at| at < values.end - values.start) {
                allowed.retain(|value| !values.contains(value));
            }
        }
    }

    /// Whether no read and no write is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }
}

/// Drops what ended before the last of those began that are certain to be on the medium.
fn keep(block: &mut Vec<Survivor>, certain: impl Fn(&Survivor) -> bool) {
    let Some(last) = block.iter().filter(|survivor| certain(survivor)).map(|survivor| survivor.write.0).max() else {
        return;
    };
    block.retain(|survivor| survivor.ended.is_none_or(|ended| ended >= last));
}

/// Fills a block with a value's content.
pub fn fill_block(value: Value, block: &mut [u8]) {
    let mut state = value;
    for (at, word) in block.chunks_mut(8).enumerate() {
        let bytes = if value == 0 {
            0
        } else if at == 0 {
            value
        } else {
            splitmix(&mut state)
        };
        word.copy_from_slice(&bytes.to_le_bytes()[..word.len()]);
    }
}

/// Whether each byte is that of one of these values at its place.
fn is_mix(block: &[u8], values: &[Value]) -> bool {
    let contents: Vec<Vec<u8>> = values
        .iter()
        .map(|value| {
            let mut content = vec![0; block.len()];
            fill_block(*value, &mut content);
            content
        })
        .collect();
    block.iter().enumerate().all(|(at, byte)| contents.iter().any(|content| content[at] == *byte))
}

/// The value whose content this block is.
#[must_use]
pub fn value_of(block: &[u8]) -> Option<Value> {
    let value = Value::from_le_bytes(*block.first_chunk()?);
    if value == 0 {
        return block.iter().all(|byte| *byte == 0).then_some(0);
    }
    let mut state = value;
    let whole = block.chunks(8).skip(1).all(|word| *word == splitmix(&mut state).to_le_bytes()[..word.len()]);
    whole.then_some(value)
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(model: &mut Model, lba: u64, value: Value) -> Result<(), Wrong> {
        let read = model.begin_read(lba, 1);
        let mut block = vec![0; 512];
        fill_block(value, &mut block);
        model.end_read(read, &block)
    }

    #[test]
    fn a_write_that_was_given_up_does_not_cover_a_later_one() {
        let mut model = Model::new(1, 512, false);
        let first = model.begin_write(0, 1, |_| 7);
        model.give_up(first);
        let second = model.begin_write(0, 1, |_| 8);
        model.supersede(first, second);
        model.acknowledge(second);
        let read = model.begin_read(0, 1);
        let mut data = [0; 512];
        fill_block(7, &mut data);
        assert_eq!(model.end_read(read, &data).unwrap_err().allowed, [8]);
    }

    #[test]
    fn an_acknowledged_write_must_be_seen() {
        let mut model = Model::new(4, 512, false);
        let first = model.begin_write(0, 2, |_| 7);
        assert_eq!((read(&mut model, 0, 0), read(&mut model, 1, 7)), (Ok(()), Ok(())));
        model.acknowledge(first);
        assert!(read(&mut model, 0, 0).is_err());
        assert!(read(&mut model, 0, 7).is_ok());
        assert!(read(&mut model, 0, 9).is_err());
    }

    #[test]
    fn a_block_is_torn_only_while_it_is_written_and_a_device_reads_it() {
        for torn in [false, true] {
            let mut model = Model::new(1, 512, torn);
            let mut block = vec![0; 512];
            fill_block(7, &mut block);
            block[100..].fill(0);
            let early = model.begin_read(0, 1);
            let write = model.begin_write(0, 1, |_| 7);
            let late = model.begin_read(0, 1);
            assert_eq!((model.end_read(early, &block).is_ok(), model.end_read(late, &block).is_ok()), (torn, torn));
            // It may have been done or not, but not by half.
            model.fail(write);
            let read = model.begin_read(0, 1);
            assert!(model.end_read(read, &block).is_err());
        }
    }

    #[test]
    fn a_failed_write_may_or_may_not_be_seen_until_it_is_overwritten() {
        let mut model = Model::new(1, 512, false);
        let failed = model.begin_write(0, 1, |_| 7);
        model.fail(failed);
        assert!(read(&mut model, 0, 0).is_ok() && read(&mut model, 0, 7).is_ok());
        let next = model.begin_write(0, 1, |_| 8);
        model.acknowledge(next);
        assert!(read(&mut model, 0, 7).is_err() && read(&mut model, 0, 0).is_err());
        // One of unknown fate may still come after.
        let unknown = model.begin_write(0, 1, |_| 9);
        let next = model.begin_write(0, 1, |_| 10);
        model.acknowledge(next);
        assert!(read(&mut model, 0, 9).is_ok() && read(&mut model, 0, 10).is_ok());
        model.fail(unknown);
        assert!(read(&mut model, 0, 9).is_ok());
    }

    #[test]
    fn what_a_flush_has_covered_survives() {
        let mut model = Model::new(1, 512, false);
        let survives = |model: &Model, value| {
            let mut block = vec![0; 512];
            fill_block(value, &mut block);
            model.survives(&block).is_ok()
        };
        let first = model.begin_write(0, 1, |_| 7);
        let early = model.begin_flush();
        model.acknowledge(first);
        model.end_flush(early);
        assert!(survives(&model, 0) && survives(&model, 7), "the flush was handed in before the write had ended");
        let later = model.begin_flush();
        let second = model.begin_write(0, 1, |_| 8);
        model.end_flush(later);
        assert!(!survives(&model, 0) && survives(&model, 7) && survives(&model, 8));
        model.acknowledge_durable(second);
        assert!(!survives(&model, 7) && survives(&model, 8));
    }

    #[test]
    fn a_value_is_replaced_once() {
        let mut model = Model::new(1, 512, false);
        let write = model.begin_write(0, 1, |_| 7);
        assert_eq!(model.once(0, &[7]), [None], "it may be written again");
        model.acknowledge(write);
        let once = model.once(0, &[7]);
        assert!(once[0].is_some());
        assert!(model.replace(0, &[7], &once).is_ok());
        assert!(model.replace(0, &[7], &once).is_err());
    }

    #[test]
    fn nothing_comes_between_what_an_atomic_command_finds_and_what_it_writes() {
        let found = |other_ends_first: bool| {
            let mut model = Model::new(1, 512, false);
            let write = model.begin_write(0, 1, |_| 7);
            model.acknowledge(write);
            let once = model.once(0, &[7]);
            let atomic = model.begin_write(0, 1, |_| 8);
            let other = model.begin_write(0, 1, |_| 9);
            if other_ends_first {
                model.acknowledge(other);
            }
            model.acknowledge_replacing(atomic, &[7], &once).unwrap();
            model.acknowledge(other);
            (read(&mut model, 0, 8).is_ok(), read(&mut model, 0, 9).is_ok())
        };
        // It found 7, so the write of 9 had not been done: that is the later one.
        assert_eq!(found(true), (false, true));
        assert_eq!(found(false), (false, true));
    }

    #[test]
    fn a_crash_brings_back_what_was_not_promised() {
        let mut model = Model::new(1, 512, false);
        for value in [7, 8] {
            let write = model.begin_write(0, 1, |_| value);
            model.acknowledge(write);
            let flush = model.begin_flush();
            if value == 7 {
                model.end_flush(flush);
            }
        }
        assert!(read(&mut model, 0, 7).is_err());
        model.crash();
        assert!(read(&mut model, 0, 7).is_ok() && read(&mut model, 0, 8).is_ok() && read(&mut model, 0, 0).is_err());
        let write = model.begin_write(0, 1, |_| 9);
        model.acknowledge(write);
        assert!(read(&mut model, 0, 7).is_err() && read(&mut model, 0, 9).is_ok());
    }

    #[test]
    fn a_read_may_see_what_was_written_while_it_ran() {
        let mut model = Model::new(1, 512, false);
        let read = model.begin_read(0, 1);
        let write = model.begin_write(0, 1, |_| 7);
        model.acknowledge(write);
        let mut block = vec![0; 512];
        assert_eq!(model.end_read(read, &block), Ok(()));
        let again = model.begin_read(0, 1);
        assert!(model.end_read(again, &block).is_err());
        fill_block(7, &mut block);
        block[511] ^= 1;
        assert_eq!(value_of(&block), None);
    }
}
