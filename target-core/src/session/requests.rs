//! The way of a request through its session: taken in the order of CmdSN, and handed to who does it.

use iscsi_memory::Payload;
use iscsi_proto::datamover::{Datamover, Notification, TaskHandle};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::pdu::{Ahs, AhsIter, Bhs, Opcode, PduError, RESERVED_TAG, RejectReason, ScsiCommand};
use iscsi_proto::serial::Serial;

use super::command_window::Place;
use super::connection::Connection;
use super::held::Held;
use super::session::Session;
use super::task_table::{Flags, Refused};
use super::{EndReason, wire};
use crate::task::{AtOnce, NewTask};

/// Where a request stands.
enum Turn {
    /// It is to be done now.
    Now,
    /// It is to wait for those before it.
    Wait,
    /// It is to be dropped without a word.
    Never,
}

impl Session {
    #[inline]
    pub(super) fn notified<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        notification: Notification,
    ) -> Result<(), EndReason> {
        match notification {
            Notification::Control(bhs) => {
                if !connection.unexpected.is_empty() {
                    connection.unexpected.acknowledged(exp_stat_sn_of(&bhs));
                }
                if let Some(told) = connection.flush_told
                    && told.distance(exp_stat_sn_of(&bhs)) >= 0
                {
                    connection.flush_told = None;
                    self.executor.iter_mut().for_each(|executor| executor.flushes_heard());
                }
                self.request(connection, &bhs)
            }
            Notification::GetDataComplete { task, sink } => {
                connection.data_moved = connection.now;
                if let Some(sink) = self.fetched(connection, task, sink)
                    && let Some(executor) = &mut self.executor
                {
                    self.commands.step(connection, task, executor.data_arrived(task, sink));
                }
                Ok(())
            }
            Notification::GetDataFailed { task, sink, error } => {
                if let Some(sink) = self.fetched(connection, task, sink)
                    && let Some(executor) = &mut self.executor
                {
                    self.commands.step(connection, task, executor.data_failed(task, sink, error));
                }
                Ok(())
            }
            Notification::Released(buf) => {
                if let Some(executor) = &mut self.executor {
                    executor.give(buf);
                }
                Ok(())
            }
            Notification::Malformed { bhs, error } => {
                let resendable = error == iscsi_proto::datamover::MalformedPdu::DataDigest;
                if !resendable {
                    self.pass_number(connection, &bhs)?;
                }
                connection.reject(&self.commands.window, &bhs, wire::malformed(&error));
                Ok(())
            }
            Notification::Terminated(error) => Err(EndReason::Transport(error)),
        }
    }

    /// A task's data phase is over. Gives the sink back to go on with, unless the task was aborted meanwhile.
    #[inline]
    pub(super) fn fetched<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        handle: TaskHandle,
        sink: Payload,
    ) -> Option<Payload> {
        if let Some(task) = self.commands.tasks.get_mut(handle) {
            task.flags = task.flags.without(Flags::FETCHING);
            if !task.flags.has(Flags::ABORTED) {
                return Some(sink);
            }
            if let Some(task) = self.commands.retire(handle) {
                connection.mover.forget_command(task.itt);
            }
        }
        self.give_sink(sink);
        None
    }

    #[inline]
    fn request<M: Datamover>(&mut self, connection: &mut Connection<M>, bhs: &Bhs) -> Result<(), EndReason> {
        if bhs.0[0] & 0x3f == Opcode::ScsiCommand as u8 && bhs.ahs_len() == 0 {
            let command = match ScsiCommand::parse(bhs) {
                Ok(command) => command,
                Err(error) => return self.refuse(connection, bhs, wire::header(&error)),
            };
            return match self.turn(command.immediate, command.cmd_sn) {
                Turn::Now => {
                    self.command(connection, bhs, &command, (&command.cdb, None), true);
                    self.after_number(connection, command.immediate)
                }
                Turn::Wait => self.hold(connection, bhs, command.cmd_sn),
                Turn::Never => Ok(()),
            };
        }
        self.other_request(connection, bhs)
    }

    /// Where a request stands in the order of CmdSN; a numbered one whose turn it is has its number taken.
    #[inline]
    fn turn(&mut self, immediate: bool, cmd_sn: Serial) -> Turn {
        if immediate {
            return Turn::Now;
        }
        match self.commands.window.place(cmd_sn) {
            Place::Next => {
                self.commands.window.take();
                Turn::Now
            }
            Place::Ahead => Turn::Wait,
            // RFC 7143 4.2.2.1: silently ignored.
            Place::Outside => Turn::Never,
        }
    }

    /// A number was taken: what waited for it may go on.
    #[inline]
    pub(super) fn after_number<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        immediate: bool,
    ) -> Result<(), EndReason> {
        if immediate || self.held.is_empty() { Ok(()) } else { self.release_held(connection) }
    }

    #[cold]
    fn hold<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
        cmd_sn: Serial,
    ) -> Result<(), EndReason> {
        let deadline = connection.now + self.target.limits.gap_timeout;
        if self.held.add(cmd_sn, *bhs, connection.mover.control_ahs(), connection.mover.control_data(), deadline) {
            Ok(())
        } else {
            Err(EndReason::Protocol(Misbehavior::TooMuchAheadOfCmdSn))
        }
    }

    /// Does what was held, as long as the next number is among it.
    #[cold]
    pub(super) fn release_held<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        while let Some(held) = self.held.take(self.commands.window.expected()) {
            match held {
                Held::Plugged => self.commands.window.pass(),
                Held::Request { bhs, ahs, data } => {
                    self.commands.window.take();
                    connection.scratch.clear();
                    connection.scratch.extend_from_slice(&data);
                    self.deliver(connection, &bhs, &ahs)?;
                }
            }
        }
        self.held.head_moved(connection.now + self.target.limits.gap_timeout);
        Ok(())
    }

    /// A request other than a plain SCSI command: copies what belongs to it out of the mover, which is needed for the
    /// answer.
    #[cold]
    fn other_request<M: Datamover>(&mut self, connection: &mut Connection<M>, bhs: &Bhs) -> Result<(), EndReason> {
        let opcode = match bhs.opcode() {
            Ok(opcode) if opcode.is_request() => opcode,
            // RFC 7143 11.17.1: an opcode that only targets send is a protocol error.
            Ok(_) => return self.refuse_unnumbered(connection, bhs, RejectReason::ProtocolError),
            Err(error) => return self.refuse(connection, bhs, wire::header(&error)),
        };
        match opcode {
            // RFC 7143 11.16: there is no SNACK at ErrorRecoveryLevel 0.
            Opcode::SnackRequest => return self.refuse_unnumbered(connection, bhs, RejectReason::SnackReject),
            Opcode::LoginRequest | Opcode::DataOut => {
                return self.refuse_unnumbered(connection, bhs, RejectReason::ProtocolError);
            }
            _ => {}
        }
        let cmd_sn = cmd_sn_of(bhs);
        match self.turn(bhs.immediate(), cmd_sn) {
            Turn::Now => {
                connection.scratch.clear();
                connection.scratch.extend_from_slice(connection.mover.control_data());
                if bhs.ahs_len() == 0 {
                    self.deliver(connection, bhs, &[])?;
                } else {
                    let ahs = connection.mover.control_ahs().to_vec();
                    self.deliver(connection, bhs, &ahs)?;
                }
                self.after_number(connection, bhs.immediate())
            }
            Turn::Wait => self.hold(connection, bhs, cmd_sn),
            Turn::Never => Ok(()),
        }
    }

    /// Does a request whose turn it is. Its data are in `scratch`.
    fn deliver<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
        ahs: &[u8],
    ) -> Result<(), EndReason> {
        let opcode = bhs.opcode();
        if opcode != Ok(Opcode::ScsiCommand) && self.tag_in_use(bhs.itt()) {
            self.done_unless_immediate(bhs);
            connection.reject(&self.commands.window, bhs, RejectReason::TaskInProgress);
            return Ok(());
        }
        match opcode {
            Ok(Opcode::ScsiCommand) => {
                match extended(bhs, ahs) {
                    Ok((command, cdb, len, read_length)) => {
                        let cdb = cdb.get(..len).unwrap_or(&cdb);
                        self.command(connection, bhs, &command, (cdb, read_length), false);
                    }
                    Err(error) => {
                        self.done_unless_immediate(bhs);
                        connection.reject(&self.commands.window, bhs, wire::header(&error));
                    }
                }
                return Ok(());
            }
            Ok(Opcode::NopOut) if self.is_discovery() => {
                connection.reject(&self.commands.window, bhs, RejectReason::CommandNotSupported);
            }
            Ok(Opcode::NopOut) => connection.nop_out(&self.commands.window, bhs),
            Ok(Opcode::TaskManagementRequest) => self.function(connection, bhs)?,
            Ok(Opcode::TextRequest) => self.text_request(connection, bhs),
            Ok(Opcode::LogoutRequest) => self.logout_request(connection, bhs)?,
            _ => {}
        }
        // None of these keeps its place in the command window: what bounds them is elsewhere.
        self.done_unless_immediate(bhs);
        connection.announce(&self.commands.window);
        Ok(())
    }

    fn tag_in_use(&self, itt: u32) -> bool {
        itt != RESERVED_TAG && (self.commands.tasks.find(itt).is_some() || self.functions.has(itt))
    }

    fn done_unless_immediate(&mut self, bhs: &Bhs) {
        if !bhs.immediate() {
            self.commands.window.done();
        }
    }

    /// A SCSI command whose turn it is. `latest`: it is the one that the mover notified last, so that data at hand are
    /// its own.
    #[inline]
    fn command<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
        command: &ScsiCommand,
        (cdb, bidirectional_read_length): (&[u8], Option<u32>),
        latest: bool,
    ) {
        let Some(executor) = &mut self.executor else {
            // RFC 7143 4.3: a discovery session takes Text and Logout only.
            self.done_unless_immediate(bhs);
            return connection.reject(&self.commands.window, bhs, RejectReason::CommandNotSupported);
        };
        let mut flags = Flags::default();
        if command.immediate {
            if !self.commands.takes_immediate() {
                return connection.reject(&self.commands.window, bhs, RejectReason::TooManyImmediateCommands);
            }
            flags = Flags::IMMEDIATE;
        }
        if command.itt == RESERVED_TAG {
            self.done_unless_immediate(bhs);
            return connection.reject(&self.commands.window, bhs, RejectReason::InvalidPduField);
        }
        let vacant = if !self.functions.is_empty() && self.functions.has(command.itt) {
            Err(Refused::TagInUse)
        } else {
            self.commands.tasks.vacant(command.itt)
        };
        let task = match vacant {
            Ok(task) => task,
            Err(refused) => {
                self.done_unless_immediate(bhs);
                let reason = match refused {
                    Refused::TagInUse => RejectReason::TaskInProgress,
                    Refused::Full => RejectReason::LongOperationReject,
                };
                return connection.reject(&self.commands.window, bhs, reason);
            }
        };
        let new = NewTask {
            task,
            lun: command.lun,
            itt: command.itt,
            cdb,
            attribute: command.attribute,
            read: command.read,
            write: command.write,
            immediate: bhs.data_segment_len() > 0,
            unsolicited: command.write && !command.is_final,
            expected_data_transfer_length: command.expected_data_transfer_length,
            bidirectional_read_length,
            direct_placement: connection.places_directly(),
        };
        executor.note_sends(connection.mover.sent(), connection.mover.backlog());
        let data = if latest { connection.mover.immediate_data() } else { &[] };
        if let Some(AtOnce { written, data, status }) = executor.start_at_once(&new, data) {
            // It was never in the table.
            if !command.immediate {
                self.commands.window.done();
            }
            return self.commands.respond(connection, (command.lun, command.itt), written, (data, 0), status);
        }
        if self.commands.enter(command.itt, command.lun, command.cmd_sn, flags) {
            self.commands.step(connection, task, executor.start(new));
        }
    }

    /// Rejects a request that cannot be done, and takes its number if it has one and it is its turn, so that those
    /// behind it go on.
    #[cold]
    fn refuse<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
        reason: RejectReason,
    ) -> Result<(), EndReason> {
        self.pass_number(connection, bhs)?;
        connection.reject(&self.commands.window, bhs, reason);
        Ok(())
    }

    fn refuse_unnumbered<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
        reason: RejectReason,
    ) -> Result<(), EndReason> {
        connection.reject(&self.commands.window, bhs, reason);
        Ok(())
    }

    fn pass_number<M: Datamover>(&mut self, connection: &mut Connection<M>, bhs: &Bhs) -> Result<(), EndReason> {
        let numbered = matches!(
            bhs.opcode(),
            Ok(Opcode::NopOut
                | Opcode::ScsiCommand
                | Opcode::TaskManagementRequest
                | Opcode::TextRequest
                | Opcode::LogoutRequest)
        ) && !bhs.immediate();
        if numbered && self.commands.window.place(cmd_sn_of(bhs)) == Place::Next {
            self.commands.window.pass();
            self.after_number(connection, false)?;
        }
        Ok(())
    }
}

