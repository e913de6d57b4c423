//! The driver over real sockets, with a small framed echo as connection.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use iscsi_memory::{Buf, ReceiveSlice, ReceiveWindow, SendList, SendSlice};
use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
use iscsi_proto::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};

use crate::{Clock, Limits, drive, drive_with};

/// Output beyond which the echo takes no more input.
const BACKLOG: usize = 1 << 16;

/// What other threads hand in.
#[derive(Default)]
struct Mailbox {
    frames: Vec<Vec<u8>>,
    waker: Option<Waker>,
}

/// Echoes frames: a length of 4 bytes, then as many bytes, which land in a payload window of their own.
struct Echo {
    staging: Box<[u8; 64]>,
    staged: usize,
    payload: Option<(Buf, usize)>,
    output: VecDeque<Vec<u8>>,
    sent: usize,
    mailbox: Arc<Mutex<Mailbox>>,
    /// Finished after so many frames have come.
    frames_left: usize,
    ends: Vec<StreamEnd>,
    timeout: Option<Instant>,
    /// How far each timeout moves on; `None` leaves it in the past.
    timeout_step: Option<Duration>,
    timeouts: Vec<(Instant, Instant)>,
    /// Output without end, besides the frames.
    endless: bool,
    /// Its peer is to get nothing more when it is finished.
    given_up: bool,
    moved: usize,
    most_moved: usize,
    wakes: usize,
    sends: usize,
    /// How often it heard that the peer had acknowledged data.
    acknowledged: usize,
}

impl Default for Echo {
    fn default() -> Self {
        Self {
            staging: Box::new([0; 64]),
            staged: 0,
            payload: None,
            output: VecDeque::new(),
            sent: 0,
            mailbox: Arc::default(),
            frames_left: usize::MAX,
            ends: Vec::new(),
            timeout: None,
            timeout_step: None,
            timeouts: Vec::new(),
            endless: false,
            given_up: false,
            moved: 0,
            most_moved: 0,
            wakes: 0,
            sends: 0,
            acknowledged: 0,
        }
    }
}

static ENDLESS: [u8; 10_000] = [7; 10_000];

impl Echo {
    fn parse(&mut self) {
        let mut at = 0;
        while self.payload.is_none() && self.staged - at >= 4 && self.frames_left > 0 {
            let len = u32::from_be_bytes(self.staging[at..at + 4].try_into().unwrap()) as usize;
            at += 4;
            let mut payload = Buf::zeroed(len);
            let here = len.min(self.staged - at);
            payload[..here].copy_from_slice(&self.staging[at..at + here]);
            at += here;
            self.payload = Some((payload, here));
            self.finish_frame();
        }
        self.staging.copy_within(at..self.staged, 0);
        self.staged -= at;
    }

    fn finish_frame(&mut self) {
        if let Some((payload, filled)) = &self.payload
            && *filled == payload.len()
        {
            self.output.push_back(frame(payload));
            self.payload = None;
            self.frames_left -= 1;
        }
    }

    fn moved(&mut self, n: usize) {
        self.moved += n;
        self.most_moved = self.most_moved.max(self.moved);
    }
}

impl StreamConnection for Echo {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        let waiting: usize = self.output.iter().map(Vec::len).sum();
        if waiting > BACKLOG || self.frames_left == 0 {
            return ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] };
        }
        let payload = match &mut self.payload {
            Some((payload, filled)) => &mut payload[*filled..],
            None => &mut [],
        };
        ReceiveWindow { payload: ReceiveSlice::Private(payload), staging: &mut self.staging[self.staged..] }
    }

    fn handle_received(&mut self, n: usize, _: Instant) {
        self.moved(n);
        let mut rest = n;
        if let Some((payload, filled)) = &mut self.payload {
            let first = rest.min(payload.len() - *filled);
            *filled += first;
            rest -= first;
            self.finish_frame();
        }
        self.staged += rest;
        self.parse();
    }

    fn handle_stream_end(&mut self, end: StreamEnd, _: Instant) {
        self.ends.push(end);
    }

    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        if self.endless {
            while list.push(SendSlice::Private(&ENDLESS)) {}
        }
        for (i, frame) in self.output.iter().enumerate() {
            let start = if i == 0 { self.sent } else { 0 };
            if !list.push(SendSlice::Private(&frame[start..])) {
                break;
            }
        }
    }

    fn peer_acknowledged(&mut self, _: Instant) {
        self.acknowledged += 1;
    }

    fn go_on(&mut self, _: Instant) {}

    fn take_sent(&mut self, n: usize) {
        self.sends += 1;
        self.moved(n);
        if self.endless {
            return;
        }
        self.sent += n;
        while let Some(frame) = self.output.front()
            && self.sent >= frame.len()
        {
            self.sent -= frame.len();
            self.output.pop_front();
        }
    }
}

