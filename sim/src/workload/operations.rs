//! The operations of a workload: commands, their data, and what the model is told of them.

use initiator_core::command::Command;
use iscsi_memory::{Buf, Payload, Region};

use iscsi_proto::pdu::TaskAttribute;
use scsi_proto::command::{GetLbaStatus, Inquiry, Unmap};
use scsi_proto::provisioning::{Extent, unmap_list};
use scsi_proto::{BlockIo, CdbBuf, Lun, command, opcode};

use super::{Kind, Operation, Submitted, Workload};
use crate::model::{Value, command_of, fill_block, first_value};

impl Workload {
    /// What the next command writes into its first block.
    fn first_value(&self) -> Value {
        first_value(self.number, self.next_token + 1)
    }

    fn buffer_out(&mut self, data: &[u8]) -> Payload {
        if self.rng.permille(200) {
            let region = Region::heap(data.len() + 512);
            // A heap region takes every page.
            let _ = region.reserve_for_write(0, region.len());
            region.write(512, data);
            return Payload::Region(region.slice(512, data.len()));
        }
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(data);
        Payload::Buf(buf)
    }

    fn buffer_in(&mut self, len: usize) -> Payload {
        // Data that a digest may still refuse are not to be placed in lent memory.
        if !self.digests && self.rng.permille(200) {
            let region = Region::heap(len);
            let _ = region.reserve_for_write(0, region.len());
            return Payload::Region(region.slice(0, len));
        }
        Payload::Buf(Buf::zeroed(len))
    }

    fn command(&mut self, cdb: CdbBuf, operation: Operation, out: Option<&[u8]>) -> Command {
        self.next_token += 1;
        let mut command = Command::new(self.next_token, self.any_lun(), cdb);
        command.data_out = out.map(|data| self.buffer_out(data));
        command.data_in = operation.into.map(|(len, _)| self.buffer_in(len));
        command.attribute = match self.rng.below(20) {
            0 if !self.plan.simple => TaskAttribute::Ordered,
            1 if !self.plan.simple => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        };
        if command.attribute == TaskAttribute::Ordered && self.plan.undisturbed && self.completed > 0 {
            self.hide_from_reads(&operation);
        }
        if command.attribute != TaskAttribute::Simple {
            let disk = self.disk();
            let id = command_of(first_value(self.number, self.next_token));
            disk.parts.iter().for_each(|part| part.announce(id, command.attribute));
        }
        self.submits(operation, command.lun);
        if command.attribute != TaskAttribute::Simple {
            self.trace.event(format_args!("{} makes it {:?}", self.name, command.attribute));
        }
        command
    }

    /// Reads that are under way come before an ORDERED write: none of them sees it.
    fn hide_from_reads(&self, ordered: &Operation) {
        let (Kind::Write(_) | Kind::Durable(_)) = ordered.kind else { return };
        let (lba, blocks) = ordered.range;
        let first = first_value(self.number, self.next_token);
        let disk = self.disk();
        for before in self.under_way.values().filter(|before| before.disk == self.chosen) {
            if let Kind::Read(read) = before.operation.kind {
                disk.model.borrow_mut().not_seen_by(read, lba, &(first..first + blocks));
            }
        }
    }

    /// One of the LUNs of the disk.
    pub(super) fn any_lun(&mut self) -> Lun {
        let disk = self.disk();
        match disk.second_lun.filter(|_| self.rng.permille(500)) {
            Some(second) => Lun::new(second).expect("a LUN that exists"),
            None => disk.lun,
        }
    }

    fn submits(&mut self, operation: Operation, lun: Lun) {
        let Operation { name, range: (lba, blocks), .. } = operation;
        self.trace.event(format_args!("{} submits {} {name} {lba}+{blocks}", self.name, self.next_token));
        let (lun, dropped) = (lun.number().unwrap_or_default(), self.disk().has_dropped().0);
        let (disk, at, login) = (self.chosen, self.trace.now(), self.logins);
        let submitted = Submitted { operation, disk, lun, at, login, dropped };
        self.under_way.insert(self.next_token, submitted);
    }

