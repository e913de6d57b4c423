//! What connections and sessions cost `ramdisk serve` in memory of its own, and what is left when they have gone.
//!
//! `cargo test -p examples --test memory -- --nocapture` prints the figures. Bounds are in bytes, never in time: memory
//! is looked at until it is within its bound, and the limit of that wait is far beyond what it takes.
#![cfg(target_os = "linux")]

#[expect(dead_code, reason = "each test program uses a part of the module")]
mod program;

#[path = "memory/logins.rs"]
mod logins;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use initiator_core::{Session, Url};
use iscsi_proto::pdu::{BHS_LEN, Bhs, LoginRequest, Opcode, ScsiCommand};
use iscsi_proto::serial::Serial;
use program::{Serving, TARGET, TempFile};
use rustix::process::{Resource, getrlimit, setrlimit};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const ROUNDS: usize = 5;
/// How long memory may take to come within its bound.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of a RAM LUN and a file LUN, and what it took when it had served one session. One at a time, so that the
/// machine's limit of open files is enough.
struct Measured {
    serving: Serving,
    start: u64,
    _image: TempFile,
    _alone: MutexGuard<'static, ()>,
}

impl Measured {
    fn new(name: &str, iser: bool) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
        let image = TempFile::new(name, b"");
        std::fs::File::options().write(true).open(image.path()).unwrap().set_len(64 * MIB).unwrap();
        let line = format!("--workers 2 --target {TARGET} --lun 16M --lun file:{}", image.path());
        let serving = if iser { Serving::iser(&line) } else { Serving::ramdisk(&line) };
        let mut measured = Self { serving, start: 0, _image: image, _alone: alone };
        drop(RawSession::log_in(&measured.serving.portal(), 0));
        measured.start = measured.memory();
        measured
    }

    /// Bytes of anonymous memory that are resident: what no file stands behind.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.serving.pid());
        let rollup = std::fs::read_to_string(path).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * KIB
    }

    /// Bytes more than at the start, as soon as they are fewer than `bound`.
    #[track_caller]
    fn grown(&self, bound: u64, what: &str) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            let more = self.memory().saturating_sub(self.start);
            if more < bound {
                return more;
            }
            assert!(Instant::now() < until, "{what}: {more} bytes more than at the start, which is not below {bound}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All have gone.
    #[track_caller]
    fn has_given_back(&self) -> u64 {
        self.grown(16 * MIB, "at the end")
    }
}

/// An initiator that is not held to taking what it asked for.
struct RawSession {
    stream: TcpStream,
    cmd_sn: u32,
}

impl RawSession {
    fn log_in(portal: &str, number: usize) -> Self {
        let mut session = Self { stream: TcpStream::connect(portal).unwrap(), cmd_sn: 1 };
        let text = format!(
            "InitiatorName=iqn.2026-11.example:{number}\0TargetName={TARGET}\0SessionType=Normal\0\
             MaxRecvDataSegmentLength=262144\0"
        );
        session.send(LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 9).emit(), text.as_bytes());
        let answer = session.receive();
        assert_eq!((answer.opcode(), answer.0[36]), (Ok(Opcode::LoginResponse), 0));
        // The first command to each LUN hears of what was before it.
        for lun in [0, 1] {
            session.command(lun, &[0; 16], 0);
            assert_eq!(session.receive().opcode(), Ok(Opcode::ScsiResponse));
        }
        session
    }

    fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_segment_len(data.len() as u32);
        let mut bytes = [&bhs.0, data].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes).unwrap();
    }

    fn receive(&mut self) -> Bhs {
        let mut header = [0; BHS_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let bhs = Bhs(header);
        let mut data = vec![0; bhs.data_segment_len().next_multiple_of(4) as usize];
        self.stream.read_exact(&mut data).unwrap();
        bhs
    }

    fn command(&mut self, lun: u64, cdb: &[u8; 16], length: u32) {
        let command = ScsiCommand {
            read: length > 0,
            lun: lun << 48,
            itt: self.cmd_sn,
            expected_data_transfer_length: length,
            cmd_sn: Serial(self.cmd_sn),
            cdb: *cdb,
            ..ScsiCommand::default()
        };
        self.cmd_sn += 1;
        self.send(command.emit(), &[]);
    }

    /// READ (10) of 256 KiB of the file LUN.
    fn ask(&mut self) {
        let mut cdb = [0; 16];
        (cdb[0], cdb[7]) = (0x28, 2);
        self.command(1, &cdb, 256 << 10);
    }
}

