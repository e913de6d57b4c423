//! How a task begins: from the command that came to an answer, to data that are asked for, or to a job.
use iscsi_memory::Payload;
use iscsi_proto::pdu::TaskAttribute;
use scsi_proto::{AdditionalSense, Cdb, Sense, SenseFormat, Status, opcode};

use super::NewTask;
use super::executor::{Data, Reply, Sending, TaskExecutor, Work};
use super::job::Job;
use super::slot::{CDB, State, Transfer, Waiting};
use crate::device_server::{self, Command, Outcome, Plan, Request, Then, absent, fault, flags};
use crate::lu::UnitAttention;
use backstore::StoreError;

impl TaskExecutor {
    #[inline]
    pub(super) fn accept(&mut self, new: &NewTask<'_>) -> Reply {
        let transfer = Transfer::of(new);
        self.luns.refresh(&self.map);
        let Some(position) = self.luns.find(new.lun) else { return self.accept_absent(new, transfer) };
        let Some(slot) = self.slot_of(new.task) else {
            return Reply::Respond {
                data: Data::None,
                offset: 0,
                status: Status::TaskSetFull,
                residuals: transfer.residuals(0, 0),
            };
        };
        if !slot.is_free() {
            let handle = slot.handle(new.task.slot.into());
            self.abort(handle);
        }
        let slot = &mut self.slots[usize::from(new.task.slot)];
        slot.generation = new.task.generation;
        slot.lun = position;
        slot.attribute = new.attribute;
        slot.transfer = transfer;
        slot.wanted_out = 0;
        slot.sent = 0;
        let may_wait = !new.immediate && !new.unsolicited;
        let work = Work { slot: new.task.slot.into(), lun: position, transfer, direct: new.direct_placement, may_wait };
        let barriers = self.luns.get(position).map_or(0, |lun| lun.barriers);
        if barriers != 0 || !matches!(new.attribute, TaskAttribute::Simple | TaskAttribute::Untagged) {
            return self.accept_in_order(work, new);
        }
        self.begin(work, new.cdb)
    }

