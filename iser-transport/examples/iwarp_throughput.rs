//! How fast RDMA goes over an ordinary TCP connection to 127.0.0.1, beside what bare TCP does on the same machine in
//! the same run.
//!
//! Two threads, each with one end. For each size of transfer, RDMA Writes and RDMA Reads from one store's lent memory
//! to another's, so many at a time, then the same bytes as a bare stream: one thread in `write`, the other in `read`,
//! in pieces of at most 256 KiB, out of and into as much memory. The CPU ratio compares processor time for the
//! same bytes, which other work on the machine disturbs less than it does the speed.
//!
//! ```text
//! cargo run --release -p iser-transport --example iwarp_throughput [MiB per measurement] [EMSS]
//! ```
//!
//! The EMSS is what the kernel says of the connection, unless one is given: 65535 makes FPDUs as long as they can be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use iscsi_memory::{Buf, Lease, Payload, Region, RegionSlice, SendList, socket};
use iscsi_proto::connection::StreamEnd;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::queue::{Completion, QueuePair, RemoteAccess, RemoteBuffer, Stag, StreamQueue, Work};
use rustix::event::{PollFd, PollFlags, poll};

/// Transfers under way at a time.
const DEPTH: u64 = 8;
/// Rounds, of which the median counts.
const ROUNDS: usize = 5;

/// What is measured.
#[derive(Clone, Copy)]
enum Direction {
    Write,
    Read,
}

/// One end, driven by its own thread.
struct Driver {
    queue: IwarpQueue,
    stream: TcpStream,
    /// The socket had no more to give, or took no more.
    starved: bool,
    full: bool,
}

impl Driver {
    fn new(stream: TcpStream, connect: bool, crc: bool) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_nonblocking(true).expect("a non-blocking socket");
        let given = std::env::args().nth(2).and_then(|arg| arg.parse().ok());
        let emss = given.unwrap_or_else(|| socket::segment_size(&stream).unwrap_or(1460));
        let config = IwarpConfig { crc, emss, seed: 1 + u64::from(connect), ..IwarpConfig::default() };
        let queue = if connect { IwarpQueue::connect(config) } else { IwarpQueue::accept(config) };
        Self { queue, stream, starved: false, full: false }
    }

    /// Sends and receives what can be without waiting. Whether anything moved.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        self.full = false;
        let mut list = SendList::default();
        self.queue.fill_send_list(&mut list);
        if !list.is_empty() {
            match socket::send(&self.stream, &list) {
                Ok(n) => {
                    self.full = n < list.len();
                    self.queue.handle_sent(n);
                    moved = true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.full = true,
                Err(_) => self.queue.handle_stream_end(StreamEnd::Broken),
            }
        }
        let mut window = self.queue.receive_window();
        self.starved = false;
        if !window.is_empty() {
            match socket::receive(&self.stream, &mut window) {
                Ok(0) => self.queue.handle_stream_end(StreamEnd::EndOfStream),
                Ok(n) => {
                    self.queue.handle_received(n);
                    moved = true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.starved = true,
                Err(_) => self.queue.handle_stream_end(StreamEnd::Broken),
            }
        }
        moved
    }

    /// The next completion, waited for.
    fn next(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.queue.poll() {
                return completion;
            }
            if !self.turn() {
                let flags = if self.full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                let _ = poll(&mut [PollFd::new(&self.stream, flags)], None);
            }
        }
    }

    /// Moves on without waiting longer than for the socket, until there is no more to send.
    fn flush(&mut self) {
        while self.queue.backlog() > 0 {
            if !self.turn() {
                let _ = poll(&mut [PollFd::new(&self.stream, PollFlags::IN | PollFlags::OUT)], None);
            }
        }
    }
}

fn store(len: usize) -> RegionSlice {
    let region = Region::mapped(len as u64, u64::MAX).expect("memory");
    region.reserve_for_write(0, len as u64).expect("memory");
    region.write(0, &vec![0x5a; len]);
    region.slice(0, len)
}

/// A Send of 16 bytes that names an advertised buffer.
fn name(buffer: RemoteBuffer) -> Lease {
    let mut buf = Buf::zeroed(16);
    buf[..4].copy_from_slice(&buffer.stag.0.to_be_bytes());
    buf[8..].copy_from_slice(&buffer.offset.to_be_bytes());
    Lease::whole(Payload::Buf(buf))
}