    fn range(&mut self) -> (u64, u64) {
        let len = self.disk().model.borrow().len();
        let blocks = self.rng.magnitude(1, self.plan.most_blocks.min(len));
        // Half of the operations meet in the first blocks.
        let space = if self.rng.permille(500) { (blocks * 2).min(len) } else { len };
        (self.rng.below(space - blocks + 1), blocks)
    }

    /// A CDB for the range, and whether it has FUA.
    fn block_cdb(&mut self, lba: u64, blocks: u64, codes: &[u8]) -> (CdbBuf, bool) {
        let mut io = BlockIo::new(lba, blocks as u32);
        let fua = self.rng.permille(100);
        if fua {
            io = io.with_fua();
        }
        let code = self.rng.pick(codes);
        let made = if code == opcode::READ_6 || code == opcode::WRITE_6 {
            BlockIo::new(lba, blocks as u32).to_cdb(code)
        } else {
            io.to_cdb(code)
        };
        // The CDBs of six bytes have no room for FUA.
        let fua = fua && (made.is_none() || !matches!(code, opcode::READ_6 | opcode::WRITE_6));
        (made.or_else(|| io.to_cdb(codes[0])).expect("a 16-byte CDB has room for any range"), fua)
    }

    pub(super) fn read(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.disk().model.borrow().block_size();
        let bytes = blocks as usize * block_size;
        let more = if self.rng.permille(30) { self.rng.between(1, 2000) as usize } else { 0 };
        let read = self.disk().model.borrow_mut().begin_read(lba, blocks);
        let (cdb, _) =
            self.block_cdb(lba, blocks, &[opcode::READ_16, opcode::READ_10, opcode::READ_12, opcode::READ_6]);
        let operation = Operation {
            kind: Kind::Read(read),
            out: None,
            into: Some((bytes + more, bytes)),
            name: "read",
            range: (lba, blocks),
        };
        self.command(cdb, operation, None)
    }

