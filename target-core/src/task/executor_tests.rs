use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iscsi_memory::Region;
use iscsi_proto::pdu::TaskAttribute;
use proptest::prelude::*;
use scsi_proto::mode::{ModeData, ModePage};
use scsi_proto::report::{OneCommand, Support, parse_all_commands, parse_luns, parse_target_port_groups};
use scsi_proto::vpd::{DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, BlockIo, Cdb, Sense, SenseKey, capacity, inquiry, opcode, provisioning};

use super::super::slot::State;
use super::*;
use crate::device_server::flags;
use crate::device_server::table::COMMANDS;
use crate::lu::{Identity, LogicalUnit, NexusId, UnitAttention, UnitAttributes};
use crate::task::TargetPort;
use backstore::{Abilities, Access, Backstore, Blocks, Geometry, LbaStatus, StoreError};

#[path = "memory_tests.rs"]
mod memory;

const BLOCKS: u64 = 1024;

/// A store behind the easy door; `slow` makes each operation wait for one more poll, `stuck` for the day it is taken
/// back.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    abilities: Abilities,
    slow: bool,
    stuck: AtomicBool,
    fail: AtomicBool,
    /// Bytes of the longest read or write.
    longest: AtomicUsize,
}

impl Disk {
    async fn pause(&self) {
        if self.slow {
            let mut first = true;
            futures::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if core::mem::take(&mut first) || self.stuck.load(Ordering::Relaxed) {
                    core::task::Poll::Pending
                } else {
                    core::task::Poll::Ready(())
                }
            })
            .await;
        }
    }
}

#[async_trait::async_trait]
impl Backstore for Disk {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.bytes.lock().unwrap().len() as u64)
    }
    fn abilities(&self) -> Abilities {
        self.abilities
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.pause().await;
        if self.fail.load(Ordering::Relaxed) {
            return Err(StoreError::Read(Some(lba)));
        }
        self.longest.fetch_max(data.len(), Ordering::Relaxed);
        data.copy_from_slice(&self.bytes.lock().unwrap()[lba as usize * 512..][..data.len()]);
        Ok(())
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.pause().await;
        self.longest.fetch_max(data.len(), Ordering::Relaxed);
        self.bytes.lock().unwrap()[lba as usize * 512..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.bytes.lock().unwrap()[lba as usize * 512..][..blocks as usize * 512].fill(0);
        Ok(())
    }
    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        let bytes = self.bytes.lock().unwrap();
        let mapped = |at: u64| bytes[at as usize * 512..][..512].iter().any(|byte| *byte != 0);
        let blocks = (lba..BLOCKS).take_while(|at| mapped(*at) == mapped(lba)).count() as u64;
        Ok(LbaStatus { blocks, mapped: mapped(lba) })
    }
}

/// A store with a memory door; the other doors lead to the same memory.
struct Memory(Arc<Region>);

#[async_trait::async_trait]
impl Backstore for Memory {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.0.len())
    }
    fn abilities(&self) -> Abilities {
        Abilities { unmap: true, unmapped_reads_zero: true, solid_state: true, ..Abilities::default() }
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.0.read(lba * 512, data);
        Ok(())
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.0.reserve_for_write(lba * 512, data.len() as u64).map_err(|_| StoreError::NoSpace)?;
        self.0.write(lba * 512, data);
        Ok(())
    }
    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.0.discard(lba * 512, blocks * 512);
        Ok(())
    }
    fn memory(&self) -> Option<&Arc<Region>> {
        Some(&self.0)
    }
}

fn disk(slow: bool) -> Disk {
    let abilities = Abilities { unmap: true, unmapped_reads_zero: true, volatile_cache: true, ..Abilities::default() };
    Disk {
        bytes: Mutex::new(vec![0; BLOCKS as usize * 512]),
        abilities,
        slow,
        stuck: AtomicBool::new(false),
        fail: AtomicBool::new(false),
        longest: AtomicUsize::new(0),
    }
}

fn unit(store: Arc<dyn Backstore>) -> Arc<LogicalUnit> {
    Arc::new(LogicalUnit::new(store, Identity::from_seed("test")).unwrap())
}

#[derive(Debug, PartialEq, Eq, Clone)]
struct Done {
    status: u8,
    data: Vec<u8>,
    residual: Residual,
    sense: Option<Sense>,
}

impl Done {
    fn good(&self) -> &[u8] {
        assert_eq!(self.status, 0, "{self:?}");
        &self.data
    }
    fn check(&self, key: SenseKey, code: AdditionalSense) -> Sense {
        let sense = self.sense.unwrap_or_else(|| panic!("no sense: {self:?}"));
        assert_eq!((self.status, sense.key, sense.code), (2, key, code));
        sense
    }
    fn illegal(&self, code: AdditionalSense) -> Sense {
        self.check(SenseKey::IllegalRequest, code)
    }
}

/// A session that plays the mover too.
struct Session {
    executor: TaskExecutor,
    next: u16,
    data: VecDeque<(TaskHandle, Vec<u8>)>,
    direct: bool,
    /// What was sent of the data of tasks that have not ended, by slot.
    parts: BTreeMap<u16, Vec<u8>>,
    /// All data come with their command.
    at_once: bool,
}

fn done(data: Source<'_>, status: TaskStatus<'_>) -> (Done, Option<Buf>) {
    let (bytes, buf) = match data {
        Source::None => (vec![], None),
        Source::Copy(bytes) => (bytes.to_vec(), None),
        Source::Region { region, offset, len } => {
            let mut bytes = vec![0; len];
            region.read(offset, &mut bytes);
            (bytes, None)
        }
        Source::Buf(buf) => (buf.to_vec(), Some(buf)),
    };
    let sense = (!status.sense.is_empty()).then(|| Sense::parse(status.sense).unwrap());
    (Done { status: status.status, data: bytes, residual: status.residual, sense }, buf)
}

/// What a step asks, freed from the executor.
enum Asked {
    Pending,
    Data(Payload),
    Part(Buf, u32),
    Done(Done, u32, Option<Buf>),
}

fn asked(step: Step<'_>) -> Asked {
    match step {
        Step::Pending => Asked::Pending,
        Step::GetData { sink } => Asked::Data(sink),
        Step::Send { data: Source::Buf(buf), offset } => Asked::Part(buf, offset),
        Step::Send { data, .. } => panic!("parts are buffers: {data:?}"),
        Step::Respond { data, offset, status } => {
            let (done, buf) = done(data, status);
            Asked::Done(done, offset, buf)
        }
    }
}

impl Session {
    fn new(map: &Arc<LunMap>, id: u64) -> Self {
        let mut session = Self::with_attention(map, id);
        for lun in map.iter() {
            let first = session.on_lun(lun.number, &[0; 6], &[], 0, TaskAttribute::Simple);
            assert_eq!(first.sense.unwrap().key, SenseKey::UnitAttention);
        }
        session
    }

    fn with_attention(map: &Arc<LunMap>, id: u64) -> Self {
        Self::at_level(map, id, 2)
    }

    fn at_level(map: &Arc<LunMap>, id: u64, protocol_level: u32) -> Self {
        let nexus = Nexus {
            id: NexusId(id),
            initiator_name: alloc::format!("iqn.2026-01.org.example:{id}"),
            isid: [0; 6],
            target_name: "iqn.2026-01.org.example:t".into(),
            portal_group_tag: 2,
            ports: Arc::new([port(1, 4, 9), port(2, 7, 3), port(3, 8, 9)]),
            protocol_level,
        };
        let config = ExecutorConfig { slots: 16, max_buffered: 4 << 20, ..ExecutorConfig::default() };
        let mut executor = TaskExecutor::new(config, map.clone(), nexus);
        executor.set_asks_to_land(true);
        Self { executor, next: 0, data: VecDeque::new(), direct: true, parts: BTreeMap::new(), at_once: false }
    }