fn named(buf: &Buf) -> RemoteBuffer {
    let mut offset = [0; 8];
    offset.copy_from_slice(&buf[8..16]);
    RemoteBuffer {
        stag: Stag(u32::from_be_bytes([buf[0], buf[1], buf[2], buf[3]])),
        offset: u64::from_be_bytes(offset),
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    (near, listener.accept().expect("a connection").0)
}

/// The passive end: advertises its store, and serves until the other leaves.
fn serve(stream: TcpStream, len: usize, access: RemoteAccess, crc: bool) -> u64 {
    let mut driver = Driver::new(stream, false, crc);
    for _ in 0..4 {
        driver.queue.post_receive(Buf::zeroed(64));
    }
    let buffer = driver.queue.advertise(Payload::Region(store(len)), access).expect("room");
    driver.queue.post(Work::Send { id: 0, message: name(buffer), invalidate: None });
    driver.queue.ring();
    loop {
        match driver.next() {
            // The other end is done: so is this one.
            Completion::Received { len: 3, .. } => {
                driver.queue.post(Work::Send { id: 1, message: name(buffer), invalidate: None });
                driver.queue.ring();
            }
            Completion::Ended(_) => return driver.queue.copied(),
            _ => {}
        }
    }
}

/// Bytes per second of `total` bytes by transfers of `len`, and how many were copied at both ends.
fn rdma(direction: Direction, len: usize, total: u64, crc: bool) -> (f64, u64) {
    let (near, far) = sockets();
    let access = match direction {
        Direction::Write => RemoteAccess::Write,
        Direction::Read => RemoteAccess::Read,
    };
    let server = thread::spawn(move || serve(far, len * DEPTH as usize, access, crc));
    let mut driver = Driver::new(near, true, crc);
    driver.queue.post_receive(Buf::zeroed(64));
    driver.queue.post_receive(Buf::zeroed(64));
    driver.queue.post(Work::Send { id: 0, message: Lease::whole(Payload::Buf(Buf::zeroed(2))), invalidate: None });
    driver.queue.ring();
    let buffer = loop {
        if let Completion::Received { buf, .. } = driver.next() {
            break named(&buf);
        }
    };
    let transfers = (total / len as u64).max(DEPTH * 2);
    let slices: Vec<_> = (0..DEPTH).map(|_| store(len)).collect();
    let transfer = |id: u64| {
        let lease = Lease::whole(Payload::Region(slices[(id % DEPTH) as usize].clone()));
        let far = RemoteBuffer { offset: buffer.offset + id % DEPTH * len as u64, ..buffer };
        match direction {
            Direction::Write => Work::Write { id, from: lease, to: far },
            Direction::Read => Work::Read { id, into: lease, from: far },
        }
    };
    let begin = Instant::now();
    for id in 0..DEPTH {
        driver.queue.post(transfer(id));
    }
    driver.queue.ring();
    let mut done = 0;
    while done < transfers {
        if let Completion::Done { .. } = driver.next() {
            done += 1;
            if done + DEPTH <= transfers {
                driver.queue.post(transfer(done + DEPTH - 1));
                driver.queue.ring();
            }
        }
    }
    // Writes are there when the answer to a Send behind them is.
    driver.queue.post(Work::Send { id: 0, message: Lease::whole(Payload::Buf(Buf::zeroed(3))), invalidate: None });
    driver.queue.ring();
    while !matches!(driver.next(), Completion::Received { .. }) {}
    let seconds = begin.elapsed().as_secs_f64();
    driver.queue.disconnect();
    driver.flush();
    let copied = driver.queue.copied();
    drop(driver);
    let copied = copied + server.join().expect("the other end");
    ((transfers * len as u64) as f64 / seconds, copied)
}

/// Bytes per second of a bare stream, out of and into as much memory as transfers of `len` use.
fn bare(len: usize, total: u64) -> f64 {
    let (mut near, mut far) = sockets();
    let piece = (256 << 10).min(len);
    let memory = len * DEPTH as usize;
    let pieces = total / piece as u64;
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; memory];
        let mut at = 0;
        loop {
            let end = memory.min(at + piece);
            match far.read(&mut bytes[at..end]).expect("bytes") {
                0 => break,
                n => at = (at + n) % memory,
            }
        }
        far.write_all(&[1]).expect("an answer");
    });
    let bytes = vec![0x5a; memory];
    let begin = Instant::now();
    for piece in bytes.chunks(piece).cycle().take(pieces as usize) {
        near.write_all(piece).expect("a write");
    }
    near.shutdown(std::net::Shutdown::Write).expect("a half close");
    near.read_exact(&mut [0]).expect("an answer");
    let seconds = begin.elapsed().as_secs_f64();
    reader.join().expect("the reader");
    (pieces * piece as u64) as f64 / seconds
}

/// Processor time that this process has used, in seconds.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mib: u64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1024);
    let total = mib << 20;
    bare(1 << 20, total);
    println!(
        "{:>8} {:>5} {:>6}  {:>10} {:>10} {:>6} {:>8}",
        "transfer", "", "CRC", "RDMA MB/s", "bare MB/s", "ratio", "copied"
    );
    for crc in [false, true] {
        for len in [64 << 10, 256 << 10, 1 << 20] {
            for (name, direction) in [("write", Direction::Write), ("read", Direction::Read)] {
                let mut speeds = (Vec::new(), Vec::new());
                let mut copied = 0;
                let mut busy = [0.0; 2];
                for _ in 0..ROUNDS {
                    let begin = processor_time();
                    let (speed, bytes) = rdma(direction, len, total, crc);
                    speeds.0.push(speed / 1e6);
                    copied = bytes;
                    let between = processor_time();
                    speeds.1.push(bare(len, total) / 1e6);
                    busy[0] += between - begin;
                    busy[1] += processor_time() - between;
                    thread::sleep(Duration::from_millis(20));
                }
                let (rdma, bare) = (median(speeds.0), median(speeds.1));
                let share = copied as f64 / total as f64 * 100.0;
                println!(
                    "{:>5} KiB {name:>5} {:>6}  {rdma:>10.0} {bare:>10.0} {:>6.2} {:>9.2} {share:>7.1}%",
                    len >> 10,
                    if crc { "on" } else { "off" },
                    rdma / bare,
                    busy[1] / busy[0],
                );
            }
        }
    }
}
