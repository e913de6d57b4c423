//! Peers that speak the protocol by hand: a pair of connections that measures how long one holds up the other, and
//! rude ones.
//!
//! What is measured is work: how much of it the target does, for whomever, from the moment that a request lies at its
//! socket until the answer is sent. Waiting costs nobody anything, and no clock of a machine is asked.

use std::io;
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataIn, LoginRequest, NopIn, NopOut, Opcode, RESERVED_TAG, ScsiCommand, ScsiResponse,
};
use iscsi_proto::serial::Serial;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use super::wire::End;
use super::work::Meter;
use super::{Fault, Log};
use crate::rng::Rng;

/// An initiator by hand.
#[derive(Debug)]
pub struct Raw {
    end: End,
    meter: Meter,
    cmd_sn: u32,
}

impl Raw {
    /// Logs in, and hears what a first command has to hear.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn log_in(end: End, meter: &Meter, target: &str, number: u8) -> io::Result<Self> {
        let mut raw = Self { end, meter: meter.clone(), cmd_sn: 1 };
        let name = "iqn.2026-11.example.sim:raw";
        let text = format!("InitiatorName={name}\0SessionType=Normal\0TargetName={target}\0");
        let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 9, number], 1);
        raw.send(request.emit(), text.as_bytes()).await?;
        let (answer, _) = raw.receive().await?;
        if (answer.opcode(), answer.0[36]) != (Ok(Opcode::LoginResponse), 0) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        raw.command(1, [0; 16], 0, &[]).await?;
        raw.answer_to(1).await?;
        Ok(raw)
    }

    async fn send(&mut self, mut bhs: Bhs, data: &[u8]) -> io::Result<()> {
        bhs.set_data_segment_len(data.len() as u32);
        let mut wire = bhs.0.to_vec();
        wire.extend_from_slice(data);
        wire.resize(wire.len().next_multiple_of(4), 0);
        self.end.write_all(&wire).await
    }

    /// The next PDU that is not the target's own. Its pings are answered.
    async fn receive(&mut self) -> io::Result<(Bhs, Vec<u8>)> {
        loop {
            let mut bhs = Bhs([0; BHS_LEN]);
            self.end.read_exact(&mut bhs.0).await?;
            let mut data = vec![0; (bhs.data_segment_len() as usize).next_multiple_of(4)];
            self.end.read_exact(&mut data).await?;
            if bhs.itt() != RESERVED_TAG {
                return Ok((bhs, data));
            }
            if let Some(ping) = NopIn::parse(&bhs).ok().filter(|ping| ping.ttt != RESERVED_TAG) {
                let cmd_sn = Serial(self.cmd_sn);
                let (lun, ttt) = (ping.lun, ping.ttt);
                let answer = NopOut { immediate: true, lun, itt: RESERVED_TAG, ttt, cmd_sn, exp_stat_sn: Serial(0) };
                self.send(answer.emit(), &[]).await?;
            }
        }
    }

    /// The next PDU of a task.
    async fn answer_to(&mut self, itt: u32) -> io::Result<(Bhs, Vec<u8>)> {
        loop {
            let (bhs, data) = self.receive().await?;
            if bhs.itt() == itt {
                return Ok((bhs, data));
            }
        }
    }

    async fn command(&mut self, itt: u32, cdb: [u8; 16], length: u32, data: &[u8]) -> io::Result<()> {
        let write = !data.is_empty();
        let command = ScsiCommand {
            read: !write && length != 0,
            write,
            itt,
            expected_data_transfer_length: length,
            cmd_sn: Serial(self.cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        self.cmd_sn += 1;
        self.send(command.emit(), data).await
    }

    /// Reads a block: the work that was done until the answer was sent.
    async fn read(&mut self, itt: u32, lba: u32) -> io::Result<Duration> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x28, 1);
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        let before = self.meter.done();
        self.command(itt, cdb, 512, &[]).await?;
        let (bhs, data) = self.answer_to(itt).await?;
        match DataIn::parse(&bhs) {
            Ok(DataIn { status: Some(status), .. }) if status.status == 0 && data.len() == 512 => {
                Ok(self.end.answered() - before)
            }
            _ => Err(io::Error::other("a read of one block was not answered with it")),
        }
    }

    /// Asks with a NOP-Out: the work that was done until the answer was sent.
    async fn ping(&mut self, itt: u32) -> io::Result<Duration> {
        let cmd_sn = Serial(self.cmd_sn);
        let nop = NopOut { immediate: true, lun: 0, itt, ttt: RESERVED_TAG, cmd_sn, exp_stat_sn: Serial(0) };
        let before = self.meter.done();
        self.send(nop.emit(), b"ping").await?;
        let (bhs, data) = self.answer_to(itt).await?;
        if (bhs.opcode(), &data[..]) != (Ok(Opcode::NopIn), b"ping") {
            return Err(io::Error::other("a NOP-Out was not answered with its data"));
        }
        Ok(self.end.answered() - before)
    }
}