    fn start(
        &mut self,
        lun: u16,
        cdb: &[u8],
        out: &[u8],
        read: u32,
        attribute: TaskAttribute,
    ) -> (TaskHandle, Option<Done>) {
        let mut field = [0; 16];
        field[..cdb.len().min(16)].copy_from_slice(&cdb[..cdb.len().min(16)]);
        let task = TaskHandle { slot: self.next % 16, generation: self.next };
        self.next += 1;
        self.executor.note_sends(0, 0);
        let new = NewTask {
            task,
            lun: u64::from(lun) << 48,
            itt: task.to_itt(),
            cdb: &field,
            attribute,
            read: read != 0,
            write: !out.is_empty(),
            immediate: false,
            unsolicited: false,
            expected_data_transfer_length: if out.is_empty() { read } else { out.len() as u32 },
            bidirectional_read_length: None,
            direct_placement: self.direct,
        };
        if self.at_once
            && let Some(AtOnce { written, data, status }) = self.executor.start_at_once(&new, out)
        {
            assert_eq!(written as usize, out.len());
            return (task, Some(done(data, status).0));
        }
        let step = asked(self.executor.start(new));
        let done = self.take(task, step, out);
        (task, done)
    }

    /// Follows a step as far as the mover can; data arrive at once.
    fn take(&mut self, task: TaskHandle, step: Asked, out: &[u8]) -> Option<Done> {
        match step {
            Asked::Pending => None,
            Asked::Part(buf, offset) => {
                let parts = self.parts.entry(task.slot).or_default();
                assert_eq!(parts.len(), offset as usize);
                parts.extend_from_slice(&buf);
                self.executor.give(buf);
                None
            }
            Asked::Done(mut done, offset, buf) => {
                buf.into_iter().for_each(|buf| self.executor.give(buf));
                let mut parts = self.parts.remove(&task.slot).unwrap_or_default();
                assert_eq!(parts.len(), offset as usize);
                parts.append(&mut done.data);
                Some(Done { data: parts, ..done })
            }
            Asked::Data(mut sink) => {
                assert!(sink.len() <= out.len());
                let len = sink.len();
                match &mut sink {
                    Payload::Buf(buf) => buf.copy_from_slice(&out[..len]),
                    Payload::Region(slice) => slice.write(0, &out[..len]),
                }
                let step = asked(self.executor.data_arrived(task, sink));
                self.take(task, step, out)
            }
        }
    }

    /// One round of the wake loop: all that is finished by now.
    fn finished(&mut self) -> Vec<(TaskHandle, Done)> {
        self.executor.note_sends(0, 0);
        self.executor.set_waker(Waker::noop());
        self.executor.submit();
        let mut all = vec![];
        loop {
            let Some((task, step)) = self.executor.poll().map(|(task, step)| (task, asked(step))) else { return all };
            let out =
                self.data.iter().find(|(other, _)| *other == task).map(|(_, out)| out.clone()).unwrap_or_default();
            all.extend(self.take(task, step, &out).map(|done| (task, done)));
        }
    }

    fn on_lun(&mut self, lun: u16, cdb: &[u8], out: &[u8], read: u32, attribute: TaskAttribute) -> Done {
        let (task, done) = self.start(lun, cdb, out, read, attribute);
        if let Some(done) = done {
            return done;
        }
        self.data.push_back((task, out.to_vec()));
        for _ in 0..10_000 {
            let finished = self.finished();
            if let Some((_, done)) = finished.into_iter().find(|(other, _)| *other == task) {
                self.data.clear();
                return done;
            }
        }
        panic!("the task never ended: {cdb:02x?}");
    }

    fn send(&mut self, cdb: &[u8], out: &[u8]) -> Done {
        self.on_lun(0, cdb, out, 0, TaskAttribute::Simple)
    }

    fn receive(&mut self, cdb: &[u8], len: u32) -> Done {
        self.on_lun(0, cdb, &[], len, TaskAttribute::Simple)
    }
}

fn port(portal_group_tag: u16, relative: u16, group: u16) -> TargetPort {
    TargetPort { portal_group_tag, relative, group }
}

fn maps() -> [Arc<LunMap>; 3] {
    let map = |store: Arc<dyn Backstore>| Arc::new(LunMap::builder().insert(0, unit(store), false).build());
    [map(Arc::new(Memory(Region::heap(BLOCKS as usize * 512)))), map(Arc::new(disk(false))), map(Arc::new(disk(true)))]
}

fn io(code: u8, lba: u64, blocks: u32, flags: u8) -> Vec<u8> {
    BlockIo::new(lba, blocks).with_flags(flags).to_cdb(code).unwrap().as_bytes().to_vec()
}

fn pattern(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * 512).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at / 512) as u8) ^ seed).collect()
}

#[test]
fn what_is_written_is_read_by_every_form() {
    for (map, direct) in maps().iter().flat_map(|map| [(map, true), (map, false)]) {
        let mut session = Session::new(map, 1);
        session.direct = direct;
        for (index, (write, read)) in [
            (opcode::WRITE_6, opcode::READ_6),
            (opcode::WRITE_10, opcode::READ_10),
            (opcode::WRITE_12, opcode::READ_12),
            (opcode::WRITE_16, opcode::READ_16),
            (opcode::WRITE_AND_VERIFY_10, opcode::READ_10),
            (opcode::WRITE_AND_VERIFY_16, opcode::READ_16),
        ]
        .into_iter()
        .enumerate()
        {
            let data = pattern(20, index as u8);
            let lba = index as u64 * 50;
            session.send(&io(write, lba, 20, 0), &data).good();
            let back = session.receive(&io(read, lba, 20, 0), 20 * 512);
            assert_eq!(back.good(), data);
            assert_eq!(back.residual, Residual::None);
            assert_eq!(session.executor.buffered(), 0);
        }
    }
}

#[test]
fn ranges_lengths_and_reserved_bits_are_checked() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let end = session.receive(&io(opcode::READ_10, BLOCKS - 1, 2, 0), 1024);
        assert_eq!(end.illegal(AdditionalSense::LBA_OUT_OF_RANGE).information, Some(BLOCKS));
        let far = session.receive(&io(opcode::READ_16, u64::MAX, 2, 0), 1024);
        far.illegal(AdditionalSense::LBA_OUT_OF_RANGE);
        session.send(&io(opcode::WRITE_16, 1 << 40, 1, 0), &[0; 512]).illegal(AdditionalSense::LBA_OUT_OF_RANGE);
        session.receive(&io(opcode::READ_10, BLOCKS, 0, 0), 0).good();
        session.receive(&io(opcode::READ_10, BLOCKS + 1, 0, 0), 0).illegal(AdditionalSense::LBA_OUT_OF_RANGE);
        let long = session.receive(&io(opcode::READ_16, 0, 70_000, 0), 512);
        assert_eq!(long.illegal(AdditionalSense::INVALID_FIELD_IN_CDB), Sense::invalid_field_in_cdb(10));
        let protect = session.receive(&io(opcode::READ_10, 0, 1, 0x20), 512);
        let sense = protect.illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_eq!(sense.specific, Sense::NONE.at_cdb_bit(1, 5).specific);
        let fua = session.receive(&io(opcode::READ_10, 0, 1, 0x08), 512);
        let volatile = map.get(0).unwrap().unit.abilities().volatile_cache;
        if volatile {
            _ = fua.good();
        } else {
            _ = fua.illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        }
        session.receive(&[0xc5, 0, 0, 0, 0, 0], 8).illegal(AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
        session.receive(&[0x9e, 0x1f], 8).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session.receive(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4], 8).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}

