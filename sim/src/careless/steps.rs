//! What a careless initiator does of its own: what it sends, owes, sends late and has ended.

use std::time::Duration;

use iscsi_proto::pdu::{R2t, RESERVED_TAG, TaskFunction, TaskManagementRequest};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::{Lun, opcode};

use super::{ANSWERED_IN, Asked, Careless, Late, Sent, What, Wish};
use crate::model::{Value, fill_block, first_value};

impl Careless {
    /// A disk, and one of its LUNs.
    fn place(&mut self) -> (usize, u64) {
        let at = self.rng.below(self.disks.len() as u64) as usize;
        let disk = self.disks[at].clone();
        let number = disk.second_lun.filter(|_| self.rng.permille(500)).unwrap_or(disk.number);
        (at, u64::from_be_bytes(Lun::new(number).expect("a LUN that exists").to_bytes()))
    }

    pub(super) fn step(&mut self, now: Instant) {
        if self.steps == 0 {
            self.say_good_bye();
            return;
        }
        self.steps -= 1;
        self.check_time(now);
        if let Some(disk) = self.resets.take() {
            let number = self.disks[disk].second_lun.unwrap_or(self.disks[disk].number);
            let lun = u64::from_be_bytes(Lun::new(number).expect("a LUN that exists").to_bytes());
            return self.ask_for(TaskFunction::LogicalUnitReset, disk, lun, RESERVED_TAG, now);
        }
        match self.rng.below(12) {
            0 | 1 => self.test(true, now),
            2 => self.test(false, now),
            3..=5 => self.write(now),
            6 => self.send_owed(),
            7 => self.send_late(),
            8 => self.ask(now),
            9 if self.gap.is_none() && self.peer.has_window() && self.rng.permille(200) => {
                self.event(format_args!("leaves {} out", self.peer.cmd_sn));
                self.gap = Some(self.peer.cmd_sn);
                self.peer.cmd_sn = self.peer.cmd_sn.wrapping_add(1);
                // What is behind it until the window is full, and then what closes it.
                let most = self.rng.pick(&[u64::MAX, u64::MAX, 3]);
                let mut behind = 0;
                while behind < most && self.peer.has_window() {
                    behind += 1;
                    self.test(false, now);
                }
                self.ask_for(TaskFunction::TargetWarmReset, 0, 0, RESERVED_TAG, now);
            }
            10 if self.rng.permille(300) => {
                let (disk, _) = self.place();
                self.wish = self.disks[disk].second_lun.map(|_| Wish::Remove(disk));
            }
            _ => {}
        }
    }

    /// What needs no store is answered at once, unless a number is missing before it.
    fn check_time(&self, now: Instant) {
        if self.gap.is_some() || !self.asked.is_empty() {
            return;
        }
        let late = |sent: &&Sent| matches!(sent.what, What::Test) && now - sent.at > ANSWERED_IN;
        if let Some(Sent { cmd_sn, at, .. }) = self.sent.values().find(late) {
            self.broken(&format!("TEST UNIT READY of CmdSN {cmd_sn}, sent at {at:?}, is not answered"));
        }
    }

    fn test(&mut self, immediate: bool, now: Instant) {
        let others = self.sent.values().any(|sent| sent.immediate);
        if immediate && others || !immediate && !self.peer.has_window() {
            return;
        }
        let (_, lun) = self.place();
        let cmd_sn = self.peer.cmd_sn;
        let itt = self.peer.command(lun, immediate, [0; 16], (0, 0));
        self.sent.insert(itt, Sent { what: What::Test, lun, immediate, cmd_sn, at: now, astray: false });
    }

    fn write(&mut self, now: Instant) {
        if !self.peer.has_window() || self.gap.is_some() {
            return;
        }
        let (at, lun) = self.place();
        let disk = self.disks[at].clone();
        let (size, len) = (disk.model.borrow().block_size() as u64, disk.model.borrow().len());
        let blocks = self.rng.between(1, 8.min(len));
        let lba = self.rng.below((len - blocks + 1).min(24));
        let first = first_value(self.number, u64::from(self.peer.next_itt()));
        let write = disk.model.borrow_mut().begin_write(lba, blocks, |block| first + block);
        let bytes = write_16(lba, blocks as u32);
        let cmd_sn = self.peer.cmd_sn;
        let itt = self.peer.command(lun, false, bytes, (0, (blocks * size) as u32));
        let what = What::Write { write, first, lba, blocks, disk: at, owed: Vec::new() };
        self.sent.insert(itt, Sent { what, lun, immediate: false, cmd_sn, at: now, astray: false });
    }

