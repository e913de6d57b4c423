//! Runs the driver of connections over RDMA devices: two ends in this process, each a task, that send messages to and
//! fro.
//!
//! ```text
//! verbs_driver ADDRESS [--rounds N] [--peers N]
//! ```
//!
//! A wake-up that is lost shows as a round that never ends. Between rounds each end is silent for a while now and then,
//! so that its driver sleeps.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use iscsi_driver::Clock;
use iscsi_memory::{Buf, Lease, Payload};
use iscsi_proto::connection::{Connection, QueueConnection};
use iscsi_proto::time::Instant;
use iser_transport::queue::{Completion, EndCause, QueuePair, Work};
use iser_transport::verbs::{Verbs, VerbsAcceptor, VerbsConfig, VerbsError, VerbsQueue, drive_queue};

/// Messages that each end may have under way.
const WINDOW: usize = 8;

/// One end of the game: the one that serves begins, and counts.
struct Player {
    queue: VerbsQueue,
    /// Rounds that this end still begins.
    serves: usize,
    spare: Vec<Buf>,
    resume: Option<Instant>,
    received: usize,
    times: Vec<Duration>,
    served_at: VecDeque<std::time::Instant>,
    ended: Option<EndCause>,
}

impl Player {
    fn new(mut queue: VerbsQueue, serves: usize) -> Self {
        for _ in 0..2 * WINDOW {
            queue.post_receive(Buf::zeroed(4096));
        }
        let spare = (0..2 * WINDOW).map(|_| Buf::zeroed(4096)).collect();
        let (times, served_at) = (Vec::new(), VecDeque::new());
        Self { queue, serves, spare, resume: None, received: 0, times, served_at, ended: None }
    }

    fn send(&mut self) {
        let buf = self.spare.pop().unwrap_or_else(|| Buf::zeroed(4096));
        self.queue.post(Work::Send { id: 0, message: Lease::part(Payload::Buf(buf), 0, 128), invalidate: None });
    }

    fn serve(&mut self) {
        if self.serves > 0 {
            self.serves -= 1;
            self.served_at.push_back(std::time::Instant::now());
            self.send();
        }
    }

    fn take(&mut self, completion: Completion, now: Instant) {
        match completion {
            Completion::Established(_) => (0..WINDOW).for_each(|_| self.serve()),
            Completion::Received { buf, .. } => {
                self.queue.post_receive(buf);
                self.received += 1;
                match self.served_at.pop_front() {
                    // The answer to one of ours.
                    Some(at) => {
                        self.times.push(at.elapsed());
                        if self.received.is_multiple_of(50) {
                            self.resume = Some(now + Duration::from_millis(3));
                        }
                        if self.resume.is_none() {
                            self.serve();
                        }
                        if self.serves == 0 && self.served_at.is_empty() {
                            self.queue.disconnect();
                        }
                    }
                    None => self.send(),
                }
            }
            Completion::Done { memory: Payload::Buf(buf), .. } => self.spare.push(buf),
            Completion::Ended(cause) => self.ended = Some(cause),
            _ => {}
        }
    }
}

impl Connection for Player {
    fn poll_timeout(&self) -> Option<Instant> {
        self.resume
    }
    fn handle_timeout(&mut self, _: Instant) {
        self.resume = None;
        while self.served_at.len() < WINDOW && self.serves > 0 {
            self.serve();
        }
        self.queue.ring();
    }
    fn handle_wake(&mut self, _: &mut Context<'_>, _: Instant) {}
    fn is_finished(&self) -> bool {
        self.ended.is_some()
    }
}

impl QueueConnection for Player {
    fn handle_completions(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(completion) = self.queue.poll() {
            any = true;
            self.take(completion, now);
        }
        self.queue.ring();
        any
    }
}

async fn play(mut player: Player, spin: Duration) -> Player {
    let events = player.queue.events();
    drive_queue(&mut player, &events, spin, Clock::process()).await.expect("descriptors to wait with");
    player
}

async fn game(verbs: Arc<Verbs>, acceptor: Arc<VerbsAcceptor>, rounds: usize, peers: usize) -> Result<(), VerbsError> {
    let address = acceptor.local_address().expect("a listener has an address");
    let spin = verbs.spin();
    let accepting = tokio::task::spawn_local(async move {
        let mut players = Vec::new();
        for _ in 0..peers {
            let queue = acceptor.accept().await.expect("a request");
            players.push(tokio::task::spawn_local(play(Player::new(queue, 0), spin)));
        }
        for player in players {
            let player = player.await.expect("it plays");
            assert_eq!((player.ended, player.received), (Some(EndCause::PeerClosed), rounds));
        }
    });
    let mut players = Vec::new();
    for _ in 0..peers {
        let mut player = Player::new(verbs.connect(address, Duration::from_secs(5)).await?, rounds);
        player.queue.established(Duration::from_secs(5)).await?;
        players.push(tokio::task::spawn_local(play(player, spin)));
    }
    for player in players {
        let mut player = player.await.expect("it plays");
        assert_eq!((player.ended, player.received), (Some(EndCause::Closed), rounds));
        player.times.sort();
        let at = |percent: usize| player.times[(player.times.len() - 1) * percent / 100];
        println!("{rounds} rounds: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    }
    accepting.await.expect("all have played");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut address, mut rounds, mut peers) = (None, 2000, 4);
    while let Some(argument) = arguments.next() {
        let mut number = |or: usize| arguments.next().and_then(|n| n.parse().ok()).unwrap_or(or);
        match argument.as_str() {
            "--rounds" => rounds = number(rounds),
            "--peers" => peers = number(peers),
            text => address = text.parse().ok(),
        }
    }
    let Some(address) = address else {
        eprintln!("usage: verbs_driver ADDRESS [--rounds N] [--peers N]");
        return ExitCode::from(2);
    };
    let played = async {
        let verbs = Verbs::open(VerbsConfig::default())?;
        let acceptor = Arc::new(VerbsAcceptor::bind(verbs.clone(), SocketAddr::new(address, 0))?);
        // Nobody listens there, and where nothing is.
        let nobody = SocketAddr::new(address, 9);
        let mut refused = verbs.connect(nobody, Duration::from_secs(5)).await?;
        match refused.established(Duration::from_secs(5)).await {
            Err(error @ VerbsError::Rejected(_)) => println!("{error}"),
            other => panic!("a port where nobody listens: {other:?}"),
        }
        drop(refused);
        match verbs.connect(SocketAddr::from(([127, 0, 0, 1], 9)), Duration::from_secs(5)).await {
            Err(error @ VerbsError::NoDevice(_)) => println!("{error}"),
            other => panic!("an address without a device: {other:?}"),
        }
        match VerbsAcceptor::bind(verbs.clone(), SocketAddr::from(([192, 0, 2, 1], 9))) {
            Err(error @ VerbsError::NoDevice(_)) => println!("{error}"),
            other => panic!("somebody else's address: {other:?}"),
        }
        game(verbs.clone(), acceptor, rounds, peers).await?;
        assert_eq!(verbs.registered(), 0, "everything registered was given back");
        Ok::<_, VerbsError>(())
    };
    let local = tokio::task::LocalSet::new();
    match local.run_until(tokio::time::timeout(Duration::from_secs(240), played)).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("it did not end in time: a wake-up was lost");
            ExitCode::FAILURE
        }
    }
}