#[test]
fn residuals_tell_what_was_not_moved() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let read = session.receive(&io(opcode::READ_10, 0, 1, 0), 10_000);
        assert_eq!((read.good().len(), read.residual), (512, Residual::Underflow(9488)));
        let read = session.receive(&io(opcode::READ_10, 0, 1, 0), 200);
        assert_eq!((read.good().len(), read.residual), (200, Residual::Overflow(312)));
        let read = session.receive(&io(opcode::READ_10, 0, 2, 0), 0);
        assert_eq!((read.good().len(), read.residual), (0, Residual::Overflow(1024)));
        // The initiator has less than the command wants: only that is written.
        session.send(&io(opcode::WRITE_10, 0, 2, 0), &[b'a'; 1024]).good();
        let write = session.send(&io(opcode::WRITE_10, 0, 2, 0), &[b'b'; 512]);
        assert_eq!((write.status, write.residual), (0, Residual::Overflow(512)));
        assert_eq!(session.receive(&io(opcode::READ_10, 0, 2, 0), 1024).good()[510..514], *b"bbaa");
        let write = session.send(&io(opcode::WRITE_10, 0, 1, 0), &[b'c'; 1024]);
        assert_eq!((write.status, write.residual), (0, Residual::Underflow(512)));
        assert_eq!(session.receive(&io(opcode::READ_10, 0, 2, 0), 1024).good()[510..514], *b"ccaa");
        let write = session.send(&io(opcode::WRITE_10, 0, 1, 0), &[]);
        assert_eq!((write.status, write.residual), (0, Residual::Overflow(512)));
        // Directions mixed up: a read gives nothing, a write is refused.
        let read = session.send(&io(opcode::READ_10, 0, 1, 0), &[0; 512]);
        assert_eq!((read.status, read.residual), (0, Residual::Underflow(512)));
        session.receive(&io(opcode::WRITE_10, 0, 1, 0), 512).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}

#[test]
fn data_that_are_no_whole_blocks_are_refused_and_change_nothing() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        session.send(&io(opcode::WRITE_10, 0, 2, 0), &[b'a'; 1024]).good();
        let ways = COMMANDS.iter().filter(|command| command.flags & flags::DATA_OUT != 0).filter_map(|command| {
            let flags = if command.name.contains("VERIFY") { 0x02 } else { 0 };
            // UNMAP and MODE SELECT take lists, not blocks.
            let cdb = BlockIo::new(0, 1).with_flags(flags).to_cdb(command.opcode)?;
            Some((command.name, cdb.as_bytes().to_vec()))
        });
        let ways: Vec<_> = ways.collect();
        assert!(ways.len() >= 14, "{ways:?}");
        for (name, cdb) in &ways {
            let compares = cdb[0] == opcode::COMPARE_AND_WRITE;
            for len in if compares { [200, 512 + 200] } else { [1, 200] } {
                let done = session.send(cdb, &[b'b'; 1024][..len]);
                done.illegal(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
                let wanted = if compares { 1024 } else { 512 };
                assert_eq!(done.residual, Residual::Overflow(wanted - len as u32), "{name}");
            }
            assert_eq!(session.receive(&io(opcode::READ_10, 0, 2, 0), 1024).good(), [b'a'; 1024], "{name}");
        }
        let done = session.send(&io(opcode::WRITE_10, 0, 2, 0), &[b'b'; 1000]);
        done.illegal(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
        assert_eq!(session.receive(&io(opcode::READ_10, 0, 2, 0), 1024).good(), [b'a'; 1024]);
        // All that the command wants is there; that the rest is no block does not matter.
        for (len, rest) in [(700, 188), (1000, 488), (10_000, 9488)] {
            let done = session.send(&io(opcode::WRITE_10, 0, 1, 0), &[b'b'; 10_000][..len]);
            assert_eq!((done.status, done.residual), (0, Residual::Underflow(rest)));
            assert_eq!(session.receive(&io(opcode::READ_10, 0, 2, 0), 1024).good()[510..514], *b"bbaa");
        }
        assert_eq!(session.executor.buffered(), 0);
    }
}

/// RFC 7143 11.4.2: the data that are coming unasked are waited for, and dropped; what was wrong is told then, whatever
/// came meanwhile.
#[test]
fn an_error_is_told_behind_the_last_of_the_unsolicited_data() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let past_the_end = (0, io(opcode::WRITE_10, BLOCKS, 8, 0), AdditionalSense::LBA_OUT_OF_RANGE);
        let no_unit = (1, io(opcode::WRITE_10, 0, 8, 0), AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
        for (lun, cdb, code) in [past_the_end.clone(), no_unit.clone()] {
            for arrives in [true, false] {
                let mut field = [0; 16];
                field[..cdb.len()].copy_from_slice(&cdb);
                let task = TaskHandle { slot: 9, generation: 900 };
                let new = NewTask {
                    task,
                    lun: lun << 48,
                    itt: 9,
                    cdb: &field,
                    attribute: TaskAttribute::Simple,
                    read: false,
                    write: true,
                    immediate: false,
                    unsolicited: true,
                    expected_data_transfer_length: 4096,
                    bidirectional_read_length: None,
                    direct_placement: true,
                };
                let Asked::Data(sink) = asked(session.executor.start(new)) else { panic!("answered at once") };
                assert_eq!(sink.len(), 0);
                // Another command's error in between, and one that waits for nothing of it.
                session.send(&[0xff; 6], &[]).illegal(AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
                let ordered = session.on_lun(0, &io(opcode::READ_10, 0, 1, 0), &[], 512, TaskAttribute::Ordered);
                assert_eq!(ordered.status, Status::Good as u8);
                let step = if arrives {
                    session.executor.data_arrived(task, sink)
                } else {
                    session.executor.data_failed(task, sink, DataError::OutOfSequence)
                };
                let Asked::Done(done, 0, None) = asked(step) else { panic!("not answered") };
                done.illegal(code);
            }
        }
        assert_eq!(session.executor.buffered(), 0);
    }
}

#[test]
fn a_length_without_a_direction_is_refused() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        for (lun, cdb) in [(0, io(opcode::READ_10, 0, 8, 0)), (0, vec![0; 6]), (1, vec![0x12, 0, 0, 0, 96, 0])] {
            let mut field = [0; 16];
            field[..cdb.len()].copy_from_slice(&cdb);
            let new = NewTask {
                task: TaskHandle { slot: 9, generation: 900 },
                lun: lun << 48,
                itt: 9,
                cdb: &field,
                attribute: TaskAttribute::Simple,
                read: false,
                write: false,
                immediate: false,
                unsolicited: false,
                expected_data_transfer_length: 4096,
                bidirectional_read_length: None,
                direct_placement: true,
            };
            let Asked::Done(done, 0, None) = asked(session.executor.start(new)) else { panic!("not answered at once") };
            done.illegal(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
        }
    }
}

#[test]
fn the_short_way_and_the_table_give_the_same() {
    let map = &maps()[0];
    let mut session = Session::new(map, 1);
    for (ten, sixteen) in [(true, false), (false, true)] {
        let (read, write) = if ten { (opcode::READ_10, opcode::WRITE_10) } else { (opcode::READ_16, opcode::WRITE_16) };
        for (lba, blocks) in [(0, 1), (5, 3), (BLOCKS - 1, 1), (BLOCKS - 1, 2), (BLOCKS, 0), (0, 0), (7, 40_000)] {
            let data = pattern(blocks.min(64) as usize, lba as u8 ^ u8::from(sixteen));
            // An ORDERED task always goes the long way.
            let mut both = |cdb: &[u8], out: &[u8], len| {
                let mut outcomes = Vec::new();
                for (at_once, attribute) in
                    [(true, TaskAttribute::Simple), (false, TaskAttribute::Simple), (false, TaskAttribute::Ordered)]
                {
                    if !out.is_empty() {
                        session.send(&io(opcode::WRITE_16, 0, 64, 0), &[0; 64 * 512]).good();
                    }
                    session.at_once = at_once;
                    let done = session.on_lun(0, cdb, out, len, attribute);
                    session.at_once = false;
                    outcomes.push((done, session.receive(&io(opcode::READ_16, 0, 64, 0), 64 * 512)));
                }
                assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{cdb:02x?}: {outcomes:?}");
            };
            both(&io(write, lba, blocks, 0), &data, 0);
            both(&io(read, lba, blocks, 0), &[], data.len() as u32);
            both(&io(read, lba, blocks, 0x20), &[], data.len() as u32);
            both(&io(write, lba, blocks, 0x08), &data, 0);
        }
    }
    assert_eq!(session.executor.buffered(), 0);
    assert!(map.get(0).unwrap().unit.gate().is_idle(), "blocks are still held");
}