impl Connection for Echo {
    fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    fn handle_timeout(&mut self, now: Instant) {
        let due = self.timeout.expect("a timeout was asked for");
        self.timeouts.push((due, now));
        if let Some(step) = self.timeout_step {
            self.timeout = Some(now + step);
        }
    }

    fn handle_wake(&mut self, cx: &mut Context<'_>, _: Instant) {
        self.moved = 0;
        self.wakes += 1;
        let mut mailbox = self.mailbox.lock().unwrap();
        mailbox.waker = Some(cx.waker().clone());
        for frame in mailbox.frames.drain(..) {
            self.output.push_back(frame);
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up
    }

    fn is_finished(&self) -> bool {
        match self.ends.last() {
            Some(StreamEnd::Broken) => true,
            Some(StreamEnd::EndOfStream) => self.output.is_empty(),
            None => self.frames_left == 0 && self.output.is_empty(),
        }
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat()
}

/// Frames of lengths around every boundary that the echo has, one after the other.
fn frames() -> Vec<Vec<u8>> {
    let lengths = [0, 1, 3, 56, 59, 60, 61, 64, 100, 4096, 70_000, 200_000];
    (0u8..48).map(|i| frame(&vec![i; lengths[usize::from(i) % lengths.len()]])).collect()
}

/// A connected pair whose first socket has as small a send buffer as the system allows.
async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpSocket::new_v4().unwrap();
    ours.set_send_buffer_size(1).unwrap();
    let ours = ours.connect(listener.local_addr().unwrap()).await.unwrap();
    (ours, listener.accept().await.unwrap().0)
}

async fn echoes_everything(
    ours: impl crate::StreamSocket,
    peer: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    chunk: usize,
) {
    let (mut from, mut to) = tokio::io::split(Box::pin(peer));
    let mut echo = Echo::default();
    let sent = frames().concat();
    let write = async {
        for piece in sent.chunks(chunk) {
            to.write_all(piece).await.unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let read = async { from.read_to_end(&mut back).await.unwrap() };
    let (driven, (), _) = tokio::join!(drive(ours, &mut echo, Clock::process()), write, read);
    driven.unwrap();
    assert_eq!(echo.ends, [StreamEnd::EndOfStream]);
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
}

#[tokio::test]
async fn tcp_gives_back_every_byte_in_order_through_a_tiny_send_buffer() {
    let (ours, peer) = tcp_pair().await;
    echoes_everything(ours, peer, usize::MAX).await;
}

#[tokio::test]
async fn tcp_takes_any_chunking() {
    let (ours, peer) = tcp_pair().await;
    echoes_everything(ours, peer, 61).await;
}

#[tokio::test]
async fn a_unix_socket_does_as_well() {
    let (ours, peer) = UnixStream::pair().unwrap();
    echoes_everything(ours, peer, 5000).await;
}

#[tokio::test]
async fn the_last_frame_is_not_lost_to_a_reset_by_unread_input() {
    let (ours, mut peer) = tcp_pair().await;
    let mut echo = Echo { frames_left: 1, ..Echo::default() };
    let answer = vec![9; 150_000];
    let (driven, back) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        peer.write_all(&frame(&answer)).await.unwrap();
        // Bytes that the finished connection never reads: closing over them at once would reset the stream.
        peer.write_all(&[0; 100_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut back = Vec::new();
        peer.read_to_end(&mut back).await.unwrap();
        drop(peer);
        back
    });
    assert_eq!(echo.ends, [], "the connection finished by itself");
    driven.unwrap();
    assert!(back == frame(&answer));
}

#[tokio::test]
async fn a_silent_peer_holds_a_finished_connection_no_longer_than_the_linger() {
    let (ours, peer) = tcp_pair().await;
    let mut echo = Echo { frames_left: 0, ..Echo::default() };
    let limits = Limits { linger: Duration::from_millis(40), ..Limits::default() };
    let start = std::time::Instant::now();
    drive_with(ours, &mut echo, Clock::process(), limits).await.unwrap();
    assert!(start.elapsed() >= limits.linger);
    drop(peer);
}

#[tokio::test]
async fn a_reset_tells_the_connection_and_returns_the_error() {
    let (ours, mut peer) = tcp_pair().await;
    peer.write_all(&frame(&[1; 10])).await.unwrap();
    let mut head = [0; 14];
    let mut echo = Echo::default();
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        peer.read_exact(&mut head).await.unwrap();
        peer.set_zero_linger().unwrap();
        drop(peer);
    });
    assert_eq!(driven.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(echo.ends, [StreamEnd::Broken]);
}

#[tokio::test]
async fn a_connection_that_is_given_up_is_reset() {
    let (ours, mut peer) = tcp_pair().await;
    peer.write_all(&frame(&[1; 10])).await.unwrap();
    let mut echo = Echo { frames_left: 1, given_up: true, ..Echo::default() };
    drive(ours, &mut echo, Clock::process()).await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(peer.read_to_end(&mut rest).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_peer_that_resets_a_full_socket_ends_the_connection_too() {
    let (ours, mut peer) = tcp_pair().await;
    let mut echo = Echo { endless: true, ..Echo::default() };
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        peer.read_exact(&mut [0; 10]).await.unwrap();
        drop(peer);
    });
    assert!(driven.is_err());
    assert_eq!(echo.ends.last(), Some(&StreamEnd::Broken));
}

#[tokio::test]
async fn what_a_peer_acknowledges_is_told_and_what_no_data_are_is_not() {
    let clock = Clock::process();
    let step = Duration::from_millis(1);
    for (frame_len, reads) in [(40, 0), (400_000, 0), (40, 32)] {
        let (ours, mut peer) = tcp_pair().await;
        let mut echo =
            Echo { endless: reads > 0, timeout: Some(clock.now() + step), timeout_step: Some(step), ..Echo::default() };
        let (_, ()) = tokio::join!(drive(ours, &mut echo, clock), async {
            if reads == 0 {
                let frame = frame(&vec![1; frame_len]);
                peer.write_all(&frame).await.unwrap();
                peer.read_exact(&mut vec![0; frame.len()]).await.unwrap();
                // Some more timeouts, which look at what was acknowledged.
                tokio::time::sleep(step * 20).await;
            }
            for _ in 0..reads {
                peer.read_exact(&mut vec![0; 1 << 18]).await.unwrap();
                tokio::time::sleep(step * 2).await;
            }
            drop(peer);
        });
        assert!(!echo.timeouts.is_empty());
        assert_eq!(echo.acknowledged > 0, frame_len > 40 || reads > 0, "{frame_len} {reads}");
    }
}

#[tokio::test]
async fn timers_fire_when_due_and_never_early() {
    let (ours, mut peer) = tcp_pair().await;
    let clock = Clock::process();
    let step = Duration::from_millis(8);
    let mut echo = Echo { timeout: Some(clock.now() + step), timeout_step: Some(step), ..Echo::default() };
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, clock), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        peer.shutdown().await.unwrap();
    });
    driven.unwrap();
    assert!((3..=13).contains(&echo.timeouts.len()), "{} timeouts in 100 ms", echo.timeouts.len());
    assert!(echo.timeouts.iter().all(|(due, now)| now >= due), "{:?}", echo.timeouts);
}