    fn write(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.disk().model.borrow().block_size();
        let mut data = vec![0; blocks as usize * block_size];
        let first = self.first_value();
        for (value, block) in (first..).zip(data.chunks_mut(block_size)) {
            fill_block(value, block);
        }
        let write = self.disk().model.borrow_mut().begin_write(lba, blocks, |at| first + at);
        let (cdb, durable) =
            self.block_cdb(lba, blocks, &[opcode::WRITE_16, opcode::WRITE_10, opcode::WRITE_12, opcode::WRITE_6]);
        let operation = Operation {
            kind: if durable { Kind::Durable(write) } else { Kind::Write(write) },
            out: Some(data.len()),
            into: None,
            name: "write",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&data))
    }

    fn write_same(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.disk().model.borrow().block_size();
        let mut data = vec![0; block_size];
        let zero = self.plan.unmap && self.rng.permille(300);
        let value = if zero { 0 } else { self.first_value() };
        fill_block(value, &mut data);
        let write = self.disk().model.borrow_mut().begin_write(lba, blocks, |_| value);
        let mut io = BlockIo::new(lba, blocks as u32);
        if zero && self.rng.permille(500) {
            // UNMAP, which for zeroes on a device with LBPRZ is the same.
            io = io.with_flags(0x08);
        }
        let cdb = io.to_cdb(opcode::WRITE_SAME_16).expect("a 16-byte CDB has room for any range");
        let operation = Operation {
            kind: Kind::Write(write),
            out: Some(data.len()),
            into: None,
            name: "write same",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&data))
    }

    fn unmap(&mut self, lba: u64, blocks: u64) -> Command {
        let write = self.disk().model.borrow_mut().begin_write(lba, blocks, |_| 0);
        let half = (blocks / 2) as u32;
        let extents =
            [Extent { lba, blocks: half }, Extent { lba: lba + u64::from(half), blocks: blocks as u32 - half }];
        let list = unmap_list(&extents);
        let cdb = Unmap { anchor: false, parameter_list_length: list.len() as u16 }.to_cdb();
        let operation = Operation {
            kind: Kind::Write(write),
            out: Some(list.len()),
            into: None,
            name: "unmap",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&list))
    }

    fn compare_and_write(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.disk().model.borrow().block_size();
        let disk = self.disk();
        let model = &mut *disk.model.borrow_mut();
        let first = self.first_value();
        let mut expected: Vec<Value> = (lba..lba + blocks).map(|lba| model.likely(lba)).collect();
        if self.plan.wrong > 0
            && self.rng.permille(self.plan.wrong)
            && let Some(last) = expected.last_mut()
        {
            *last = first + blocks;
        }
        let once = model.once(lba, &expected);
        let mut data = vec![0; 2 * blocks as usize * block_size];
        for (value, block) in expected.iter().copied().chain(first..).zip(data.chunks_mut(block_size)) {
            fill_block(value, block);
        }
        let read = model.begin_read(lba, blocks);
        let write = model.begin_write(lba, blocks, |at| first + at);
        let cdb = BlockIo::new(lba, blocks as u32).to_cdb(opcode::COMPARE_AND_WRITE).expect("few blocks");
        let kind = Kind::Compare { read, write, expected, once, first };
        let operation =
            Operation { kind, out: Some(data.len()), into: None, name: "compare and write", range: (lba, blocks) };
        self.next_token += 1;
        let mut command = Command::new(self.next_token, self.any_lun(), cdb);
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(&data);
        command.data_out = Some(Payload::Buf(buf));
        self.submits(operation, command.lun);
        command
    }

    fn other(&mut self) -> Command {
        let (lba, blocks) = self.range();
        let plain = |name| Operation { kind: Kind::Other, out: None, into: None, name, range: (0, 0) };
        match self.rng.below(8) {
            0 | 1 => {
                let flush = self.disk().model.borrow_mut().begin_flush();
                let operation = Operation { kind: Kind::Flush(flush), ..plain("flush") };
                self.command(BlockIo::new(0, 0).synchronize_cache(), operation, None)
            }
            2 if self.plan.unmap => self.unmap(lba, blocks),
            3 => self.write_same(lba, blocks),
            4 => self.compare_and_write(lba, blocks.min(8)),
            5 => {
                let cdb = Inquiry { page: self.rng.permille(500).then_some(0x83), allocation_length: 255 }.to_cdb();
                let operation =
                    Operation { kind: Kind::Other, out: None, into: Some((255, 0)), name: "inquiry", range: (0, 0) };
                self.command(cdb, operation, None)
            }
            6 => {
                let cdb = GetLbaStatus { lba, allocation_length: 64, report_type: 0 }.to_cdb();
                let operation = Operation {
                    kind: Kind::Other,
                    out: None,
                    into: Some((64, 0)),
                    name: "get lba status",
                    range: (lba, 0),
                };
                self.command(cdb, operation, None)
            }
            _ => self.command(command::test_unit_ready(), plain("test unit ready"), None),
        }
    }

    pub(super) fn any(&mut self) -> Command {
        // What is written after a write that was given up, to the same blocks, is what shows whether that one stays away.
        if let Some((disk, lba, blocks)) = self.follow.take() {
            self.chosen = disk;
            return self.write(lba, blocks);
        }
        self.choose();
        let (lba, blocks) = self.range();
        if self.plan.unmaps > 0 && self.rng.permille(self.plan.unmaps) {
            self.unmap(lba, blocks)
        } else if self.rng.permille(self.plan.others) {
            self.other()
        } else if self.rng.permille(self.plan.reads) {
            self.read(lba, blocks)
        } else {
            self.write(lba, blocks)
        }
    }
}