#[test]
fn compare_and_write_writes_what_compares() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let old = pattern(2, 7);
        session.send(&io(opcode::WRITE_10, 9, 2, 0), &old).good();
        let mut data = old.clone();
        data.extend(pattern(2, 9));
        session.send(&io(opcode::COMPARE_AND_WRITE, 9, 2, 0), &data).good();
        assert_eq!(session.receive(&io(opcode::READ_10, 9, 2, 0), 1024).good(), pattern(2, 9));
        data[..1024].copy_from_slice(&pattern(2, 9));
        data[700] ^= 1;
        let miss = session.send(&io(opcode::COMPARE_AND_WRITE, 9, 2, 0), &data);
        let sense = miss.check(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION);
        assert_eq!(sense.information, Some(700));
        session.send(&io(opcode::COMPARE_AND_WRITE, 9, 1, 0), &data).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session.send(&io(opcode::COMPARE_AND_WRITE, 9, 17, 0), &data).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_eq!(session.executor.buffered(), 0);
        let unit = map.get(0).unwrap().unit;
        assert!(unit.gate().is_idle(), "blocks are still held");
    }
}

#[test]
fn an_atomic_command_waits_for_another_sessions_write() {
    let map = &maps()[0];
    let (unit, mut two) = (map.get(0).unwrap().unit, Session::new(map, 2));
    // Another session's write is landing.
    let landing = unit.gate().enter(Access::Shared, Blocks::new(0, 1), Waker::noop());
    let data = [[0; 512], [5; 512]].concat();
    let (waiting, done) = two.start(0, &io(opcode::COMPARE_AND_WRITE, 0, 1, 0), &data, 0, TaskAttribute::Simple);
    assert!(done.is_none() && two.finished().is_empty());
    // A new write may not slip in: it is buffered, and waits.
    two.direct = true;
    let (behind, done) = two.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[8; 512], 0, TaskAttribute::Simple);
    assert!(done.is_none());
    unit.region().unwrap().write(0, &[1; 512]);
    unit.gate().leave(landing);
    let finished = two.finished();
    assert_eq!(finished.len(), 2);
    for (task, done) in finished {
        if task == waiting {
            done.check(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION);
        } else {
            assert_eq!(task, behind);
            done.good();
        }
    }
    assert_eq!(two.receive(&io(opcode::READ_10, 0, 1, 0), 512).good(), [8; 512]);
}

/// Neighbours of a write that hangs, of an atomic command that waits for it, and of what is left of it in the end.
#[test]
fn beside_a_write_that_hangs_others_go_on() {
    let store = Arc::new(disk(true));
    let map = Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
    let (mut one, mut two) = (Session::new(&map, 1), Session::new(&map, 2));
    store.stuck.store(true, Ordering::Relaxed);
    let compare = [[0; 512], [5; 512]].concat();
    let goes_on = |session: &mut Session, code, lba, data: &[u8]| {
        let (task, done) = session.start(0, &io(code, lba, 1, 0), data, 0, TaskAttribute::Simple);
        assert!(done.is_none() && session.finished().is_empty());
        match session.executor.slots[usize::from(task.slot)].state {
            State::Running(_) => true,
            State::Gated(_) => false,
            _ => panic!("neither at the gate nor at the store"),
        }
    };
    let (hangs, _) = one.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[1; 512], 0, TaskAttribute::Simple);
    assert!(one.finished().is_empty());
    assert!(!goes_on(&mut two, opcode::COMPARE_AND_WRITE, 0, &compare));
    assert!(goes_on(&mut two, opcode::COMPARE_AND_WRITE, 1, &compare));
    assert!(goes_on(&mut two, opcode::WRITE_10, 2, &[2; 512]));
    one.executor.abort(hangs);
    assert!(!goes_on(&mut one, opcode::WRITE_10, 0, &[3; 512]), "what is left behind may still land");
    assert!(goes_on(&mut one, opcode::WRITE_10, 3, &[4; 512]));
    assert!(goes_on(&mut two, opcode::COMPARE_AND_WRITE, 4, &compare));
    store.stuck.store(false, Ordering::Relaxed);
    let mut ended = 0;
    while ended < 7 - 1 {
        ended += one.finished().len() + two.finished().len();
    }
    assert_eq!(one.receive(&io(opcode::READ_10, 0, 1, 0), 512).good(), [3; 512]);
    assert!(map.get(0).unwrap().unit.gate().is_idle());
}

/// Data on their way to the store's memory when another session unmaps the blocks.
#[test]
fn a_write_is_later_than_what_was_unmapped_while_its_data_came() {
    // By the short way, and by the long one.
    for code in [opcode::WRITE_10, opcode::WRITE_12] {
        let map = &maps()[0];
        let (mut one, mut two) = (Session::new(map, 1), Session::new(map, 2));
        let mut field = [0; 16];
        field[..12].copy_from_slice(&BlockIo::new(0, 16).to_cdb(opcode::WRITE_12).unwrap().as_bytes()[..12]);
        if code == opcode::WRITE_10 {
            field = [0; 16];
            field[..10].copy_from_slice(BlockIo::new(0, 16).to_cdb(code).unwrap().as_bytes());
        }
        let task = TaskHandle { slot: 3, generation: 99 };
        let new = NewTask {
            task,
            lun: 0,
            itt: 1,
            cdb: &field,
            attribute: TaskAttribute::Simple,
            read: false,
            write: true,
            immediate: false,
            unsolicited: false,
            expected_data_transfer_length: 8192,
            bidirectional_read_length: None,
            direct_placement: true,
        };
        let Asked::Data(Payload::Region(slice)) = asked(one.executor.start(new)) else { panic!("no region") };
        two.send(&io(opcode::WRITE_SAME_16, 0, 16, 8), &[0; 512]).good();
        slice.write(0, &[1; 8192]);
        assert!(matches!(asked(one.executor.data_arrived(task, Payload::Region(slice))), Asked::Done(..)));
        assert_eq!(two.receive(&io(opcode::READ_10, 0, 16, 0), 8192).good(), [1; 8192]);
        // A part of a page is zeroed like a whole one.
        two.send(&io(opcode::WRITE_SAME_16, 1, 3, 8), &[0; 512]).good();
        assert_eq!(two.receive(&io(opcode::READ_10, 1, 4, 0), 2048).good(), [[0; 1536].as_slice(), &[1; 512]].concat());
    }
}