    /// The data that an R2T asks for.
    fn send(&mut self, r2t: &R2t, first: Value, disk: usize) {
        let size = self.disks[disk].model.borrow().block_size();
        let from = r2t.buffer_offset as usize;
        let to = from + r2t.desired_data_transfer_length as usize;
        let mut all = vec![0; to.div_ceil(size) * size];
        for (value, block) in (first..).zip(all.chunks_mut(size)) {
            fill_block(value, block);
        }
        self.peer.answer(r2t, &all[from..to]);
    }

    fn send_owed(&mut self) {
        let goes_astray = self.rng.permille(100);
        let next = self.sent.values_mut().find_map(|sent| match &mut sent.what {
            What::Write { owed, first, disk, .. } => owed.pop().map(|r2t| {
                sent.astray |= goes_astray;
                (r2t, *first, *disk)
            }),
            What::Test => None,
        });
        if let Some((mut r2t, first, disk)) = next {
            if goes_astray {
                self.event(format_args!("sends data of {first:#x} to another LUN"));
                // The number of a LUN below 256 ends in its second byte (SAM-5 4.7.7.4).
                r2t.lun ^= 1 << 48;
            }
            self.send(&r2t, first, disk);
        }
    }

    fn send_late(&mut self) {
        if let Some(Late { r2t, first, disk }) = self.late.pop() {
            self.event(format_args!("sends late data of {first:#x}"));
            self.send(&r2t, first, disk);
        }
    }

    fn ask(&mut self, now: Instant) {
        let function = self.rng.pick(&[
            TaskFunction::AbortTask,
            TaskFunction::AbortTaskSet,
            TaskFunction::AbortTaskSet,
            TaskFunction::LogicalUnitReset,
        ]);
        if function == TaskFunction::AbortTask {
            let write = self.sent.iter().find(|(_, sent)| matches!(sent.what, What::Write { .. }));
            if let Some((itt, lun)) = write.map(|(itt, sent)| (*itt, sent.lun)) {
                let disk = self.disk_of(lun).unwrap_or_default();
                self.ask_for(function, disk, lun, itt, now);
            }
            return;
        }
        let (disk, lun) = self.place();
        self.ask_for(function, disk, lun, RESERVED_TAG, now);
        if function == TaskFunction::AbortTaskSet && self.owes_to(lun) && self.rng.permille(500) {
            // The LUN goes while data are still owed to what came by it.
            self.wish = self.disks[disk].second_lun.map(|_| Wish::Remove(disk));
        }
    }

    /// Whether data are owed to a write by this LUN.
    fn owes_to(&self, lun: u64) -> bool {
        let owes = |sent: &Sent| matches!(&sent.what, What::Write { owed, .. } if !owed.is_empty());
        self.sent.values().any(|sent| sent.lun == lun && owes(sent))
    }

    fn ask_for(&mut self, function: TaskFunction, disk: usize, lun: u64, referenced: u32, now: Instant) {
        if self.asked.len() >= 4 {
            return;
        }
        let itt = self.peer.new_itt();
        let ref_cmd_sn = self.sent.get(&referenced).map_or(0, |sent| sent.cmd_sn);
        let request = TaskManagementRequest {
            immediate: true,
            function: Ok(function),
            lun,
            itt,
            referenced_task_tag: referenced,
            cmd_sn: Serial(self.peer.cmd_sn),
            exp_stat_sn: self.peer.exp_stat_sn(),
            ref_cmd_sn: Serial(ref_cmd_sn),
            ..TaskManagementRequest::default()
        };
        self.event(format_args!("asks for {function:?} of {lun:x}, {referenced}"));
        self.peer.send(request.emit(), &[]);
        self.asked.insert(itt, Asked { function, disk, referenced, at: now });
    }

    fn say_good_bye(&mut self) {
        if self.peer.log_out() {
            self.next_at = self.next_at + Duration::from_secs(600);
        }
    }
}

fn write_16(lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode::WRITE_16;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}
