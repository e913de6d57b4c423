//! What a completed operation has to be like.

use iscsi_memory::Payload;
use std::ops::Range;
use std::rc::Rc;

use initiator_core::application::ControlAnswer;
use initiator_core::command::{Completion, Failure, Outcome};

use iscsi_proto::pdu::{Residual, TaskFunction, TaskResponse};
use iscsi_proto::time::Instant;
use scsi_proto::SenseKey;

use super::{Failed, Happened, Kind, Operation, Workload};
use crate::disk::SharedDisk;
use crate::model::{command_of, first_value};

/// The status of a task that another nexus has ended.
const TASK_ABORTED: u8 = 0x40;

impl Workload {
    pub(super) fn check_buffers(&self, operation: &Operation, completion: &Completion) {
        let out = completion.data_out.as_ref().map(|data| match data {
            Payload::Buf(buf) => buf.len(),
            Payload::Region(slice) => slice.len(),
        });
        if out != operation.out {
            self.broken(&format!("the data of {} {} came back as {out:?}", operation.name, completion.token));
        }
        let into = completion.data_in.as_ref().map(Payload::len);
        if into != operation.into.map(|(len, _)| len) {
            self.broken(&format!("the buffer of {} {} came back as {into:?}", operation.name, completion.token));
        }
    }

    /// No session holds up another for longer than planned, whatever it does.
    pub(super) fn check_time(&self, operation: &Operation, at: Instant) {
        let took = self.trace.now() - at;
        if self.plan.within.is_some_and(|within| took > within) {
            self.broken(&format!("{} took {took:?}", operation.name));
        }
    }

    /// Where a session cannot be held up, its functions are answered as soon, and with success.
    pub(super) fn check_answer(&self, function: TaskFunction, answer: &ControlAnswer, at: Instant) {
        let Some(within) = self.plan.within else { return };
        let took = self.trace.now() - at;
        let is_answered = matches!(answer, ControlAnswer::TaskManagement(TaskResponse::Complete));
        if took > within || !is_answered {
            self.broken(&format!("{function:?} took {took:?}: {answer:?}"));
        }
    }

    /// TASK ABORTED is told when nothing of the task is under way any more (SAM-5 5.3.1).
    pub(super) fn check_terminated(&self, token: u64, operation: &Operation, disk: &SharedDisk, outcome: &Outcome) {
        let command = command_of(first_value(self.number, token));
        if outcome.status == TASK_ABORTED
            && !self.plan.untrusted
            && let Some(op) = disk.parts.iter().find_map(|part| part.of_command(command))
        {
            self.broken(&format!("{} {token} is aborted, and {op} is still under way", operation.name));
        }
    }

    /// A unit that does a command has told before what it had to tell; INQUIRY goes before that (SPC-4 6.6.1).
    pub(super) fn check_attentions(
        &mut self,
        operation: &Operation,
        (disk, lun): (&SharedDisk, u16),
        at: Instant,
        outcome: &Outcome,
    ) {
        if !outcome.is_good() || self.plan.untrusted || operation.name == "inquiry" {
            return;
        }
        if let Err(lost) = self.heard.check((disk.number, lun), at) {
            self.broken(&format!("{} {lost}", operation.name));
        }
    }

    /// "Function complete": of what was at the store before it was asked for, nothing can land any more (RFC 7143 4.2.3.3).
    pub(super) fn check_function(&self, function: TaskFunction, disk: usize, asked: Instant) {
        if self.plan.untrusted {
            return;
        }
        let reached = self.reached(function, disk);
        let session = (function == TaskFunction::AbortTaskSet).then_some(self.number);
        // Of its own node a target reset ends what came by LUNs that are gone as well.
        let is_target_reset = matches!(function, TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset);
        let removed = self.disks.iter().filter(|_| is_target_reset && self.plan.one_node);
        if let Some(older) = reached.iter().copied().chain(removed).find_map(|disk| disk.older(session, asked)) {
            self.broken(&format!("{function:?} is complete, and {older} is still under way"));
        }
        if function != TaskFunction::AbortTaskSet {
            reached.iter().for_each(|disk| disk.careless.end(disk, None, asked));
        }
        if function == TaskFunction::ClearTaskSet {
            // Where each is told of its end, nobody hears of it beside that.
            for disk in reached.iter().filter(|disk| !disk.tells_aborted) {
                for (command, came) in disk.ended_since(asked) {
                    self.attentions.post_cleared(disk.number, command, came, self.trace.now());
                }
            }
        }
        if !matches!(function, TaskFunction::AbortTaskSet | TaskFunction::ClearTaskSet) {
            for disk in reached {
                self.attentions.post(Some(disk.number), Happened::Reset, asked, self.trace.now());
            }
        }
    }

