//! An initiator's end of a TCP session by hand: it keeps the numbers, takes PDUs from the stream, logs in, and answers
//! what the target asks of every initiator. What it sends otherwise is its user's.

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataOut, LoginRequest, LoginResponse, LoginStatus, LogoutReason, LogoutRequest, NopIn, NopOut,
    Opcode, R2t, RESERVED_TAG, ScsiCommand, padding,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use crate::hostile::{login, wire};
use crate::link::{Link, Side};

/// What it offers in login.
const OURS: &str =
    "HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=No\0MaxRecvDataSegmentLength=8192\0";

/// The end.
#[derive(Debug)]
pub struct Peer {
    /// The link's number.
    pub link: usize,
    isid: [u8; 6],
    out: Vec<u8>,
    arrived: Vec<u8>,
    /// Bytes that a Data-Out may bring.
    segment: usize,
    /// Whether it is logged in.
    pub logged_in: bool,
    /// CmdSN of the next command that is not immediate.
    pub cmd_sn: u32,
    /// The last that the target takes.
    pub max_cmd_sn: u32,
    exp_stat_sn: u32,
    next_itt: u32,
    has_left: bool,
}

impl Peer {
    /// One that has just connected, and logs in.
    #[must_use]
    pub fn new(link: usize, isid: [u8; 6], (name, target): (&str, &str)) -> Self {
        Self {
            link,
            isid,
            out: login(target, name, isid, OURS),
            arrived: Vec::new(),
            segment: 8192,
            logged_in: false,
            cmd_sn: 1,
            max_cmd_sn: 1,
            exp_stat_sn: 0,
            next_itt: 1,
            has_left: false,
        }
    }

    /// Takes what has come. Returns whether anything has.
    pub fn take(&mut self, link: &mut Link, now: Instant) -> bool {
        let bytes = link.arrived(Side::Initiator, now);
        let any = !bytes.is_empty();
        self.arrived.extend(bytes.drain(..));
        any
    }

    /// Sends what the link has room for. Returns whether anything was sent.
    pub fn give(&mut self, link: &mut Link, now: Instant) -> bool {
        let n = self.out.len().min(link.room(Side::Initiator));
        if n > 0 {
            link.send(Side::Initiator, self.out.drain(..n).collect(), now);
        }
        n > 0
    }

    /// The next PDU that has come whole, and its data.
    pub fn pdu(&mut self) -> Option<(Bhs, Vec<u8>)> {
        let bhs = Bhs(*self.arrived.first_chunk::<BHS_LEN>()?);
        let (from, len) = (BHS_LEN + bhs.ahs_len(), bhs.data_segment_len());
        let all = from + len as usize + padding(len) as usize;
        if self.arrived.len() < all {
            return None;
        }
        let pdu: Vec<u8> = self.arrived.drain(..all).collect();
        Some((bhs, pdu[from..from + len as usize].to_vec()))
    }

    /// Takes the numbers of a PDU of the target, goes on with the login, and answers a NOP-In. Returns how the login
    /// has ended, with the PDU that ends it.
    pub fn hear(&mut self, bhs: &Bhs, data: &[u8]) -> Option<LoginStatus> {
        match bhs.opcode() {
            Ok(Opcode::LoginResponse) => {
                let response = LoginResponse::parse(bhs).ok()?;
                self.count(response.max_cmd_sn, Some(response.stat_sn));
                let answer = self.agree(data);
                if response.status == LoginStatus::SUCCESS && response.nsg.is_none() {
                    let exp_stat_sn = Serial(self.exp_stat_sn);
                    let again = LoginRequest { exp_stat_sn, ..LoginRequest::straight_to_full_feature(self.isid, 1) };
                    self.send(again.emit(), answer.as_bytes());
                    return None;
                }
                self.logged_in = response.status == LoginStatus::SUCCESS;
                return Some(response.status);
            }
            Ok(Opcode::NopIn) => {
                let nop = NopIn::parse(bhs).ok()?;
                self.count(nop.max_cmd_sn, None);
                if nop.ttt != RESERVED_TAG {
                    let answer = NopOut {
                        immediate: true,
                        lun: nop.lun,
                        itt: RESERVED_TAG,
                        ttt: nop.ttt,
                        cmd_sn: Serial(self.cmd_sn),
                        exp_stat_sn: Serial(self.exp_stat_sn),
                    };
                    self.send(answer.emit(), &[]);
                }
            }
            _ => {}
        }
        None
    }

