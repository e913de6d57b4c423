//! A peer at a queue pair that does anything: messages of all kinds with STags that are good, stale or made up, RDMA against the target, buffers taken back
//! while they are used, too few receives, an end at any time.

use std::collections::VecDeque;
use std::time::Duration;

use iscsi_memory::{Buf, Lease, Payload};
use iscsi_proto::time::Instant;
use iser_transport::header::{ControlHeader, Header, Hello, VERSION};
use iser_transport::queue::{Completion, QueuePair, RemoteAccess, RemoteBuffer, Stag, Work};

use crate::fabric::FabricLink;
use crate::hostile::{any_request, login};
use crate::link::Side;
use crate::rng::Rng;

/// A hostile initiator's end of a queue pair.
pub struct HostileQueue {
    /// The network's number.
    pub link: usize,
    queue: Box<dyn QueuePair>,
    rng: Rng,
    /// When it does something; the first is the login.
    deeds: VecDeque<Instant>,
    login: Option<Vec<u8>>,
    /// The login was answered; some do not wait for it.
    answered: bool,
    cmd_sn: u32,
    buffers: Vec<RemoteBuffer>,
    stale: Vec<RemoteBuffer>,
    room: usize,
    close_at: Option<Instant>,
    over: bool,
}

impl HostileQueue {
    /// A connection with a story of its own.
    #[must_use]
    pub fn new(link: usize, queue: Box<dyn QueuePair>, mut rng: Rng, target: &str, now: Instant) -> Self {
        // All that the target might ask for, so that one request does.
        let more = "HeaderDigest=None\0DataDigest=None\0RDMAExtensions=Yes\0InitialR2T=Yes\0ImmediateData=Yes\0\
                    InitiatorRecvDataSegmentLength=8192\0TargetRecvDataSegmentLength=8192\0MaxBurstLength=65536\0\
                    FirstBurstLength=8192\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0ErrorRecoveryLevel=0\0\
                    MaxConnections=1\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0MaxOutstandingR2T=1\0";
        let mut isid = [0x80, 0, 0, 0, 0, 0];
        rng.fill(&mut isid[3..]);
        let mut login = login(target, "iqn.2026-11.example.sim:hostile", isid, more);
        if rng.permille(100) {
            let at = rng.below(login.len() as u64) as usize;
            login[at] ^= 1 << rng.below(8);
        }
        let mut deeds = VecDeque::from([now]);
        let mut at = now;
        for _ in 0..rng.magnitude(1, 300) {
            at = at + Duration::from_micros(rng.magnitude(1, 20_000));
            deeds.push_back(at);
        }
        let close_at = rng.permille(700).then(|| at + Duration::from_millis(rng.below(3000)));
        let room = queue.limits().work;
        let mut hostile = Self {
            link,
            queue,
            deeds,
            login: Some(login),
            answered: rng.permille(100),
            cmd_sn: 1,
            buffers: Vec::new(),
            stale: Vec::new(),
            room,
            close_at,
            over: false,
            rng,
        };
        for _ in 0..hostile.rng.between(1, 64) {
            hostile.queue.post_receive(Buf::zeroed(9000));
        }
        hostile.queue.ring();
        hostile
    }

    /// A buffer of the peer's or our own, as a bad memory knows it.
    fn any_buffer(&mut self) -> RemoteBuffer {
        let known = if self.rng.permille(800) { &self.buffers } else { &self.stale };
        let mut buffer = match known.len() {
            0 => RemoteBuffer { stag: Stag(self.rng.u64() as u32), offset: self.rng.u64() },
            n => known[self.rng.below(n as u64) as usize],
        };
        if self.rng.permille(50) {
            buffer.offset = buffer.offset.wrapping_add(self.rng.u64() >> self.rng.below(64));
        }
        buffer
    }

    fn send(&mut self, bytes: &[u8], invalidate: Option<Stag>) {
        let mut message = Buf::zeroed(bytes.len());
        message.copy_from_slice(bytes);
        let message = Lease::whole(Payload::Buf(message));
        self.queue.post(Work::Send { id: 0, message, invalidate });
    }