    /// A command to a LUN without a logical unit.
    #[cold]
    pub(super) fn accept_absent(&mut self, new: &NewTask<'_>, transfer: Transfer) -> Reply {
        self.out.clear();
        let answer = match Cdb::new(new.cdb) {
            Ok(_) if transfer.has_no_direction() => Err(fault::no_direction()),
            Ok(cdb) => absent::run(cdb, &self.map, &mut self.out),
            Err(_) => Err(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)),
        };
        match answer {
            Ok(()) => {
                if new.cdb.first() == Some(&opcode::REPORT_LUNS) {
                    self.luns_reported();
                }
                self.parameters(transfer)
            }
            Err(sense) => {
                self.sense = sense.to_bytes(SenseFormat::Fixed);
                Reply::Respond {
                    data: Data::None,
                    offset: 0,
                    status: Status::CheckCondition,
                    residuals: transfer.residuals(0, 0),
                }
            }
        }
    }

    /// A task that waits for others, or that others wait for (SAM-5 8.6).
    pub(super) fn accept_in_order(&mut self, work: Work, new: &NewTask<'_>) -> Reply {
        if new.attribute == TaskAttribute::Aca {
            // Only while an auto contingent allegiance is there, and NACA is not supported (SAM-5 8.6.5).
            return self.check_condition(work, &Sense::aborted_command(AdditionalSense::INVALID_MESSAGE_ERROR));
        }
        let Some(waiting) = keep(new.cdb) else { return self.begin(work, new.cdb) };
        self.enter(work, State::Blocked(waiting));
        if new.attribute == TaskAttribute::Ordered && self.queued > self.sent {
            self.slots[work.slot].after = self.queued;
            self.awaited = self.awaited.max(self.queued);
        }
        let work = Work { direct: false, ..work };
        if !self.must_wait(work.slot) {
            return self.begin(work, new.cdb);
        }
        // Data that the initiator sends unasked cannot wait: they are fetched now, and the command waits with them.
        let takes_data =
            new.write && device_server::table::find(new.cdb).is_ok_and(|command| command.flags & flags::DATA_OUT != 0);
        if !takes_data {
            return Reply::Pending;
        }
        // Not what those before it wait for: they would wait for it, and it for them.
        if self.is_short() {
            return if work.may_wait { Reply::Pending } else { self.full(work, new.cdb, 0) };
        }
        self.begin(work, new.cdb)
    }

    /// Runs the command's function, and begins with what it plans.
    #[inline]
    pub(super) fn begin(&mut self, work: Work, cdb: &[u8]) -> Reply {
        let Some(lun) = self.luns.get_mut(work.lun) else { return self.good(work) };
        let found = device_server::find(cdb, &lun.unit);
        if !lun.attentions.is_clear(lun.unit.attentions()) {
            let told_anyway = matches!(found, Ok(command) if command.flags & flags::WITH_ATTENTION != 0);
            lun.attentions.catch_up(self.nexus.id, lun.unit.attentions());
            if !told_anyway && let Some(attention) = lun.attentions.take(lun.unit.attentions()) {
                self.attention = Some((work.lun, attention));
                return self.check_condition(work, &Sense::unit_attention(attention.code()));
            }
        }
        let command = match found {
            Ok(command) => command,
            Err(sense) => return self.check_condition(work, &sense),
        };
        if let Err(sense) = device_server::check_state(command, &lun.unit, lun.read_only) {
            return self.check_condition(work, &sense);
        }
        if work.transfer.has_no_direction() {
            return self.check_condition(work, &fault::no_direction());
        }
        self.out.clear();
        let Ok(cdb) = Cdb::new(cdb) else {
            return self
                .check_condition(work, &Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
        };
        let outcome = (command.run)(&mut Request {
            cdb,
            unit: &lun.unit,
            read_only: lun.read_only,
            nexus: &self.nexus,
            luns: &self.map,
            attentions: &mut lun.attentions,
            data_out: work.transfer.expected_out(),
            out: &mut self.out,
        });
        if let Ok(Plan::Read { lba, blocks }) = outcome {
            return self.read(work, lba, blocks);
        }
        self.carry_out(work, command, cdb, outcome)
    }

    /// REPORT LUNS has told: SPC-5 6.33 clears the unit attention on every logical unit.
    pub(super) fn luns_reported(&mut self) {
        for lun in self.luns.iter_mut() {
            lun.attentions.catch_up(self.nexus.id, lun.unit.attentions());
            lun.attentions.remove(UnitAttention::ReportedLunsChanged);
        }
    }

    /// Blocks to the initiator: straight from the store's memory, or by way of a buffer.
    #[inline]
    pub(super) fn read(&mut self, work: Work, lba: u64, blocks: u32) -> Reply {
        let Some(lun) = self.luns.get(work.lun) else { return self.good(work) };
        let shift = lun.unit.block_shift();
        let wanted = u64::from(blocks) << shift;
        let len = wanted.min(work.transfer.expected_in().into()) as usize;
        if len == 0 || lun.unit.region().is_some() {
            let data = if len == 0 { Data::None } else { Data::Region { lun: work.lun, offset: lba << shift, len } };
            // Who came before this could be answered does not know of what it sends.
            let awaited = self.slots[work.slot].is_barrier() || lun.waiting != 0;
            if len != 0 && awaited && !self.slots[work.slot].is_free() {
                if let Some(lun) = self.luns.get_mut(work.lun) {
                    lun.barriers += 1;
                }
                self.sending.push(Sending { lun: work.lun, until: u64::MAX });
                self.awaited = u64::MAX;
            }
            self.leave(work.slot);
            return Reply::Respond {
                data,
                offset: 0,
                status: Status::Good,
                residuals: work.transfer.residuals(wanted, 0),
            };
        }
        // Not more blocks than the initiator takes.
        let blocks = (len as u64).div_ceil(1 << shift);
        let mut job = Job::read(lba, blocks);
        job.set_block_shift(shift);
        if self.has_too_many_orphans() {
            return self.full(work, &[], 0);
        }
        // For the residual: what the command wants in, where a job knows only what it read.
        self.slots[work.slot].wanted_out = wanted;
        self.run(work, job)
    }

    pub(super) fn carry_out(&mut self, work: Work, command: &'static Command, cdb: Cdb<'_>, outcome: Outcome) -> Reply {
        match outcome {
            Err(sense) => self.check_condition(work, &sense),
            Ok(Plan::Good) => self.good(work),
            Ok(Plan::Data) => {
                if command.opcode == opcode::REPORT_LUNS {
                    self.luns_reported();
                }
                self.leave(work.slot);
                self.parameters(work.transfer)
            }
            Ok(Plan::Read { lba, blocks }) => self.read(work, lba, blocks),
            Ok(Plan::Run(mut job)) => {
                if let Some(lun) = self.luns.get(work.lun) {
                    job.set_block_shift(lun.unit.block_shift());
                }
                if !self.has_room(work, job.room()) {
                    return self.full(work, cdb.as_bytes(), job.room());
                }
                self.ready(work, job)
            }
            Ok(Plan::Receive { len, exact, then }) => {
                if let Err(sense) = self.check_amount(work, len, exact, &then) {
                    self.slots[work.slot].wanted_out = len;
                    return self.check_condition(work, &sense);
                }
                self.fetch(work, command, cdb, len, then)
            }
        }
    }

    /// Whether what the initiator has to send is something that the command can take: whole blocks, since no part of a
    /// block is written, compared or combined, and all of it where the command knows one amount only. Decided here for
    /// every command with data out.
    ///
    /// What counts is what moves, the smaller of both lengths (RFC 7143 11.4.5.1). Of an EDTL beyond what the CDB wants
    /// the rest never moves, so that it need not be whole blocks: GOOD with an underflow, as LIO says too, and as
    /// libiscsi's suite asks of 10000 bytes for one block (`iSCSIResiduals.Write10Residuals`).
    fn check_amount(&self, work: Work, wanted: u64, exact: Option<u16>, then: &Then) -> Result<(), Sense> {
        if matches!(then, Then::Parameters(_)) {
            return Ok(());
        }
        let Some(lun) = self.luns.get(work.lun) else { return Ok(()) };
        let expected = u64::from(work.transfer.expected_out());
        let block = 1u64 << lun.unit.block_shift();
        if !wanted.min(expected).is_multiple_of(block) {
            return Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT));
        }
        match exact {
            Some(field) if expected != wanted => Err(Sense::invalid_field_in_cdb(field)),
            _ => Ok(()),
        }
    }

    /// Asks for the data of a command.
    pub(super) fn fetch(
        &mut self,
        work: Work,
        command: &'static Command,
        cdb: Cdb<'_>,
        wanted: u64,
        then: Then,
    ) -> Reply {
        let Some(lun) = self.luns.get_mut(work.lun) else { return self.good(work) };
        let shift = lun.unit.block_shift();
        if wanted != 0 && !work.transfer.write && work.transfer.read {
            // The initiator holds the command for a read: nothing can be written for it.
            return self.check_condition(work, &Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB));
        }
        let len = wanted.min(work.transfer.expected_out().into()) as usize;
        self.slots[work.slot].wanted_out = wanted;
        if len == 0 {
            return match then {
                Then::Parameters(_) if wanted != 0 => {
                    self.check_condition(work, &Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR))
                }
                _ => self.good(work),
            };
        }
        let sink = match (&then, lun.unit.region()) {
            (Then::Write { lba, .. }, Some(region)) if work.direct && self.asks_to_land => {
                let offset = lba << shift;
                if region.reserve_for_write(offset, len as u64).is_err() {
                    return self.check_condition(work, &fault::of_store(StoreError::NoSpace));
                }
                // While an atomic command has the blocks, the data wait in a buffer.
                let open = lun.unit.gate().is_open(*lba, (len >> shift) as u64);
                let slice = region.slice(offset, len);
                open.then(|| Payload::Region(lun.land(slice, &self.bell)))
            }
            _ => None,
        };
        let sink = match sink {
            Some(sink) => sink,
            None if self.has_room(work, len) => Payload::Buf(self.buffers.take(len)),
            None => return self.full(work, cdb.as_bytes(), len),
        };
        let cdb = keep(cdb.as_bytes()).unwrap_or(Waiting { cdb: [0; CDB], len: 0 });
        self.enter(work, State::Receiving { then, cdb, command });
        Reply::GetData(sink)
    }
}

/// Keeps a CDB for later; `None` for one longer than any command's.
pub(super) fn keep(cdb: &[u8]) -> Option<Waiting> {
    let cdb = cdb.get(..cdb.len().min(CDB))?;
    let mut kept = Waiting { cdb: [0; CDB], len: cdb.len() as u8 };
    kept.cdb.get_mut(..cdb.len())?.copy_from_slice(cdb);
    Some(kept)
}