    /// Takes the numbers of a PDU.
    pub fn count(&mut self, max: Serial, stat_sn: Option<Serial>) {
        if Serial(self.max_cmd_sn) < max {
            self.max_cmd_sn = max.0;
        }
        if let Some(stat_sn) = stat_sn {
            self.exp_stat_sn = stat_sn.0.wrapping_add(1);
        }
    }

    /// ExpStatSN of what is sent next.
    #[must_use]
    pub fn exp_stat_sn(&self) -> Serial {
        Serial(self.exp_stat_sn)
    }

    /// Whether the target takes one more command.
    #[must_use]
    pub fn has_window(&self) -> bool {
        Serial(self.cmd_sn) <= Serial(self.max_cmd_sn)
    }

    /// Whether all that is to be sent is sent.
    #[must_use]
    pub fn has_sent_all(&self) -> bool {
        self.out.is_empty()
    }

    /// Sends a PDU.
    pub fn send(&mut self, bhs: Bhs, data: &[u8]) {
        self.out.extend(wire(bhs, data));
    }

    /// The tag of the next task.
    #[must_use]
    pub fn next_itt(&self) -> u32 {
        self.next_itt
    }

    /// Takes a tag for the next task.
    pub fn new_itt(&mut self) -> u32 {
        let itt = self.next_itt;
        self.next_itt += 1;
        itt
    }

    /// Sends a command that moves so many bytes. Returns its tag.
    pub fn command(&mut self, lun: u64, immediate: bool, cdb: [u8; 16], (read, write): (u32, u32)) -> u32 {
        let itt = self.new_itt();
        let command = ScsiCommand {
            immediate,
            is_final: true,
            read: read > 0,
            write: write > 0,
            lun,
            itt,
            expected_data_transfer_length: read.max(write),
            cmd_sn: Serial(self.cmd_sn),
            exp_stat_sn: Serial(self.exp_stat_sn),
            cdb,
            ..ScsiCommand::default()
        };
        if !immediate {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        self.send(command.emit(), &[]);
        itt
    }

    /// Sends what an R2T asks for; `bytes` are all of it.
    pub fn answer(&mut self, r2t: &R2t, bytes: &[u8]) {
        let piece = self.segment.min(4096);
        let count = bytes.len().div_ceil(piece);
        for (data_sn, data) in (0..).zip(bytes.chunks(piece)) {
            let out = DataOut {
                is_final: data_sn as usize + 1 == count,
                lun: r2t.lun,
                itt: r2t.itt,
                ttt: r2t.ttt,
                exp_stat_sn: Serial(self.exp_stat_sn),
                data_sn,
                buffer_offset: r2t.buffer_offset + data_sn * piece as u32,
            };
            self.send(out.emit(), data);
        }
    }

    /// Asks for the end of the session. Returns whether it does so for the first time.
    pub fn log_out(&mut self) -> bool {
        if std::mem::replace(&mut self.has_left, true) {
            return false;
        }
        let logout = LogoutRequest {
            immediate: true,
            reason: LogoutReason::CloseSession,
            itt: u32::MAX - 1,
            cid: 0,
            cmd_sn: Serial(self.cmd_sn),
            exp_stat_sn: Serial(self.exp_stat_sn),
        };
        self.send(logout.emit(), &[]);
        true
    }

    /// What it says to the target's keys: all is as the target wants it.
    fn agree(&mut self, text: &[u8]) -> String {
        let mut answer = String::new();
        for pair in String::from_utf8_lossy(text).split_terminator('\0') {
            match pair.split_once('=') {
                Some(("MaxRecvDataSegmentLength", most)) => self.segment = most.parse().unwrap_or(512),
                Some(("TargetPortalGroupTag" | "TargetAlias" | "TargetAddress", _)) | None => {}
                Some((key, _)) if is_ours(key) => {}
                Some(_) => {
                    answer.push_str(pair);
                    answer.push('\0');
                }
            }
        }
        answer
    }
}

/// Whether a key of the target's is its answer to one of ours.
fn is_ours(key: &str) -> bool {
    OURS.split_terminator('\0').any(|own| own.split_once('=').is_some_and(|(own, _)| own == key))
}
