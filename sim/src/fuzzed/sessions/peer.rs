//! An initiator's end of one connection, played by hand: what it has to say, and what it has heard.

use std::collections::VecDeque;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataOut, LoginResponse, LoginStatus, LogoutReason, LogoutRequest, NopIn, NopOut, Opcode, R2t,
    RESERVED_TAG, ScsiCommand, TaskAttribute, TaskFunction, TaskManagementRequest, padding,
};
use iscsi_proto::serial::Serial;

use crate::fuzzed::ends::TARGET;
use crate::hostile::{login, wire};
use crate::model::{fill_block, first_value};

/// Names and ISIDs: two sessions of one initiator, and one of another.
const NEXUSES: [(&str, u8); 3] =
    [("iqn.2026-11.example.sim:one", 1), ("iqn.2026-11.example.sim:one", 2), ("iqn.2026-11.example.sim:other", 1)];

/// One of them.
pub(super) struct Peer {
    /// Where the script finds it.
    pub(super) place: u8,
    /// Of all connections of the script.
    pub(super) number: u32,
    /// Its I_T nexus.
    pub(super) nexus: usize,
    pub(super) is_logged_in: bool,
    /// CmdSN of its next command, the target's ExpCmdSN, and the last that it may use.
    pub(super) cmd_sn: u32,
    pub(super) exp_cmd_sn: Serial,
    max_cmd_sn: Serial,
    tags: u32,
    to_send: VecDeque<u8>,
    came: Vec<u8>,
    /// Data that were asked for, each with the tag of the command that they are of.
    owed: VecDeque<R2t>,
}

impl Peer {
    /// It has just connected, and has its login to send.
    pub(super) fn new(place: u8, number: u32, nexus: u8) -> Self {
        let nexus = usize::from(nexus) % NEXUSES.len();
        let (name, isid) = NEXUSES[nexus];
        let keys = "ImmediateData=Yes\0InitialR2T=Yes\0MaxRecvDataSegmentLength=8192\0";
        Self {
            place,
            number,
            nexus,
            is_logged_in: false,
            cmd_sn: 1,
            exp_cmd_sn: Serial(1),
            max_cmd_sn: Serial(0),
            tags: 0,
            to_send: login(TARGET, name, [0x80, 0, 0, 0, 0, isid], keys).into(),
            came: Vec::new(),
            owed: VecDeque::new(),
        }
    }

    /// Whether this is the response of a login that has succeeded.
    pub(super) fn is_let_in(bhs: &Bhs) -> bool {
        LoginResponse::parse(bhs).is_ok_and(|response| response.status == LoginStatus::SUCCESS)
    }