#[test]
fn verify_write_same_and_unmap() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let block = pattern(1, 3);
        session.send(&io(opcode::WRITE_SAME_10, 10, 700, 0), &block).good();
        session.send(&io(opcode::VERIFY_10, 10, 700, 0x06), &block).good();
        session.send(&io(opcode::VERIFY_16, 10, 1, 0x02), &block).good();
        session.send(&io(opcode::VERIFY_12, 10, 700, 0), &[]).good();
        let miss = session.send(&io(opcode::VERIFY_10, 9, 2, 0x06), &block);
        miss.check(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION);
        session.send(&io(opcode::VERIFY_10, 9, 2, 0x04), &block).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session
            .send(&io(opcode::WRITE_SAME_10, 10, 1, 0), &block[..256])
            .illegal(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
        session.send(&io(opcode::WRITE_SAME_16, 10, 1, 0x10), &block).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        let list = provisioning::unmap_list(&[
            provisioning::Extent { lba: 20, blocks: 4 },
            provisioning::Extent { lba: BLOCKS, blocks: 0 },
        ]);
        session.send(&[0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list).good();
        assert_eq!(session.receive(&io(opcode::READ_10, 20, 4, 0), 2048).good(), [0; 2048]);
        assert_eq!(session.receive(&io(opcode::READ_10, 24, 1, 0), 512).good(), block);
        let list = provisioning::unmap_list(&[provisioning::Extent { lba: BLOCKS - 1, blocks: 2 }]);
        session.send(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list).illegal(AdditionalSense::LBA_OUT_OF_RANGE);
        session.send(&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list).illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
        session.send(&io(opcode::WRITE_SAME_16, 0, 0, 0x09), &[]).good();
        assert_eq!(session.receive(&io(opcode::READ_10, 0, 1000, 0), 512_000).good(), [0; 512_000]);
        session.send(&io(opcode::WRITE_10, 5, 1, 0), &block).good();
        session.send(&io(opcode::ORWRITE_16, 4, 2, 0), &[0x80; 1024]).good();
        let both = session.receive(&io(opcode::READ_10, 4, 2, 0), 1024);
        assert_eq!(both.good()[..512], [0x80; 512]);
        assert!(both.good()[512..].iter().zip(&block).all(|(or, was)| *or == was | 0x80));
        let status = session.receive(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 56, 0, 0], 56);
        assert!(!provisioning::parse_lba_status_data(status.good()).unwrap().is_empty());
        session.send(&io(opcode::SYNCHRONIZE_CACHE_16, 0, 0, 0), &[]).good();
        session.send(&io(opcode::PRE_FETCH_10, 0, 0, 0), &[]).good();
        assert_eq!(session.executor.buffered(), 0);
    }
}

#[test]
fn every_page_that_is_listed_is_there_and_parses() {
    for map in maps() {
        let mut session = Session::new(&map, 1);
        let standard = session.receive(&[0x12, 0, 0, 1, 0, 0], 256);
        let standard = inquiry::StandardInquiry::parse(standard.good()).unwrap();
        assert_eq!((standard.peripheral, standard.version), (inquiry::Peripheral::DISK, 6));
        let pages = session.receive(&[0x12, 1, 0, 1, 0, 0], 256);
        let VpdPage::SupportedPages(pages) = VpdPage::parse(pages.good()).unwrap() else { panic!() };
        assert_eq!(pages, [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2]);
        for page in pages {
            let data = session.receive(&[0x12, 1, page, 1, 0, 0], 256);
            let parsed = VpdPage::parse_expected(data.good(), page).unwrap();
            assert_eq!(parsed.to_bytes(inquiry::Peripheral::DISK), data.good());
            let cut = session.receive(&[0x12, 1, page, 0, 7, 0], 256);
            assert_eq!(
                (cut.good(), cut.residual),
                (&data.good()[..data.good().len().min(7)], Residual::Underflow(256 - data.good().len().min(7) as u32))
            );
        }
        session.receive(&[0x12, 1, 0xee, 1, 0, 0], 256).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session.receive(&[0x12, 0, 0x80, 1, 0, 0], 256).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        let ten = session.receive(&[0x25], 8);
        assert_eq!(capacity::ReadCapacity10::parse(ten.good()).unwrap().last_lba, BLOCKS as u32 - 1);
        let sixteen = session.receive(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32);
        assert!(capacity::ReadCapacity16::parse(sixteen.good()).unwrap().thin);
        let luns = session.receive(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64);
        assert_eq!(parse_luns(luns.good()).unwrap().len(), 1);
        session.receive(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15], 64).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        for cdb in [[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64], [0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 64]] {
            assert!(session.receive(&cdb, 64).good().len() >= 16);
        }
    }
}

#[test]
fn mode_pages_come_in_every_form_and_change_where_they_may() {
    for map in maps() {
        let (mut session, mut other) = (Session::new(&map, 1), Session::new(&map, 2));
        for page in [0x01, 0x08, 0x0a, 0x1c, 0x3f] {
            for control in 0..3 {
                let data = session.receive(&[0x1a, 0, control << 6 | page, 0, 255, 0], 255);
                let six = ModeData::parse(data.good(), false).unwrap();
                assert_eq!(data.good()[0] as usize + 1, data.good().len());
                assert!(six.header.block.is_some());
                let data = session.receive(&[0x5a, 0x18, control << 6 | page, 0, 0, 0, 0, 1, 0, 0], 256);
                let ten = ModeData::parse(data.good(), true).unwrap();
                assert_eq!((ten.pages, ten.header.block), (six.pages, None));
            }
            session
                .receive(&[0x1a, 0, 0xc0 | page, 0, 255, 0], 255)
                .illegal(AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED);
        }
        let all = session.receive(&[0x5a, 0, 0x3f, 0xff, 0, 0, 0, 1, 0, 0], 256);
        assert_eq!(ModeData::parse(all.good(), true).unwrap().pages.len(), 5);
        session.receive(&[0x1a, 0, 0x0a, 0x05, 255, 0], 255).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session.receive(&[0x1a, 0, 0x2a, 0, 255, 0], 255).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);

        let data = session.receive(&[0x1a, 0, 0x0a, 0, 255, 0], 255);
        let mut mode = ModeData::parse(data.good(), false).unwrap();
        let ModePage::Control(control) = &mut mode.pages[0] else { panic!() };
        control.software_write_protect = true;
        let list = mode.to_select_list(false);
        session.send(&[0x15, 0x11, 0, 0, list.len() as u8, 0], &list).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        session.send(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).good();
        let refused = session.send(&io(opcode::WRITE_10, 0, 1, 0), &[1; 512]);
        refused.check(SenseKey::DataProtect, AdditionalSense::WRITE_PROTECTED);
        session.receive(&io(opcode::READ_10, 0, 1, 0), 512).good();
        let sense = session.receive(&[0x1a, 0, 0x3f, 0, 255, 0], 255);
        assert!(ModeData::parse(sense.good(), false).unwrap().header.write_protected);
        other.send(&[0; 6], &[]).check(SenseKey::UnitAttention, AdditionalSense::MODE_PARAMETERS_CHANGED);
        other.send(&[0; 6], &[]).good();

        let ModePage::Control(control) = &mut mode.pages[0] else { panic!() };
        (control.software_write_protect, control.descriptor_sense) = (false, true);
        let list = mode.to_select_list(true);
        session.send(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list).good();
        let (_, status) = session.start(0, &io(opcode::READ_16, 1 << 40, 1, 0), &[], 512, TaskAttribute::Simple);
        assert_eq!(status.unwrap().sense.unwrap().information, Some(1 << 40));
        let ModePage::Control(control) = &mut mode.pages[0] else { panic!() };
        control.task_aborted_status = true;
        let list = mode.to_select_list(true);
        let sense = session.send(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list);
        sense.illegal(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        map.get(0).unwrap().unit.reset(UnitAttention::LogicalUnitReset);
        session.send(&[0; 6], &[]).check(SenseKey::UnitAttention, AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
        assert_eq!(map.get(0).unwrap().unit.mode(), 0);
    }
}

#[test]
fn the_table_reports_itself() {
    let map = &maps()[1];
    let mut session = Session::new(map, 1);
    assert!(COMMANDS.is_sorted_by_key(|command| (command.opcode, command.action)));
    let ask = |options: u8, code: u8, action: u8| [0xa3, 0x0c, options, code, 0, action, 0, 0, 0xff, 0xff];
    let all = session.receive(&ask(0x80, 0, 0), 65535);
    let all = parse_all_commands(all.good()).unwrap();
    assert_eq!(all.len(), COMMANDS.len());
    for command in all {
        assert!(command.timeouts.is_some());
        let (right, wrong, action) = match command.service_action {
            Some(action) => (2, 1, action as u8),
            None => (1, 2, 0),
        };
        let one = session.receive(&ask(right, command.opcode, action), 65535);
        let one = OneCommand::parse(one.good()).unwrap();
        assert_eq!((one.support, one.usage[0]), (Support::Standard, command.opcode));
        assert_eq!(one.usage.len(), usize::from(command.cdb_length));
        assert_eq!(Cdb::new(&[&[command.opcode], &[0; 15][..]].concat()).unwrap().as_bytes().len(), one.usage.len());
        session.receive(&ask(wrong, command.opcode, action), 65535).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        let either = session.receive(&ask(3, command.opcode, action), 65535);
        assert_eq!(OneCommand::parse(either.good()).unwrap(), one);
    }
    let unknown = session.receive(&ask(1, 0xc1, 0), 65535);
    assert_eq!(OneCommand::parse(unknown.good()).unwrap().support, Support::No);
}

#[test]
fn luns_that_are_not_there_and_maps_that_change() {
    let map = maps()[0].clone();
    let mut session = Session::with_attention(&map, 1);
    let inquiry = session.on_lun(5, &[0x12, 0, 0, 0, 255, 0], &[], 255, TaskAttribute::Simple);
    assert_eq!(inquiry.good()[0], 0x7f);
    session.on_lun(5, &[0; 6], &[], 0, TaskAttribute::Simple).illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
    let luns = session.on_lun(5, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], &[], 64, TaskAttribute::Simple);
    assert_eq!(parse_luns(luns.good()).unwrap().len(), 1);
    // INQUIRY leaves the unit attention, REQUEST SENSE takes it.
    session.receive(&[0x12, 0, 0, 0, 255, 0], 255).good();
    let sense = session.receive(&[0x03, 0, 0, 0, 252, 0], 252);
    assert_eq!(Sense::parse(sense.good()).unwrap().key, SenseKey::UnitAttention);
    session.send(&[0; 6], &[]).good();
    map.insert(1, unit(Arc::new(disk(false))), true);
    session.send(&[0; 6], &[]).check(SenseKey::UnitAttention, AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED);
    session
        .on_lun(1, &[0; 6], &[], 0, TaskAttribute::Simple)
        .check(SenseKey::UnitAttention, AdditionalSense::POWER_ON_OCCURRED);
    let write = session.on_lun(1, &io(opcode::WRITE_10, 0, 1, 0), &[0; 512], 0, TaskAttribute::Simple);
    write.check(SenseKey::DataProtect, AdditionalSense::WRITE_PROTECTED);
    map.remove(1);
    session.receive(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64).good();
    session.send(&[0; 6], &[]).good();
    session.on_lun(1, &[0; 6], &[], 0, TaskAttribute::Simple).illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
}