#[tokio::test]
async fn a_timeout_that_moves_away_fires_at_its_last_place() {
    let (ours, mut peer) = tcp_pair().await;
    let clock = Clock::process();
    // The timer is armed for a minute from now, then an earlier timeout comes with a wake from outside.
    let mut echo = Echo { timeout: Some(clock.now() + Duration::from_secs(60)), ..Echo::default() };
    let early = clock.now() + Duration::from_millis(20);
    struct Hurried<'a>(&'a mut Echo, Instant);
    impl StreamConnection for Hurried<'_> {
        fn receive_window(&mut self) -> ReceiveWindow<'_> {
            self.0.receive_window()
        }
        fn handle_received(&mut self, n: usize, now: Instant) {
            self.0.handle_received(n, now);
            self.0.timeout = Some(self.1);
        }
        fn handle_stream_end(&mut self, end: StreamEnd, now: Instant) {
            self.0.handle_stream_end(end, now);
        }
        fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
            self.0.fill_send_list(list);
        }
        fn take_sent(&mut self, n: usize) {
            self.0.take_sent(n);
        }
        fn go_on(&mut self, now: Instant) {
            self.0.go_on(now);
        }
    }
    impl Connection for Hurried<'_> {
        fn poll_timeout(&self) -> Option<Instant> {
            self.0.poll_timeout()
        }
        fn handle_timeout(&mut self, now: Instant) {
            self.0.handle_timeout(now);
            self.0.timeout = None;
        }
        fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant) {
            self.0.handle_wake(cx, now);
        }
        fn is_finished(&self) -> bool {
            self.0.is_finished()
        }
    }
    let mut hurried = Hurried(&mut echo, early);
    let (driven, ()) = tokio::join!(drive(ours, &mut hurried, clock), async {
        peer.write_all(&frame(&[])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(80)).await;
        peer.shutdown().await.unwrap();
    });
    driven.unwrap();
    assert_eq!(echo.timeouts.len(), 1);
    assert!(echo.timeouts[0].1 >= early);
}