    /// At most so many of the bytes that it has to send.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        self.to_send.drain(..most.min(self.to_send.len())).collect()
    }

    /// Has these bytes to send as well.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.to_send.extend(bytes);
    }

    fn tag(&mut self) -> u32 {
        self.tags += 1;
        self.tags
    }

    /// Whether it may send a command.
    fn may_command(&self) -> bool {
        self.is_logged_in && Serial(self.cmd_sn) <= self.max_cmd_sn
    }

    /// Sends a READ (10) of so many blocks, or a WRITE (10), as the bits of `kind` say: bit 0 writes, bit 1 has the
    /// data immediate, bits 2 and 3 choose the attribute. Its tag and CmdSN, if it may be sent.
    pub(super) fn command(&mut self, lba: u64, blocks: u64, kind: u8) -> Option<(u32, u32)> {
        if !self.may_command() {
            return None;
        }
        let (itt, cmd_sn) = (self.tag(), self.cmd_sn);
        self.cmd_sn += 1;
        let writes = kind & 1 != 0;
        let mut cdb = [0; 16];
        cdb[0] = if writes { 0x2a } else { 0x28 };
        cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
        cdb[8] = blocks as u8;
        let attributes =
            [TaskAttribute::Simple, TaskAttribute::Simple, TaskAttribute::Ordered, TaskAttribute::HeadOfQueue];
        let command = ScsiCommand {
            read: !writes,
            write: writes,
            attribute: attributes[usize::from(kind >> 2 & 3)],
            itt,
            expected_data_transfer_length: blocks as u32 * 512,
            cmd_sn: Serial(cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        let data = if kind & 3 == 3 { self.data(itt, 0, blocks as usize * 512) } else { Vec::new() };
        self.say(&wire(command.emit(), &data));
        Some((itt, cmd_sn))
    }

    /// What it writes: bytes of the data of a command.
    fn data(&self, itt: u32, offset: usize, len: usize) -> Vec<u8> {
        let mut blocks = vec![0; (offset + len).next_multiple_of(512)];
        for (value, block) in (first_value(self.number.into(), itt.into())..).zip(blocks.chunks_mut(512)) {
            fill_block(value, block);
        }
        blocks[offset..offset + len].to_vec()
    }

    /// Sends a task management function. Its tag.
    pub(super) fn function(
        &mut self,
        function: TaskFunction,
        referenced_task_tag: u32,
        ref_cmd_sn: u32,
    ) -> Option<u32> {
        if !self.is_logged_in {
            return None;
        }
        let itt = self.tag();
        let request = TaskManagementRequest {
            immediate: true,
            function: Ok(function),
            itt,
            referenced_task_tag,
            cmd_sn: Serial(self.cmd_sn),
            ref_cmd_sn: Serial(ref_cmd_sn),
            ..TaskManagementRequest::default()
        };
        self.say(&wire(request.emit(), &[]));
        Some(itt)
    }

    /// Asks whether the target is there.
    pub(super) fn ping(&mut self) {
        if self.is_logged_in {
            let itt = self.tag();
            let (cmd_sn, ttt) = (Serial(self.cmd_sn), RESERVED_TAG);
            let ping = NopOut { immediate: true, lun: 0, itt, ttt, cmd_sn, exp_stat_sn: Serial(0) };
            self.say(&wire(ping.emit(), &[]));
        }
    }

    pub(super) fn log_out(&mut self) {
        if self.is_logged_in {
            let (itt, cmd_sn) = (self.tag(), Serial(self.cmd_sn));
            let reason = LogoutReason::CloseSession;
            let request = LogoutRequest { immediate: true, reason, itt, cid: 0, cmd_sn, exp_stat_sn: Serial(0) };
            self.say(&wire(request.emit(), &[]));
        }
    }

    /// Sends what the first R2T that is not answered asks for.
    pub(super) fn pay(&mut self) {
        let Some(r2t) = self.owed.pop_front() else { return };
        let (mut at, end) =
            (r2t.buffer_offset as usize, r2t.buffer_offset as usize + r2t.desired_data_transfer_length as usize);
        let mut data_sn = 0;
        while at < end {
            let len = (end - at).min(1536);
            let data = self.data(r2t.itt, at, len);
            let data_out = DataOut {
                is_final: at + len == end,
                lun: 0,
                itt: r2t.itt,
                ttt: r2t.ttt,
                exp_stat_sn: Serial(0),
                data_sn,
                buffer_offset: at as u32,
            };
            self.say(&wire(data_out.emit(), &data));
            (at, data_sn) = (at + len, data_sn + 1);
        }
    }

    /// The PDUs that are whole with these bytes, with their data. It answers pings itself.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<(Bhs, Vec<u8>)> {
        self.came.extend(bytes);
        let mut heard = Vec::new();
        while let Some(header) = self.came.first_chunk::<BHS_LEN>() {
            let bhs = Bhs(*header);
            let (start, len) = (BHS_LEN + bhs.ahs_len(), bhs.data_segment_len());
            let end = start + (len + padding(len)) as usize;
            if self.came.len() < end {
                break;
            }
            let data = self.came[start..start + len as usize].to_vec();
            self.came.drain(..end);
            self.take_note(&bhs);
            heard.push((bhs, data));
        }
        heard
    }

    fn take_note(&mut self, bhs: &Bhs) {
        if bhs.opcode() == Ok(Opcode::LoginResponse) {
            if !Self::is_let_in(bhs) {
                return;
            }
            self.is_logged_in = true;
        }
        let serial = |at: usize| Serial(u32::from_be_bytes([bhs.0[at], bhs.0[at + 1], bhs.0[at + 2], bhs.0[at + 3]]));
        if serial(28) > self.exp_cmd_sn {
            self.exp_cmd_sn = serial(28);
        }
        if serial(32) > self.max_cmd_sn {
            self.max_cmd_sn = serial(32);
        }
        match bhs.opcode() {
            Ok(Opcode::R2t) => self.owed.extend(R2t::parse(bhs)),
            Ok(Opcode::NopIn) => {
                if let Ok(NopIn { ttt, lun, .. }) = NopIn::parse(bhs)
                    && ttt != RESERVED_TAG
                {
                    let cmd_sn = Serial(self.cmd_sn);
                    let answer =
                        NopOut { immediate: true, lun, itt: RESERVED_TAG, ttt, cmd_sn, exp_stat_sn: Serial(0) };
                    self.say(&wire(answer.emit(), &[]));
                }
            }
            _ => {}
        }
    }
}