#[test]
fn a_grown_store_and_a_stopped_unit() {
    let store = Arc::new(disk(false));
    let stops = UnitAttributes { stop_unit: true, ..UnitAttributes::default() };
    let stopping = LogicalUnit::new(store.clone(), Identity::from_seed("test")).unwrap().with_attributes(stops);
    let map = Arc::new(LunMap::builder().insert(0, Arc::new(stopping), false).build());
    let mut session = Session::new(&map, 1);
    store.bytes.lock().unwrap().resize(2 * BLOCKS as usize * 512, 0);
    session.receive(&io(opcode::READ_10, BLOCKS, 1, 0), 512).good();
    session.send(&[0; 6], &[]).check(SenseKey::UnitAttention, AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
    session.send(&[0x1b, 0, 0, 0, 0, 0], &[]).good();
    session.send(&[0; 6], &[]).check(SenseKey::NotReady, AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED);
    session.send(&[0x1b, 0, 0, 0, 1, 0], &[]).good();
    session.send(&[0x1b, 0, 0, 0, 3, 0], &[]).illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
    session.send(&[0x1e, 0, 0, 0, 1, 0], &[]).good();
    store.fail.store(true, Ordering::Relaxed);
    let failed = session.receive(&io(opcode::READ_10, 4, 1, 0), 512);
    assert_eq!(failed.check(SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR).information, Some(4));
}

#[test]
fn a_stop_of_one_initiator_stops_nobody() {
    let stops = UnitAttributes { stop_unit: true, ..UnitAttributes::default() };
    for (attributes, read_only) in
        [(UnitAttributes::default(), false), (UnitAttributes::default(), true), (stops, true)]
    {
        let unit = LogicalUnit::new(Arc::new(disk(true)), Identity::from_seed("test")).unwrap();
        let unit = Arc::new(unit.with_attributes(attributes));
        let asker = Arc::new(LunMap::builder().insert(0, unit.clone(), read_only).build());
        let others = Arc::new(LunMap::builder().insert(0, unit, false).build());
        let (mut asker, mut other) = (Session::new(&asker, 1), Session::new(&others, 2));
        asker.send(&[0x1b, 0, 0, 0, 0, 0], &[]).good();
        for session in [&mut asker, &mut other, &mut Session::new(&others, 3)] {
            session.receive(&io(opcode::READ_10, 0, 1, 0), 512).good();
        }
    }
}

#[test]
fn mode_select_changes_nothing_from_where_nothing_is_written() {
    let closed = UnitAttributes { mode_select: false, ..UnitAttributes::default() };
    for (attributes, read_only) in [(UnitAttributes::default(), true), (closed, false)] {
        let unit = LogicalUnit::new(Arc::new(disk(false)), Identity::from_seed("test")).unwrap();
        let unit = Arc::new(unit.with_attributes(attributes));
        let asker = Arc::new(LunMap::builder().insert(0, unit.clone(), read_only).build());
        let others = Arc::new(LunMap::builder().insert(0, unit, false).build());
        let (mut asker, mut other) = (Session::new(&asker, 1), Session::new(&others, 2));
        let data = asker.receive(&[0x1a, 0, 0x0a, 0, 255, 0], 255);
        let mut mode = ModeData::parse(data.good(), false).unwrap();
        let mut select = |swp, descriptor| {
            let ModePage::Control(control) = &mut mode.pages[0] else { panic!() };
            (control.software_write_protect, control.descriptor_sense) = (swp, descriptor);
            let list = mode.to_select_list(false);
            asker.send(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list)
        };
        select(true, false).illegal(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        select(false, true).illegal(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        select(false, false).good();
        let changeable = asker.receive(&[0x1a, 0, 0x4a, 0, 255, 0], 255);
        let ModePage::Control(control) = ModeData::parse(changeable.good(), false).unwrap().pages[0] else { panic!() };
        assert!(!control.software_write_protect && !control.descriptor_sense);
        other.send(&io(opcode::WRITE_10, 0, 1, 0), &[1; 512]).good();
    }
}

#[test]
fn an_unmap_granularity_that_qemu_maps_by_is_told_only_if_asked_for() {
    let told = |store: u32, attribute| {
        let disk = Disk { abilities: Abilities { unmap_granularity: store, ..disk(false).abilities }, ..disk(false) };
        let attributes = UnitAttributes { unmap_granularity: attribute, ..UnitAttributes::default() };
        let unit = LogicalUnit::new(Arc::new(disk), Identity::from_seed("test")).unwrap().with_attributes(attributes);
        let map = Arc::new(LunMap::builder().insert(0, Arc::new(unit), false).build());
        let page = Session::new(&map, 1).receive(&[0x12, 1, 0xb0, 1, 0, 0], 256);
        let VpdPage::BlockLimits(limits) = VpdPage::parse(page.good()).unwrap() else { panic!() };
        (limits.unmap_granularity, limits.unmap_alignment.is_some())
    };
    assert_eq!(told(8, None), (0, false));
    assert_eq!(told(2048, None), (0, false));
    assert_eq!(told(7, None), (7, true));
    assert_eq!(told(8, Some(8)), (8, true));
    assert_eq!(told(1, Some(0)), (0, false));
}

#[test]
fn a_nexus_is_told_of_the_power_on_once_and_of_its_loss_when_it_comes_back() {
    let map = Arc::new(LunMap::builder().insert(0, unit(Arc::new(disk(false))), false).build());
    let first = |id, code| {
        let mut session = Session::with_attention(&map, id);
        session.send(&[0; 6], &[]).check(SenseKey::UnitAttention, code);
        session.send(&[0; 6], &[]).good();
    };
    first(1, AdditionalSense::POWER_ON_OCCURRED);
    first(1, AdditionalSense::I_T_NEXUS_LOSS_OCCURRED);
    first(2, AdditionalSense::POWER_ON_OCCURRED);
    // The same unit under another number is another place to hear it.
    let unit = map.get(0).unwrap().unit;
    map.insert(7, unit.clone(), false);
    let mut session = Session::with_attention(&map, 1);
    let seventh = session.on_lun(7, &[0; 6], &[], 0, TaskAttribute::Simple);
    seventh.check(SenseKey::UnitAttention, AdditionalSense::POWER_ON_OCCURRED);
    first(1, AdditionalSense::I_T_NEXUS_LOSS_OCCURRED);
    let peculiar = Nexus {
        initiator_name: "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls".into(),
        ..Session::with_attention(&map, 5).executor.nexus.clone()
    };
    session.executor =
        TaskExecutor::new(ExecutorConfig { slots: 16, ..ExecutorConfig::default() }, map.clone(), peculiar);
    let told = session.send(&[0; 6], &[]);
    told.check(SenseKey::UnitAttention, AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED);
    unit.reset(UnitAttention::LogicalUnitReset);
    first(2, AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
    first(3, AdditionalSense::POWER_ON_OCCURRED);
}

#[test]
fn ports_and_their_groups_are_told_as_configured() {
    let mut session = Session::new(&maps()[1], 1);
    let page = session.receive(&[0x12, 1, 0x83, 1, 0, 0], 256);
    let VpdPage::DeviceIdentification(designators) = VpdPage::parse(page.good()).unwrap() else { panic!() };
    let is = |id: DesignatorId| designators.iter().any(|designator| designator.id == id);
    assert!(is(DesignatorId::RelativeTargetPort(7)) && is(DesignatorId::TargetPortGroup(3)));
    let groups = session.receive(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64], 64);
    let groups = parse_target_port_groups(groups.good(), false).unwrap();
    let told: Vec<_> = groups.iter().map(|group| (group.group, group.ports.clone())).collect();
    assert_eq!(told, [(9, vec![4, 8]), (3, vec![7])]);
}

#[test]
fn task_management_functions_are_told_by_the_level_of_the_session() {
    let map = &maps()[1];
    for (level, bytes) in [(1, [0xd8, 0]), (2, [0xdc, 3])] {
        let mut session = Session::at_level(map, 1, level);
        session.send(&[0; 6], &[]);
        let told = session.receive(&[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4], 4);
        assert_eq!(told.good()[..2], bytes);
    }
}

#[test]
fn attributes_keep_their_order() {
    let store = Arc::new(disk(true));
    let map = Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
    let mut session = Session::new(&map, 1);
    store.stuck.store(true, Ordering::Relaxed);
    let mut started = vec![];
    for (index, attribute) in
        [TaskAttribute::Simple, TaskAttribute::Ordered, TaskAttribute::Simple, TaskAttribute::HeadOfQueue]
            .into_iter()
            .enumerate()
    {
        let (task, done) = session.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[index as u8; 512], 0, attribute);
        assert!(done.is_none());
        started.push(task);
    }
    let (last, done) = session.start(0, &io(opcode::READ_10, 0, 1, 0), &[], 512, TaskAttribute::Simple);
    assert!(done.is_none() && session.finished().is_empty());
    store.stuck.store(false, Ordering::Relaxed);
    let mut order = vec![];
    while order.len() < 5 {
        order.extend(session.finished());
    }
    let tasks = order.iter().map(|(task, _)| *task).collect::<Vec<_>>();
    let at = |task| tasks.iter().position(|other| *other == task).unwrap();
    assert!(at(started[0]) < at(started[1]) && at(started[3]) < at(started[1]), "{tasks:?}");
    assert!(at(started[1]) < at(started[2]) && at(started[1]) < at(last), "{tasks:?}");
    assert_eq!(session.executor.buffered(), 0);
}

#[test]
fn aborted_tasks_end_unseen_and_give_everything_back() {
    let store = Arc::new(disk(true));
    let map = Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
    let mut session = Session::new(&map, 1);
    store.stuck.store(true, Ordering::Relaxed);
    let data = [[0; 512], [5; 512]].concat();
    let (one, _) = session.start(0, &io(opcode::COMPARE_AND_WRITE, 0, 1, 0), &data, 0, TaskAttribute::Simple);
    let (two, _) = session.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[1; 512], 0, TaskAttribute::Simple);
    let (three, _) = session.start(0, &io(opcode::READ_10, 0, 1, 0), &[], 512, TaskAttribute::Ordered);
    assert!(session.finished().is_empty());
    for task in [one, two, three] {
        session.executor.abort(task);
    }
    assert_eq!((session.executor.busy(Some(0)), session.executor.busy(None)), (1, 1));
    assert_eq!(session.executor.busy(Some(7 << 48)), 0);
    store.stuck.store(false, Ordering::Relaxed);
    for _ in 0..4 {
        assert!(session.finished().is_empty());
    }
    assert_eq!((session.executor.busy(None), session.executor.buffered()), (0, 0));
    session.send(&io(opcode::COMPARE_AND_WRITE, 0, 1, 0), &data).good();
}

#[test]
fn the_order_of_tasks_waits_for_what_aborted_ones_left_at_the_store() {
    for (aborted, later) in [
        (TaskAttribute::Simple, TaskAttribute::Ordered),
        (TaskAttribute::Ordered, TaskAttribute::Simple),
        (TaskAttribute::HeadOfQueue, TaskAttribute::Simple),
    ] {
        let store = Arc::new(disk(true));
        let map = Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
        let mut session = Session::new(&map, 1);
        store.stuck.store(true, Ordering::Relaxed);
        let (one, _) = session.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[1; 512], 0, aborted);
        assert!(session.finished().is_empty());
        session.executor.abort(one);
        let (two, done) = session.start(0, &io(opcode::READ_10, 0, 1, 0), &[], 512, later);
        assert!(done.is_none() && session.finished().is_empty());
        // A read takes nothing of the write gate: it is the order alone that keeps it from the store.
        assert!(matches!(session.executor.slots[usize::from(two.slot)].state, State::Blocked(_)), "{aborted:?}");
        store.stuck.store(false, Ordering::Relaxed);
        let mut finished = vec![];
        while finished.is_empty() {
            finished = session.finished();
        }
        assert_eq!(finished[0].0, two);
        assert_eq!(finished[0].1.good(), [1; 512]);
        assert_eq!(session.receive(&io(opcode::READ_10, 0, 1, 0), 512).good(), [1; 512]);
    }
}