#[tokio::test]
async fn a_timeout_that_stays_in_the_past_does_not_spin() {
    let (ours, mut peer) = tcp_pair().await;
    let mut echo = Echo { timeout: Some(Instant::ZERO), ..Echo::default() };
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        peer.shutdown().await.unwrap();
    });
    driven.unwrap();
    assert!((2..=60).contains(&echo.timeouts.len()), "{} timeouts in 50 ms", echo.timeouts.len());
}

#[tokio::test]
async fn other_threads_wake_the_connection() {
    let (ours, mut peer) = tcp_pair().await;
    let mut echo = Echo::default();
    let mailbox = echo.mailbox.clone();
    let outside = std::thread::spawn(move || {
        for i in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            let mut mailbox = mailbox.lock().unwrap();
            mailbox.frames.push(frame(&[i]));
            if let Some(waker) = &mailbox.waker {
                waker.wake_by_ref();
            }
        }
    });
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        for i in 0..20 {
            let mut got = [0; 5];
            peer.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [0, 0, 0, 1, i]);
        }
        peer.shutdown().await.unwrap();
    });
    driven.unwrap();
    outside.join().unwrap();
}

#[tokio::test]
async fn a_flooded_connection_yields_after_its_budget() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let peer_thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let peer = peer.into_std().unwrap();
        runtime.block_on(async move {
            let mut peer = UnixStream::from_std(peer).unwrap();
            let mut taken = 0;
            let mut buf = vec![0; 1 << 20];
            while taken < 64 << 20 {
                taken += peer.read(&mut buf).await.unwrap();
            }
        });
    });
    let mut echo = Echo { endless: true, ..Echo::default() };
    let limits = Limits { bytes_per_wake: 100_000, ..Limits::default() };
    assert!(drive_with(ours, &mut echo, Clock::process(), limits).await.is_err(), "the peer goes away in the middle");
    peer_thread.join().unwrap();
    let list = ENDLESS.len() * SendList::CAPACITY;
    assert!(echo.most_moved <= limits.bytes_per_wake + list, "{} bytes in one pass", echo.most_moved);
    assert!(echo.wakes >= (64 << 20) / (limits.bytes_per_wake + list));
}

#[tokio::test]
async fn a_connection_of_many_small_requests_yields_after_its_time() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    // All of them are there before the first is read, four to a read.
    for _ in 0..100 {
        peer.write_all(&frame(&[5; 12])).await.unwrap();
    }
    let mut echo = Echo { frames_left: 100, ..Echo::default() };
    let limits = Limits { time_per_wake: Duration::ZERO, ..Limits::default() };
    drive_with(ours, &mut echo, Clock::process(), limits).await.unwrap();
    assert!(echo.most_moved <= 128, "{} bytes in one pass", echo.most_moved);
    assert!(echo.wakes >= 25, "{} passes", echo.wakes);
}

#[tokio::test]
async fn what_came_together_is_answered_together() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    // Four to a read, and few enough that their answers fit the backlog.
    for _ in 0..20 {
        peer.write_all(&frame(&[5; 12])).await.unwrap();
    }
    let mut echo = Echo { frames_left: 20, ..Echo::default() };
    let limits = Limits { time_per_wake: Duration::from_secs(60), ..Limits::default() };
    drive_with(ours, &mut echo, Clock::process(), limits).await.unwrap();
    assert_eq!(echo.sends, 1);
}

#[tokio::test]
async fn an_idle_connection_is_left_alone() {
    let (ours, mut peer) = tcp_pair().await;
    let mut echo = Echo::default();
    let (driven, ()) = tokio::join!(drive(ours, &mut echo, Clock::process()), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        peer.shutdown().await.unwrap();
    });
    driven.unwrap();
    assert!(echo.wakes <= 4, "{} passes without anything to do", echo.wakes);
}