    /// A store that is never slow keeps nobody, whatever those of other disks do.
    pub(super) fn check_function_time(&self, function: TaskFunction, disk: usize, asked: Instant) {
        let took = self.trace.now() - asked;
        let of_unit = !matches!(function, TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset);
        let is_fast = of_unit && self.disks[disk].plan.store.slow.0 == 0;
        if is_fast && self.plan.function_within.is_some_and(|within| took > within) {
            self.broken(&format!("{function:?} of a disk that is never slow took {took:?}"));
        }
    }

    /// "Function rejected", after as long as a target waits for its stores: one of them did hold something back until
    /// then that came before the function, and the operators have heard whose operations it held. What later functions
    /// abort is nothing that this one waits for (RFC 7143 4.2.3.3: it is over when the tasks that it covers are).
    pub(super) fn check_rejection(&self, function: TaskFunction, disk: usize, asked: Instant) {
        let now = self.trace.now();
        if self.plan.untrusted || now - asked < self.plan.drain {
            return;
        }
        let is_calm = self.plan.function_within.is_some();
        let is_busy = |disk: &SharedDisk| disk.was_busy(asked, now);
        let was_busy = match function {
            // A task may be there whose LUN is gone.
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => self.disks.iter().any(is_busy),
            _ => is_busy(&self.disks[disk]),
        };
        if is_calm && !was_busy {
            self.broken(&format!("{function:?} is rejected, and nothing older is under way"));
        }
        let session = (function == TaskFunction::AbortTaskSet).then_some(self.number);
        for disk in self.reached(function, disk) {
            disk.aborted(session, asked);
            for (session, came) in disk.holders(session, asked) {
                self.told.must_tell(function, session, came);
            }
        }
    }