    fn act(&mut self) {
        if self.room == 0 {
            return;
        }
        self.room -= 1;
        if let Some(login) = self.login.take() {
            let message = [&Header::Control(ControlHeader::default()).emit()[..], &login].concat();
            return self.send(&message, None);
        }
        match self.rng.below(100) {
            0..80 => {
                let mut buffer = |chance| {
                    let access = [RemoteAccess::Read, RemoteAccess::Write][self.rng.below(2) as usize];
                    if self.rng.permille(300) {
                        let memory = Payload::Buf(Buf::zeroed(self.rng.magnitude(1, 1 << 17) as usize));
                        self.buffers.extend(self.queue.advertise(memory, access).ok());
                    }
                    self.rng.permille(chance).then(|| self.any_buffer())
                };
                let header = ControlHeader { write: buffer(600), read: buffer(600) };
                let request = any_request(&mut self.rng, &mut self.cmd_sn);
                let mut message = [&Header::Control(header).emit()[..], &request].concat();
                if self.rng.permille(30) {
                    let at = self.rng.below(message.len() as u64) as usize;
                    message[at] = self.rng.u64() as u8;
                }
                self.send(&message, None);
            }
            80..82 => {
                let mut garbage = vec![0; self.rng.magnitude(1, 9000) as usize];
                self.rng.fill(&mut garbage);
                self.send(&garbage, None);
            }
            82..84 => {
                let hello =
                    Header::Hello(Hello { max_version: VERSION, min_version: VERSION, ird: self.rng.u64() as u16 });
                self.send(&hello.emit(), None);
            }
            84 => {
                let stag = Stag(self.rng.u64() as u32);
                self.send(&[0; 76], Some(stag));
            }
            85 => {
                let (to, from) = (self.any_buffer(), Lease::whole(Payload::Buf(Buf::zeroed(512))));
                self.queue.post(Work::Write { id: 0, from, to });
            }
            86 => {
                let (from, into) = (self.any_buffer(), Lease::whole(Payload::Buf(Buf::zeroed(512))));
                self.queue.post(Work::Read { id: 0, into, from });
            }
            _ => {
                self.room += 1;
                // Perhaps just while the target works with it.
                if !self.buffers.is_empty() {
                    let at = self.rng.below(self.buffers.len() as u64) as usize;
                    let buffer = self.buffers.swap_remove(at);
                    self.queue.withdraw(buffer.stag);
                    self.stale.push(buffer);
                }
            }
        }
    }

    /// Does what is due, and takes what came. Returns whether anything was done.
    pub fn run(&mut self, fabric: &mut FabricLink, now: Instant) -> bool {
        let mut any = fabric.advance(now);
        while (self.answered || self.login.is_some()) && self.deeds.front().is_some_and(|at| *at <= now) {
            self.deeds.pop_front();
            self.act();
            any = true;
        }
        if self.close_at.is_some_and(|at| at <= now) {
            self.close_at = None;
            if self.rng.permille(500) {
                self.queue.disconnect();
            } else {
                self.queue.abort();
            }
            any = true;
        }
        while let Some(completion) = self.queue.poll() {
            any = true;
            self.answered |= matches!(completion, Completion::Received { .. });
            match completion {
                Completion::Received { buf, .. } if self.rng.permille(970) => self.queue.post_receive(buf),
                Completion::Done { .. } | Completion::Flushed { .. } => self.room += 1,
                Completion::Ended(_) => self.over = true,
                _ => {}
            }
        }
        if any {
            self.queue.ring();
            fabric.stir(now);
        }
        any
    }

    /// Ends the connection now.
    pub fn close(&mut self) {
        self.deeds.clear();
        self.close_at = Some(Instant::ZERO);
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// When it has something to do next.
    #[must_use]
    pub fn next(&self, fabric: &FabricLink, now: Instant) -> Option<Instant> {
        let deed = self.deeds.front().copied().filter(|_| self.answered || self.login.is_some());
        let ready = fabric.is_ready(Side::Initiator).then_some(now);
        [deed, self.close_at, fabric.next(now), ready].into_iter().flatten().min()
    }
}