#[test]
fn buffers_are_bounded() {
    let store = Arc::new(disk(true));
    let map = Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
    let mut session = Session::new(&map, 1);
    store.stuck.store(true, Ordering::Relaxed);
    for _ in 0..12 {
        let (_, done) = session.start(0, &io(opcode::READ_10, 0, 1000, 0), &[], 512_000, TaskAttribute::Simple);
        assert!(done.is_none());
        assert!(session.executor.buffered() <= 4 << 20);
    }
    assert_eq!((session.executor.short, session.executor.in_flight), (4, 8));
    // A command that needs its buffer as a whole comes again.
    let (_, done) = session.start(0, &io(opcode::WRITE_10, 0, 1, 0), &[1; 512], 0, TaskAttribute::Simple);
    assert_eq!(done.unwrap().status, Status::TaskSetFull.to_byte());
    store.stuck.store(false, Ordering::Relaxed);
    let mut ended = 0;
    for _ in 0..10_000 {
        for (_, done) in session.finished() {
            assert_eq!(done.good().len(), 512_000);
            ended += 1;
        }
        assert!(session.executor.buffered() <= 4 << 20);
    }
    assert_eq!((ended, session.executor.buffered()), (12, 0));
}

#[test]
fn broken_transfers_have_their_sense_data() {
    let map = &maps()[1];
    let mut session = Session::new(map, 1);
    for (error, code) in [
        (DataError::UnexpectedUnsolicitedData, AdditionalSense::UNEXPECTED_UNSOLICITED_DATA),
        (DataError::IncorrectAmountOfData, AdditionalSense::INCORRECT_AMOUNT_OF_DATA),
        (DataError::DigestError, AdditionalSense::PROTOCOL_SERVICE_CRC_ERROR),
        (DataError::OutOfSequence, AdditionalSense::PROTOCOL_SERVICE_CRC_ERROR),
    ] {
        let mut field = [0; 16];
        field[..10].copy_from_slice(BlockIo::new(0, 1).write().as_bytes());
        let task = TaskHandle { slot: 1, generation: 77 };
        let step = asked(session.executor.start(NewTask {
            task,
            lun: 0,
            itt: 1,
            cdb: &field,
            attribute: TaskAttribute::Untagged,
            read: false,
            write: true,
            immediate: false,
            unsolicited: false,
            expected_data_transfer_length: 512,
            bidirectional_read_length: None,
            direct_placement: true,
        }));
        let Asked::Data(sink) = step else { panic!("no data wanted") };
        let Asked::Done(done, ..) = asked(session.executor.data_failed(task, sink, error)) else { panic!() };
        done.check(SenseKey::AbortedCommand, code);
        assert_eq!(session.executor.buffered(), 0);
    }
}

