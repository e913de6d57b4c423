//! Two queues and the byte stream between them, cut into chunks.

use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, SendList};
use iscsi_proto::connection::StreamEnd;

use super::super::{IwarpConfig, IwarpQueue, State};
use crate::queue::{Completion, EndCause, Established, QueuePair, Stag, StreamQueue, Work};

/// How many bytes move at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunks(pub(super) u64);

impl Chunks {
    /// All at once.
    pub(super) const WHOLE: Self = Self(0);

    fn next(&mut self, most: usize) -> usize {
        if self.0 == 0 {
            return most;
        }
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let r = (self.0 >> 33) as usize;
        let scale = [1, 7, 60, 1500, 70_000][r % 5];
        (1 + (r >> 3) % scale).min(most)
    }
}

/// What the queue has to send now.
pub(super) fn output(queue: &IwarpQueue) -> Vec<u8> {
    let mut list = SendList::default();
    queue.fill_send_list(&mut list);
    let mut bytes = Vec::new();
    for piece in list.as_slice() {
        let at = bytes.len();
        bytes.resize(at + piece.len(), 0);
        piece.copy_to(&mut bytes[at..]);
    }
    bytes
}

/// All that the queue has to send, taken as sent.
pub(super) fn drain(queue: &mut IwarpQueue) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = output(queue);
        if bytes.is_empty() {
            return all;
        }
        queue.handle_sent(bytes.len());
        all.extend(bytes);
    }
}

/// Bytes come to the queue, as many at once as the window holds. How many it took.
pub(super) fn feed(queue: &mut IwarpQueue, mut bytes: &[u8]) -> usize {
    let mut taken = 0;
    while !bytes.is_empty() {
        let n = queue.receive_window().fill(bytes);
        if n == 0 {
            break;
        }
        queue.handle_received(n);
        bytes = &bytes[n..];
        taken += n;
    }
    taken
}

/// Two ends and what is on its way between them.
pub(super) struct Wire {
    pub(super) ends: [IwarpQueue; 2],
    pub(super) chunks: Chunks,
    closed: [bool; 2],
}

impl Wire {
    pub(super) fn new(client: IwarpConfig, server: IwarpConfig, chunks: Chunks) -> Self {
        Self { ends: [IwarpQueue::connect(client), IwarpQueue::accept(server)], chunks, closed: [false; 2] }
    }

    /// Established, of both, and the first of the client's Sends has come.
    pub(super) fn established(client: IwarpConfig, server: IwarpConfig) -> Self {
        let mut wire = Self::new(client, server, Chunks::WHOLE);
        wire.ends[1].post_receive(Buf::zeroed(16));
        wire.ends[0].post(Work::Send { id: u64::MAX, message: lease(b"first"), invalidate: None });
        wire.ends[0].ring();
        wire.run();
        let [client, server] = &mut wire.ends;
        assert!(matches!(client.poll(), Some(Completion::Established(_))));
        assert!(matches!(client.poll(), Some(Completion::Done { id: u64::MAX, .. })));
        assert!(matches!(server.poll(), Some(Completion::Established(_))));
        assert!(matches!(server.poll(), Some(Completion::Received { len: 5, .. })));
        wire
    }

    /// Moves one chunk each way. Whether anything moved.
    pub(super) fn step(&mut self) -> bool {
        let mut moved = false;
        for from in [0, 1] {
            let (left, right) = self.ends.split_at_mut(1);
            let (from_end, to_end) =
                if from == 0 { (&mut left[0], &mut right[0]) } else { (&mut right[0], &mut left[0]) };
            let bytes = output(from_end);
            let n = if bytes.is_empty() { 0 } else { self.chunks.next(bytes.len()) };
            if n > 0 {
                // What a closed end does not take is lost, as with a socket.
                let taken = to_end.receive_window().fill(&bytes[..n]);
                if taken > 0 {
                    to_end.handle_received(taken);
                }
                let gone = matches!(to_end.state, State::Over(_) | State::Ended);
                from_end.handle_sent(if gone { n } else { taken });
                moved = true;
            } else if matches!(from_end.state, State::Over(_) | State::Ended) && !self.closed[from] {
                self.closed[from] = true;
                to_end.handle_stream_end(StreamEnd::EndOfStream);
                moved = true;
            }
        }
        moved
    }

    pub(super) fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 5_000_000, "the ends come to no rest");
        }
    }

    pub(super) fn cut(&mut self) {
        for end in &mut self.ends {
            end.handle_stream_end(StreamEnd::Broken);
        }
        self.closed = [true; 2];
    }
}

pub(super) fn buf(bytes: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

pub(super) fn lease(bytes: &[u8]) -> Lease {
    Lease::whole(Payload::Buf(buf(bytes)))
}

pub(super) fn bytes_of(memory: &Payload) -> Vec<u8> {
    let mut bytes = alloc::vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

/// Bytes that differ from place to place.
pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

/// A completion in short, its memory checked by nobody.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Short {
    Established(Established),
    Received(Vec<u8>, Option<Stag>),
    ReceiveFlushed,
    Done(u64),
    Flushed(u64),
    Ended(EndCause),
}

pub(super) fn poll_all(queue: &mut IwarpQueue) -> Vec<Short> {
    core::iter::from_fn(|| queue.poll())
        .map(|completion| match completion {
            Completion::Established(established) => Short::Established(established),
            Completion::Received { buf, len, invalidated } => Short::Received(buf[..len].to_vec(), invalidated),
            Completion::ReceiveFlushed(_) => Short::ReceiveFlushed,
            Completion::Done { id, .. } => Short::Done(id),
            Completion::Flushed { id, .. } => Short::Flushed(id),
            Completion::Ended(cause) => Short::Ended(cause),
        })
        .collect()
}