#[test]
fn silent_connections() {
    let measured = Measured::new("silent", false);
    let portal = measured.serving.portal();
    // As many as may be there at a time.
    let silent: Vec<_> = (0..250).map(|_| TcpStream::connect(&portal).unwrap()).collect();
    std::thread::sleep(Duration::from_secs(1));
    let each = measured.memory().saturating_sub(measured.start) / silent.len() as u64;
    println!("250 silent connections: {each} bytes each");
    assert!(each < 16 * KIB);
    drop(silent);
    for round in 1..=ROUNDS {
        let silent: Vec<_> = (0..1000).map(|_| TcpStream::connect(&portal).unwrap()).collect();
        let more = measured.grown(1000 * 16 * KIB, "1,000 silent connections");
        drop(silent);
        let left = measured.has_given_back();
        println!(
            "1,000 silent connections, round {round}: {} KiB more, {} KiB when they have gone",
            more / KIB,
            left / KIB
        );
    }
}

/// 400 sessions that have read and written, and are idle since.
fn idle_sessions(name: &str, iser: bool) {
    let measured = Measured::new(name, iser);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 1..=ROUNDS {
        let sessions: Vec<Session> = runtime.block_on(async {
            let mut sessions = Vec::new();
            for _ in 0..400 {
                let url = |lun| if iser { measured.serving.iser_url(lun) } else { measured.serving.url(lun) };
                let session = Session::from_url(&url(0).parse::<Url>().unwrap()).await.unwrap();
                for lun in [0, 1] {
                    let disk = session.disk(lun).await.unwrap();
                    let mut data = vec![3; 256 << 10];
                    disk.write(0, &data).await.unwrap();
                    disk.read(0, &mut data).await.unwrap();
                }
                sessions.push(session);
            }
            sessions
        });
        let more = measured.grown(400 * 64 * KIB, "400 idle sessions");
        runtime.block_on(async {
            for session in sessions {
                session.logout().await.unwrap();
            }
        });
        let left = measured.has_given_back();
        println!(
            "400 idle sessions, iSER {iser}, round {round}: {} bytes each, {} KiB when they have gone",
            more / 400,
            left / KIB
        );
    }
}

#[test]
fn idle_sessions_over_tcp() {
    idle_sessions("idle", false);
}

#[test]
fn idle_sessions_over_iwarp() {
    idle_sessions("idle-iser", true);
}

#[test]
fn sessions_that_do_not_read() {
    let measured = Measured::new("unread", false);
    let portal = measured.serving.portal();
    let mut hogs: Vec<_> = (1..=100).map(|number| RawSession::log_in(&portal, number)).collect();
    let mut most = 0;
    for hog in &mut hogs {
        (0..100).for_each(|_| hog.ask());
        most = most.max(measured.memory().saturating_sub(measured.start));
    }
    // Another one is served all the same.
    let mut reader = RawSession::log_in(&portal, 1000);
    for _ in 0..100 {
        reader.ask();
        let mut got = 0;
        while got < 256 << 10 {
            let bhs = reader.receive();
            assert_eq!(bhs.opcode(), Ok(Opcode::DataIn));
            got += bhs.data_segment_len();
        }
        most = most.max(measured.memory().saturating_sub(measured.start));
    }
    println!("100 sessions that read nothing of 100 READs of 256 KiB each: at most {} KiB more", most / KIB);
    assert!(most < 80 * MIB, "{most} bytes more than at the start");
    drop((hogs, reader));
    println!("{} KiB when they have gone", measured.has_given_back() / KIB);
}