/// ExpStatSN, at the same place in every request.
fn exp_stat_sn_of(bhs: &Bhs) -> Serial {
    let [.., a, b, c, d] = *bhs.0.first_chunk::<32>().unwrap_or(&[0; 32]);
    Serial(u32::from_be_bytes([a, b, c, d]))
}

/// CmdSN, at the same place in every numbered request.
fn cmd_sn_of(bhs: &Bhs) -> Serial {
    let [.., a, b, c, d] = *bhs.0.first_chunk::<28>().unwrap_or(&[0; 28]);
    Serial(u32::from_be_bytes([a, b, c, d]))
}

/// A command with Additional Header Segments: its whole CDB, that CDB's length, and the bidirectional read length.
fn extended(bhs: &Bhs, ahs: &[u8]) -> Result<(ScsiCommand, [u8; 260], usize, Option<u32>), PduError> {
    let command = ScsiCommand::parse(bhs)?;
    let mut cdb = [0; 260];
    let mut len = 16;
    let mut read_length = None;
    if let Some(first) = cdb.first_chunk_mut::<16>() {
        *first = command.cdb;
    }
    for segment in AhsIter::new(ahs) {
        match segment? {
            Ahs::ExtendedCdb(rest) => {
                let end = 16 + rest.len();
                // RFC 7143 11.2.2.3: one such segment, and no CDB above 260 bytes.
                let place = cdb.get_mut(16..end).filter(|_| len == 16).ok_or(PduError::InvalidAhs(0))?;
                place.copy_from_slice(rest);
                len = end;
            }
            Ahs::BidirectionalReadLength(bytes) => read_length = Some(bytes),
            Ahs::Unknown(..) => return Err(PduError::InvalidAhs(0)),
        }
    }
    Ok((command, cdb, len, read_length))
}
