//! A peer that sends anything: garbage, half a login, a login and then whatever comes to its mind.

use std::collections::VecDeque;
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataOut, LoginRequest, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG, ScsiCommand, TaskAttribute,
    TaskFunction, TaskManagementRequest, TextRequest, padding,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use crate::link::{Link, Side};
use crate::network::Network;
use crate::rng::Rng;

/// A hostile initiator's connection.
#[derive(Debug)]
pub struct Hostile {
    /// The link's number.
    pub link: usize,
    script: VecDeque<(Instant, Vec<u8>)>,
    close_at: Option<Instant>,
    closed: bool,
}

/// A PDU on the wire: header and data with padding.
#[must_use]
pub fn wire(mut bhs: Bhs, data: &[u8]) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    let mut bytes = bhs.0.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len() + padding(data.len() as u32) as usize, 0);
    bytes
}

/// A login request that goes straight to the Full Feature Phase.
#[must_use]
pub fn login(target: &str, initiator: &str, isid: [u8; 6], more: &str) -> Vec<u8> {
    let request = LoginRequest::straight_to_full_feature(isid, 1);
    let text = format!("InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0{more}");
    wire(request.emit(), text.as_bytes())
}

/// Any request of an initiator that is logged in; `cmd_sn` is the next number.
#[must_use]
pub fn any_request(rng: &mut Rng, cmd_sn: &mut u32) -> Vec<u8> {
    let itt = rng.below(12) as u32;
    let immediate = rng.permille(100);
    let number =
        Serial(if rng.permille(950) { *cmd_sn } else { cmd_sn.wrapping_add(rng.below(6) as u32).wrapping_sub(2) });
    if !immediate && number.0 == *cmd_sn {
        *cmd_sn = cmd_sn.wrapping_add(1);
    }
    let exp_stat_sn = Serial(rng.u64() as u32);
    let mut data = vec![0; rng.pick(&[0, 0, 1, 512, 1024, 4096, 8192, 9000])];
    rng.fill(&mut data);
    let mut bhs = match rng.below(12) {
        0..5 => {
            let mut cdb = [0; 16];
            rng.fill(&mut cdb);
            cdb[0] = rng.pick(&[
                0x00, 0x03, 0x12, 0x1a, 0x25, 0x28, 0x2a, 0x42, 0x5a, 0x88, 0x8a, 0x89, 0x93, 0x9e, 0xa0, 0xa3, 0x7f,
                0xff,
            ]);
            if rng.permille(700) {
                cdb[1..10].fill(0);
                cdb[9] = rng.below(80) as u8;
                cdb[10..13].fill(0);
                cdb[8] = rng.below(20) as u8;
            }
            ScsiCommand {
                immediate,
                is_final: rng.permille(700),
                read: rng.permille(500),
                write: rng.permille(400),
                attribute: rng.pick(&[
                    TaskAttribute::Simple,
                    TaskAttribute::Ordered,
                    TaskAttribute::HeadOfQueue,
                    TaskAttribute::Untagged,
                    TaskAttribute::Aca,
                ]),
                priority: 0,
                lun: if rng.permille(950) { 0 } else { rng.u64() },
                itt,
                expected_data_transfer_length: rng.pick(&[0, 512, 4096, 10_000, 1 << 20, u32::MAX]),
                cmd_sn: number,
                exp_stat_sn,
                cdb,
            }
            .emit()
        }
        5 | 6 => DataOut {
            is_final: rng.permille(500),
            lun: 0,
            itt,
            ttt: if rng.permille(500) { RESERVED_TAG } else { rng.below(40) as u32 },
            exp_stat_sn,
            data_sn: rng.below(4) as u32,
            buffer_offset: rng.pick(&[0, 512, 8192, 1 << 30]),
        }
        .emit(),
        7 => TaskManagementRequest {
            immediate,
            function: Ok(rng.pick(&[
                TaskFunction::AbortTask,
                TaskFunction::AbortTaskSet,
                TaskFunction::ClearTaskSet,
                TaskFunction::LogicalUnitReset,
                TaskFunction::TargetWarmReset,
                TaskFunction::TaskReassign,
                TaskFunction::QueryTask,
            ])),
            lun: 0,
            itt: itt + 100,
            referenced_task_tag: rng.below(12) as u32,
            cmd_sn: number,
            exp_stat_sn,
            ref_cmd_sn: Serial(cmd_sn.wrapping_sub(rng.below(4) as u32)),
            ..TaskManagementRequest::default()
        }
        .emit(),
        8 => NopOut {
            immediate,
            lun: 0,
            itt: if rng.permille(500) { RESERVED_TAG } else { itt },
            ttt: RESERVED_TAG,
            cmd_sn: number,
            exp_stat_sn,
        }
        .emit(),
        9 => {
            data = b"SendTargets=All\0".to_vec();
            TextRequest {
                immediate,
                is_final: rng.permille(700),
                incomplete: rng.permille(100),
                lun: 0,
                itt,
                ttt: RESERVED_TAG,
                cmd_sn: number,
                exp_stat_sn,
            }
            .emit()
        }
        10 if rng.permille(100) => {
            LogoutRequest { immediate, reason: LogoutReason::CloseSession, itt, cid: 0, cmd_sn: number, exp_stat_sn }
                .emit()
        }
        _ => {
            let mut header = [0; BHS_LEN];
            rng.fill(&mut header);
            header[4] = 0;
            Bhs(header)
        }
    };
    if rng.permille(50) {
        let at = rng.below(BHS_LEN as u64) as usize;
        bhs.0[at] = rng.u64() as u8;
    }
    let mut bytes = wire(bhs, &data);
    if rng.permille(20) {
        let keep = rng.below(bytes.len() as u64) as usize;
        bytes.truncate(keep);
    }
    bytes
}