/// What a pair of connections asks.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Questions.
    pub questions: u64,
    /// Big commands are for these blocks.
    pub room: std::ops::Range<u64>,
    /// Reads are answered as fast as pings: the store takes no time.
    pub reads: bool,
    /// How much work may be done until an answer, by the number of connections.
    pub bound: fn(&Meter, usize) -> Duration,
}

/// Has one connection do big commands, and asks on both meanwhile.
///
/// # Errors
/// Those of the streams.
pub async fn probe(
    (mut long, mut other): (Raw, Raw),
    probe: Probe,
    connections: impl Fn() -> usize,
    rng: &mut Rng,
    (log, fault): (&Log, &Fault),
) -> io::Result<()> {
    let mut big = None;
    for question in 0..probe.questions as u32 {
        if big.is_none() {
            let itt = 0x1000 + question;
            let blocks = rng.between(1, probe.room.end - probe.room.start);
            let lba = rng.between(probe.room.start, probe.room.end - blocks);
            let mut cdb = [0; 16];
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
            if rng.permille(600) {
                cdb[0] = 0x93;
                long.command(itt, cdb, 512, &[0xa5; 512]).await?;
            } else {
                cdb[0] = 0x8f;
                long.command(itt, cdb, 0, &[]).await?;
            }
            log.event(format_args!("probe: {:02x}h of {blocks} blocks", cdb[0]));
            big = Some(itt);
        }
        let most = (probe.bound)(&long.meter, connections());
        let asked = if probe.reads && rng.permille(500) {
            ("a read", other.read(0x100 + question, probe.room.start as u32).await?)
        } else if rng.permille(500) {
            ("a ping", other.ping(0x200 + question).await?)
        } else {
            match long.ping_beside(0x300 + question, &mut big).await? {
                Some(held) => ("a ping beside a big command", held),
                None => continue,
            }
        };
        log.event(format_args!("probe: {} after {:?} of work, of {most:?}", asked.0, asked.1));
        if asked.1 > most {
            fault.found(format!("{} is answered after {:?} of work, of {most:?} at most", asked.0, asked.1));
        }
        if rng.permille(300) {
            sleep(Duration::from_micros(rng.magnitude(10, 5000))).await;
        }
    }
    if let Some(itt) = big {
        long.end_of(itt).await?;
    }
    Ok(())
}

impl Raw {
    async fn end_of(&mut self, itt: u32) -> io::Result<()> {
        let (bhs, _) = self.answer_to(itt).await?;
        good(&bhs)
    }

    /// A NOP-Out while a big command of the same connection is under way; nothing when that ends first.
    async fn ping_beside(&mut self, itt: u32, big: &mut Option<u32>) -> io::Result<Option<Duration>> {
        let cmd_sn = Serial(self.cmd_sn);
        let nop = NopOut { immediate: true, lun: 0, itt, ttt: RESERVED_TAG, cmd_sn, exp_stat_sn: Serial(0) };
        let before = self.meter.done();
        self.send(nop.emit(), b"ping").await?;
        let mut beside = true;
        loop {
            let (bhs, _) = self.receive().await?;
            if bhs.itt() == itt {
                return Ok(beside.then(|| self.end.answered() - before));
            }
            if Some(bhs.itt()) == *big {
                good(&bhs)?;
                (*big, beside) = (None, false);
            }
        }
    }
}

fn good(bhs: &Bhs) -> io::Result<()> {
    match ScsiResponse::parse(bhs) {
        Ok(response) if response.status == 0 => Ok(()),
        other => Err(io::Error::other(format!("a big command ended with {other:?}"))),
    }
}

/// Sends what it likes, and goes: nothing, a part of a login, a part of a command, any bytes.
pub async fn be_rude(end: End, meter: &Meter, target: &str, number: u8, rng: &mut Rng) {
    let wait = Duration::from_micros(rng.magnitude(10, 20_000_000));
    match rng.below(4) {
        0 => {
            let _silent = end;
            sleep(wait).await;
        }
        1 => {
            let mut end = end;
            let mut bytes = vec![0; rng.magnitude(1, 4096) as usize];
            rng.fill(&mut bytes);
            let _ = end.write_all(&bytes).await;
            sleep(wait).await;
        }
        2 => {
            let mut end = end;
            let mut request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 8, number], 1).emit();
            request.set_data_segment_len(4096);
            let n = rng.below(BHS_LEN as u64) as usize;
            let _ = end.write_all(&request.0[..n]).await;
            sleep(wait).await;
        }
        _ => {
            let Ok(mut raw) = Raw::log_in(end, meter, target, 100 + number).await else { return };
            // Data that it owes for ever, to a big command or a small one.
            let mut cdb = [0; 16];
            (cdb[0], cdb[8]) = (0x2a, rng.between(1, 255) as u8);
            // What it does not send does not land: blocks that nobody knows the content of are asked for.
            cdb[2..6].copy_from_slice(&512u32.to_be_bytes());
            let command = ScsiCommand {
                write: true,
                itt: 7,
                expected_data_transfer_length: u32::from(cdb[8]) * 512,
                cmd_sn: Serial(raw.cmd_sn),
                cdb,
                ..ScsiCommand::default()
            };
            let _ = raw.send(command.emit(), &[]).await;
            sleep(wait).await;
        }
    }
}
