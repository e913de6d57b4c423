//! Over iWARP in user space, the byte stream between the ends cut in any way.

use iscsi_memory::SendList;
use iscsi_proto::connection::StreamEnd;
use iser_transport::conformance::{CASES, Connected, End, Harness, Knobs, Plan};
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::queue::{QueuePair, StreamQueue};

/// Connections of one kind, each with a seed of its own.
struct Iwarp {
    client: IwarpConfig,
    server: IwarpConfig,
    /// How the stream is cut; zero for not at all.
    chunks: u64,
    seed: u64,
}

struct Pair {
    ends: [IwarpQueue; 2],
    chunks: u64,
    closed: [bool; 2],
}

impl Harness for Iwarp {
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
        self.seed += 2;
        let config = |base: &IwarpConfig, at: usize| IwarpConfig {
            private_data: plan.private[at].to_vec(),
            ird: plan.read_depth[at],
            ord: plan.read_depth[at],
            seed: self.seed + at as u64,
            // The passive end may have something to say first.
            peer_to_peer: true,
            ..base.clone()
        };
        let ends = [IwarpQueue::connect(config(&self.client, 0)), IwarpQueue::accept(config(&self.server, 1))];
        Box::new(Pair { ends, chunks: self.chunks, closed: [false; 2] })
    }

    fn knobs(&self) -> Knobs {
        Knobs { rounds: 2, ..Knobs::default() }
    }
}

impl Pair {
    fn chunk(&mut self, most: usize) -> usize {
        if self.chunks == 0 {
            return most;
        }
        self.chunks = self.chunks.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let r = (self.chunks >> 33) as usize;
        (1 + (r >> 2) % [3, 100, 5000, 80_000][r % 4]).min(most)
    }

    /// Moves a chunk from one end to the other.
    fn carry(&mut self, from: usize) -> bool {
        let mut list = SendList::default();
        self.ends[from].fill_send_list(&mut list);
        let mut bytes = Vec::new();
        for piece in list.as_slice() {
            let at = bytes.len();
            bytes.resize(at + piece.len(), 0);
            piece.copy_to(&mut bytes[at..]);
        }
        if bytes.is_empty() {
            return false;
        }
        bytes.truncate(self.chunk(bytes.len()));
        let to = &mut self.ends[1 - from];
        let taken = to.receive_window().fill(&bytes);
        if taken > 0 {
            to.handle_received(taken);
        }
        // What an end that is over does not take is lost.
        let over = to.receive_window().is_empty();
        self.ends[from].handle_sent(if over { bytes.len() } else { taken });
        true
    }
}

impl Connected for Pair {
    fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        &mut self.ends[end as usize]
    }

    fn progress(&mut self) -> bool {
        let mut moved = false;
        for from in [0, 1] {
            if self.carry(from) {
                moved = true;
            } else if self.ends[from].receive_window().is_empty() && !self.closed[from] {
                self.closed[from] = true;
                self.ends[1 - from].handle_stream_end(StreamEnd::EndOfStream);
                moved = true;
            }
        }
        moved
    }

    fn cut(&mut self) -> bool {
        self.closed = [true; 2];
        for end in &mut self.ends {
            end.handle_stream_end(StreamEnd::Broken);
        }
        true
    }
}

#[test]
fn iwarp_passes_however_its_stream_is_cut() {
    for (round, emss) in [1460, 65_483, 1460, 1448, 200, 9000].into_iter().enumerate() {
        let config = IwarpConfig { emss, ..IwarpConfig::default() };
        let crc = IwarpConfig { crc: true, ..config.clone() };
        let (client, server) = match round % 3 {
            0 => (config.clone(), config),
            1 => (crc, config),
            _ => (config, crc),
        };
        let mut harness = Iwarp { client, server, chunks: round as u64, seed: (round as u64) << 32 };
        for case in CASES {
            println!("round {round}: {}", case.name);
            // A Write of several segments does not say how long it is: those that lie inside are placed before the one
            // that does not comes (RFC 5041 7.1).
            let whole = case.name == "bytes_outside_end_the_connection";
            for end in [&mut harness.client, &mut harness.server] {
                end.emss = if whole { emss.max(8192) } else { emss };
            }
            (case.run)(&mut harness);
        }
    }
}