fn known_opcode() -> impl Strategy<Value = u8> {
    prop_oneof![4 => (0..COMMANDS.len()).prop_map(|at| COMMANDS[at].opcode), 1 => any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_cdb_with_any_data_is_answered_once(
        commands in prop::collection::vec(
            (known_opcode(), any::<[u8; 16]>(), any::<u16>(), 0u8..5, any::<[bool; 3]>()),
            1..12,
        ),
        which in 0usize..3,
    ) {
        let map = &maps()[which];
        let mut session = Session::with_attention(map, 1);
        let mut open = vec![];
        for (code, mut cdb, len, attribute, [write, mask, abort]) in commands {
            cdb[0] = code;
            if mask {
                // Small numbers reach further than random ones.
                cdb.iter_mut().skip(1).for_each(|byte| *byte &= 0x12);
                cdb[2..6].fill(0);
                cdb[10..12].fill(0);
            }
            let out = if write { vec![cdb[7]; usize::from(len)] } else { vec![] };
            let attribute = [
                TaskAttribute::Untagged,
                TaskAttribute::Simple,
                TaskAttribute::Ordered,
                TaskAttribute::HeadOfQueue,
                TaskAttribute::Aca,
            ][usize::from(attribute)];
            let (task, done) = session.start(0, &cdb, &out, len.into(), attribute);
            match done {
                Some(_) => {}
                None if abort => session.executor.abort(task),
                None => {
                    session.data.push_back((task, out));
                    open.push(task);
                }
            }
        }
        for _ in 0..10_000 {
            for (task, _) in session.finished() {
                let before = open.len();
                open.retain(|other| *other != task);
                prop_assert_eq!(open.len() + 1, before, "answered twice, or never asked");
            }
            if open.is_empty() && session.executor.busy(None) == 0 {
                break;
            }
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!(session.executor.busy(None), 0);
        prop_assert_eq!(session.executor.buffered(), 0);
        prop_assert!(map.get(0).unwrap().unit.gate().is_idle(), "blocks are still held");
    }
}

#[test]
fn a_long_command_gives_way_after_a_turn_and_deallocates_in_pieces() {
    let region = Region::heap(32 << 20);
    let store = Arc::new(Memory(region.clone()));
    let map = Arc::new(LunMap::builder().insert(0, unit(store), false).build());
    let mut session = Session::new(&map, 1);
    let blocks = region.len() / 512;
    for (code, out, turns) in [
        // One MiB a turn where bytes move, twice four where pages go back.
        (opcode::WRITE_SAME_16, pattern(1, 3), 32),
        (opcode::WRITE_SAME_16, vec![0; 512], 4),
        (opcode::VERIFY_16, vec![], 32),
    ] {
        let (task, done) = session.start(0, &io(code, 0, blocks as u32, 0), &out, 0, TaskAttribute::Simple);
        assert!(done.is_none());
        let mut taken = 0;
        let done = loop {
            let finished = session.finished();
            taken += 1;
            if let Some((_, done)) = finished.into_iter().find(|(other, _)| *other == task) {
                break done;
            }
            assert!(session.executor.has_more_work(), "whoever gives way asks for another turn");
            assert!(taken < 100);
        };
        done.good();
        assert!((turns..=turns + 1).contains(&taken), "{code:02x}: {taken} turns");
        assert!(!session.executor.has_more_work());
    }
    assert_eq!(region.allocated(), 0, "zeros written to memory give it back");
}

#[test]
fn data_of_a_long_command_are_moved_a_mebibyte_a_turn() {
    const LONG: usize = 13 << 19;
    let of_memory = Arc::new(Memory(Region::heap(8 << 20)));
    let of_disk = Arc::new(Disk { bytes: Mutex::new(vec![0; 8 << 20]), ..disk(false) });
    for store in [of_memory as Arc<dyn Backstore>, of_disk.clone()] {
        let lends = store.memory().is_some();
        let map = Arc::new(LunMap::builder().insert(0, unit(store), false).build());
        let mut session = Session::new(&map, 1);
        // The data of writes wait in buffers, as behind an atomic command.
        session.direct = false;
        let mut turns = |code, out: &[u8], read, flags| {
            let (task, done) =
                session.start(0, &io(code, 3, LONG as u32 / 512, flags), out, read, TaskAttribute::Simple);
            if let Some(done) = done {
                return (0, done);
            }
            for turn in 1..100 {
                if let Some((_, done)) = session.finished().into_iter().find(|(other, _)| *other == task) {
                    assert!(!session.executor.has_more_work());
                    return (turn, done);
                }
                assert!(session.executor.has_more_work(), "whoever gives way asks for another turn");
            }
            panic!("{code:02x} never ended");
        };
        let (plain, forced) = (pattern(LONG / 512, 9), pattern(LONG / 512, 5));
        for (out, code, flags, least) in [
            (&plain, opcode::WRITE_16, 0, 7),
            // With FUA, where there is a cache.
            (&forced, opcode::WRITE_16, if lends { 0 } else { 8 }, 7),
            (&plain, opcode::WRITE_AND_VERIFY_16, 2, 13),
        ] {
            let (taken, done) = turns(code, out, 0, flags);
            done.good();
            assert!((least..least + 3).contains(&taken), "{code:02x}: {taken} turns");
            let (taken, done) = turns(opcode::READ_16, &[], LONG as u32, 0);
            assert!(done.good() == *out, "{code:02x}");
            // Lent memory is not read at all.
            assert!(if lends { taken == 0 } else { (7..9).contains(&taken) }, "{taken} turns");
        }
        assert_eq!(session.executor.buffered(), 0);
    }
    assert_eq!(of_disk.longest.load(Ordering::Relaxed), 1 << 20);
    // An error in the middle ends it.
    let map = Arc::new(LunMap::builder().insert(0, unit(of_disk.clone()), false).build());
    let mut session = Session::new(&map, 1);
    let (task, _) = session.start(0, &io(opcode::READ_16, 0, 8192, 0), &[], 4 << 20, TaskAttribute::Simple);
    assert!(session.finished().is_empty());
    of_disk.fail.store(true, Ordering::Relaxed);
    let done = (0..9).find_map(|_| session.finished().pop()).unwrap();
    assert_eq!(done.0, task);
    assert_eq!(done.1.check(SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR).information, Some(2048));
    assert_eq!(session.executor.buffered(), 0);
}