impl Hostile {
    /// A connection with a script of its own.
    pub fn new(link: usize, rng: &mut Rng, target: &str, now: Instant) -> Self {
        let mut script = VecDeque::new();
        let mut at = now;
        let kind = rng.below(4);
        if kind == 0 {
            let mut garbage = vec![0; rng.magnitude(1, 4096) as usize];
            rng.fill(&mut garbage);
            script.push_back((at, garbage));
        } else {
            let more =
                "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=8192\0";
            let mut isid = [0; 6];
            rng.fill(&mut isid[3..]);
            isid[0] = 0x80;
            let mut bytes = login(target, "iqn.2026-11.example.sim:hostile", isid, more);
            if kind == 1 {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << rng.below(8);
            }
            script.push_back((at, bytes));
            let mut cmd_sn = 1;
            for _ in 0..rng.magnitude(1, 200) {
                at = at + Duration::from_micros(rng.magnitude(1, 100_000));
                script.push_back((at, any_request(rng, &mut cmd_sn)));
            }
        }
        let close_at = rng.permille(700).then(|| at + Duration::from_millis(rng.below(3000)));
        Self { link, script, close_at, closed: false }
    }

    /// A connection that says nothing.
    #[must_use]
    pub const fn silent(link: usize) -> Self {
        Self { link, script: VecDeque::new(), close_at: None, closed: false }
    }

    /// Sends what is due, and reads what came without looking at it. Returns whether anything was done.
    pub fn run(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut any = false;
        let arrived = link.arrived(Side::Initiator, now);
        any |= !arrived.is_empty();
        arrived.clear();
        while !self.closed
            && let Some((at, bytes)) = self.script.front_mut()
            && *at <= now
        {
            let n = bytes.len().min(link.room(Side::Initiator));
            if n == 0 && !bytes.is_empty() {
                break;
            }
            let rest = bytes.split_off(n);
            link.send(Side::Initiator, std::mem::replace(bytes, rest), now);
            if bytes.is_empty() {
                self.script.pop_front();
            }
            any = true;
        }
        let ended = link.end(Side::Initiator, now).is_some();
        if !self.closed && (ended || self.close_at.is_some_and(|at| at <= now)) {
            self.closed = true;
            link.close(Side::Initiator, now);
            any = true;
        }
        any
    }

    /// Closes the connection now.
    pub fn close(&mut self) {
        self.close_at = Some(Instant::ZERO);
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.closed
    }

    /// When it has something to do next.
    #[must_use]
    pub fn next(&self, network: &Network, now: Instant) -> Option<Instant> {
        let script = self.script.front().map(|(at, _)| *at).filter(|at| *at > now);
        [script, self.close_at.filter(|at| *at > now), network.next(Side::Initiator, now)].into_iter().flatten().min()
    }
}