    /// The disks that a function of ours is about: those of a target reset are its LUNs at the time.
    fn reached(&self, function: TaskFunction, disk: usize) -> Vec<&SharedDisk> {
        match function {
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => {
                self.disks.iter().filter(|disk| !disk.was_away.get()).collect()
            }
            TaskFunction::AbortTaskSet | TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset => {
                vec![&self.disks[disk]]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn check_status(&self, operation: &Operation, disk: &SharedDisk, outcome: &Outcome) {
        if outcome.is_good() || self.plan.untrusted {
            return;
        }
        let expected = match outcome.sense.map(|sense| sense.key) {
            // BUSY, TASK SET FULL, TASK ABORTED: when retries do not help.
            None => outcome.status != 0x02,
            Some(SenseKey::AbortedCommand | SenseKey::UnitAttention) => true,
            Some(SenseKey::MediumError) => self.plan.store_fails || disk.has_dropped().0 > 0,
            Some(SenseKey::HardwareError | SenseKey::NotReady | SenseKey::DataProtect) => self.plan.store_fails,
            Some(SenseKey::Miscompare) => matches!(operation.kind, Kind::Compare { .. }),
            // Its LUN was taken away.
            Some(SenseKey::IllegalRequest) => disk.was_away.get(),
            Some(_) => false,
        };
        if !expected {
            self.broken(&format!("{} ended with {outcome}", operation.name));
        }
    }

    /// A nexus hears of each flush that has failed, whoever had asked for it, before a flush is good again. `failed`:
    /// how many had failed when this one was handed in, and have now.
    pub(super) fn check_flush(&self, operation: &Operation, disk: &SharedDisk, outcome: &Outcome, failed: Range<u64>) {
        if !matches!(operation.kind, Kind::Flush(_) | Kind::Durable(_)) || self.plan.untrusted || disk.was_away.get() {
            return;
        }
        let known = &mut *self.limbo.1.borrow_mut();
        let Some((crashes, heard)) = known.get_mut(&disk.number) else { return };
        if *crashes != disk.crashes.get() {
            return;
        }
        let lost = outcome.sense.is_some_and(|sense| sense.key == SenseKey::MediumError);
        if outcome.is_good() && *heard < failed.start {
            self.broken(&format!(
                "{} of LUN {} is good after a flush that failed: {heard} heard of, {} before it, {} now",
                operation.name, disk.number, failed.start, failed.end
            ));
        }
        if lost {
            *heard = failed.end;
        }
    }

    pub(super) fn check_failure(&self, operation: &Operation, failure: Failure) {
        let expected = match failure {
            Failure::NotRepeatable => matches!(operation.kind, Kind::Compare { .. }),
            Failure::TimedOut | Failure::Aborted | Failure::SessionEnded => true,
            Failure::Rejected(_) => self.plan.flips,
            Failure::ConnectionLost
            | Failure::TargetFailure(_)
            | Failure::Invalid(_)
            | Failure::OtherDisk
            | Failure::LostWrites
            | Failure::NotSent(_) => false,
        };
        if !expected && !self.plan.untrusted {
            self.broken(&format!("{} failed: {failure}", operation.name));
        }
    }

    pub(super) fn settle_data(
        &mut self,
        operation: Operation,
        disk: &SharedDisk,
        completion: &Completion,
    ) -> Result<(), String> {
        let at = self.trace.now();
        let failed = |write| Failed { disk: disk.clone(), write, at };
        let good = completion.result.as_ref().is_ok_and(Outcome::is_good);
        let given_up = self.given_up.iter().filter(|(of, _)| Rc::ptr_eq(&self.disks[*of], disk));
        let older: Vec<_> = given_up.map(|(_, write)| *write).collect();
        let model = &mut *disk.model.borrow_mut();
        if self.plan.untrusted {
            match operation.kind {
                Kind::Read(read) => model.forget(read),
                Kind::Write(write) | Kind::Durable(write) => self.limbo.0.borrow_mut().push(failed(write)),
                Kind::Compare { read, write, .. } => {
                    model.forget(read);
                    self.limbo.0.borrow_mut().push(failed(write));
                }
                Kind::Other | Kind::Flush(_) => {}
            }
            return Ok(());
        }
        match operation.kind {
            Kind::Other => Ok(()),
            Kind::Flush(flush) => {
                if good {
                    model.end_flush(flush);
                }
                Ok(())
            }
            Kind::Read(read) if good => {
                let (len, bytes) = operation.into.unwrap_or_default();
                if completion.data_in_len as usize != bytes {
                    return Err(format!("a read of {bytes} bytes into {len} brought {}", completion.data_in_len));
                }
                let residual = match len - bytes {
                    0 => Residual::None,
                    more => Residual::Underflow(more as u32),
                };
                if let Ok(outcome) = &completion.result
                    && outcome.residual != residual
                {
                    return Err(format!("a read of {bytes} bytes into {len} has {:?}", outcome.residual));
                }
                let mut data = vec![0; bytes];
                match &completion.data_in {
                    Some(Payload::Buf(buf)) => data.copy_from_slice(&buf[..bytes]),
                    Some(Payload::Region(slice)) => slice.read(0, &mut data),
                    None => {}
                }
                model.end_read(read, &data).map_err(|wrong| wrong.to_string())
            }
            Kind::Read(read) => {
                model.forget(read);
                Ok(())
            }
            Kind::Write(write) | Kind::Durable(write) => {
                match &completion.result {
                    Ok(_) if good => {
                        older.iter().for_each(|older| model.supersede(*older, write));
                        if matches!(operation.kind, Kind::Durable(_)) {
                            model.acknowledge_durable(write);
                        } else {
                            model.acknowledge(write);
                        }
                        self.acknowledged += 1;
                    }
                    Ok(_) => model.fail(write),
                    Err(Failure::SessionEnded) => self.limbo.0.borrow_mut().push(failed(write)),
                    Err(_) => self.fresh.push(failed(write)),
                }
                Ok(())
            }
            Kind::Compare { read, write, expected, once, first } => match &completion.result {
                Ok(_) if good => {
                    older.iter().for_each(|older| model.supersede(*older, write));
                    let replaced = model.acknowledge_replacing(write, &expected, &once);
                    self.acknowledged += 1;
                    replaced.map_err(|wrong| format!("replaced what was gone: {wrong}"))?;
                    model.end_equal(read, &expected).map_err(|wrong| format!("compared as equal: {wrong}"))
                }
                Ok(outcome) if outcome.sense.is_some_and(|sense| sense.key == SenseKey::Miscompare) => {
                    model.withdraw(write);
                    let own = first..first + expected.len() as u64;
                    model
                        .end_different(read, &expected, |value| own.contains(&value))
                        .map_err(|wrong| format!("compared as different: {wrong}"))
                }
                Ok(_) => {
                    model.forget(read);
                    model.fail(write);
                    Ok(())
                }
                Err(_) => {
                    model.forget(read);
                    self.fresh.push(failed(write));
                    Ok(())
                }
            },
        }
    }
}
