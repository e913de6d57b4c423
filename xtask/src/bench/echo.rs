//! A bare iSCSI echo: the floor that the target is measured against.
//!
//! It logs the initiator in with the real login machine, then parses each header by hand and answers every read from
//! one buffer and every write with GOOD, one `read` and one `write` per epoll wake. It has no task table, no command
//! window, no device server and no store: what it costs is the price of the sockets and of touching the headers.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use iscsi_proto::login::{
    Admission, Authority, Identity, LoginOutcome, Offer, Refusal, TargetLogin, TargetLoginConfig,
};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{BHS_LEN, Bhs, LoginRequest, padding};
use rustix::event::epoll;

/// Bytes that the fake disk claims.
const DISK_BYTES: u64 = 1 << 30;

struct Anyone;

impl Authority for Anyone {
    fn admit(&self, _: &Identity) -> Result<Admission, Refusal> {
        Ok(Admission {
            target_portal_group_tag: Some(1),
            target_alias: None,
            accounts: Vec::new(),
            joins: None,
            offer: Offer { max_recv_data_segment_length: 65_536, ..Offer::default() },
        })
    }

    fn establish(&self, _: &Identity, _: &Parameters) -> Result<u16, Refusal> {
        Ok(1)
    }
}

struct Peer {
    stream: TcpStream,
    login: Option<TargetLogin>,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    stat_sn: u32,
    cmd_sn: u32,
}

/// Serves until the process is ended.
pub(crate) fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("echo on {}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN)?;
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            if event.data.u64() == u64::MAX {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                epoll::add(&epoll, &stream, epoll::EventData::new_u64(peers.len() as u64), epoll::EventFlags::IN)?;
                peers.push(Some(Peer::new(stream)));
                continue;
            }
            let place = &mut peers[event.data.u64() as usize];
            if let Some(peer) = place
                && !peer.turn().unwrap_or(false)
            {
                *place = None;
            }
        }
    }
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let login = TargetLogin::new(TargetLoginConfig::default(), [7; 64]);
        Self {
            stream,
            login: Some(login),
            input: vec![0; 1 << 20],
            filled: 0,
            output: Vec::new(),
            stat_sn: 1,
            cmd_sn: 1,
        }
    }

    /// One wake: read what is there, answer every whole PDU, send. False when the peer is done.
    fn turn(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => return Ok(false),
            Ok(n) => self.filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        let mut at = 0;
        while self.filled - at >= BHS_LEN {
            let header = &self.input[at..at + BHS_LEN];
            let data = u32::from_be_bytes([0, header[5], header[6], header[7]]);
            let end = at + BHS_LEN + (data + padding(data)) as usize;
            if end > self.filled {
                break;
            }
            self.answer(at, data as usize)?;
            at = end;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        Ok(true)
    }

    fn answer(&mut self, at: usize, data: usize) -> io::Result<()> {
        let mut bhs = [0; BHS_LEN];
        bhs.copy_from_slice(&self.input[at..at + BHS_LEN]);
        if let Some(login) = &mut self.login {
            let request = LoginRequest::parse(&Bhs(bhs)).map_err(io::Error::other)?;
            let reply = login.handle_request(&request, &self.input[at + BHS_LEN..at + BHS_LEN + data], &Anyone);
            let mut header = reply.response.emit();
            header.set_data_segment_len(reply.data.len() as u32);
            self.output.extend_from_slice(&header.0);
            self.output.extend_from_slice(&reply.data);
            self.output.resize(self.output.len().next_multiple_of(4), 0);
            if let LoginOutcome::Established(grant) = reply.outcome {
                self.stat_sn = grant.next_stat_sn.0;
                self.cmd_sn = request.cmd_sn.0;
                self.login = None;
            }
            return Ok(());
        }
        let immediate = bhs[0] & 0x40 != 0;
        if !immediate {
            self.cmd_sn = u32::from_be_bytes([bhs[24], bhs[25], bhs[26], bhs[27]]).wrapping_add(1);
        }
        match bhs[0] & 0x3f {
            0x01 => self.command(&bhs),
            // NOP-Out, Task Management, Logout: the answer's opcode is the request's plus 0x20 and everything in it may
            // be zero.
            opcode @ (0x00 | 0x02 | 0x06) => {
                let mut header = [0; BHS_LEN];
                header[0] = opcode | 0x20;
                header[20..24].fill(if opcode == 0 { 0xff } else { 0 });
                self.push(header, &bhs, &[]);
            }
            _ => {}
        }
        Ok(())
    }

    fn command(&mut self, bhs: &[u8; BHS_LEN]) {
        let cdb = &bhs[32..48];
        let expected = u32::from_be_bytes([bhs[20], bhs[21], bhs[22], bhs[23]]) as usize;
        static BLOCKS: [u8; 1 << 16] = [0x5a; 1 << 16];
        let mut small = [0u8; 96];
        let data: &[u8] = match cdb[0] {
            0x08 | 0x28 | 0x88 => &BLOCKS[..expected.min(BLOCKS.len())],
            0x12 if cdb[1] & 1 == 0 => {
                small[..5].copy_from_slice(&[0, 0, 6, 2, 31]);
                small[8..36].copy_from_slice(b"BARE    ECHO            0001");
                &small[..expected.min(36)]
            }
            0x12 => {
                small[1] = cdb[2];
                &small[..expected.min(4)]
            }
            0x25 => {
                small[..4].copy_from_slice(&((DISK_BYTES / 512 - 1) as u32).to_be_bytes());
                small[6] = 2;
                &small[..expected.min(8)]
            }
            0x9e => {
                small[..8].copy_from_slice(&(DISK_BYTES / 512 - 1).to_be_bytes());
                small[10] = 2;
                &small[..expected.min(32)]
            }
            0xa0 => {
                small[3] = 8;
                &small[..expected.min(16)]
            }
            0x1a | 0x5a => {
                small[0] = 3;
                &small[..expected.min(4)]
            }
            _ => &[],
        };
        let mut header = [0; BHS_LEN];
        if data.is_empty() {
            header[0] = 0x21;
        } else {
            // Data-In with F and S: the status rides along.
            header[0] = 0x25;
            header[1] = 0x01;
            header[20..24].fill(0xff);
        }
        if bhs[1] & 0x40 != 0 && data.len() < expected {
            header[1] |= 0x02;
            header[44..48].copy_from_slice(&((expected - data.len()) as u32).to_be_bytes());
        }
        self.push(header, bhs, data);
    }

    fn push(&mut self, mut header: [u8; BHS_LEN], request: &[u8; BHS_LEN], data: &[u8]) {
        header[1] |= 0x80;
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        header[16..20].copy_from_slice(&request[16..20]);
        header[24..28].copy_from_slice(&self.stat_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[32..36].copy_from_slice(&self.cmd_sn.wrapping_add(127).to_be_bytes());
        self.stat_sn = self.stat_sn.wrapping_add(1);
        self.output.extend_from_slice(&header);
        self.output.extend_from_slice(data);
        self.output.resize(self.output.len().next_multiple_of(4), 0);
    }
}
