//! Runs the cases that every provider of queue pairs passes over RDMA devices of this machine, both ends in this
//! process.
//!
//! ```text
//! verbs_conformance ADDRESS... [--case NAME] [--steps N]
//! ```
//!
//! Each address belongs to an interface with an RDMA device: a card, soft RoCE or soft iWARP. At the end of each
//! connection everything that was registered must have been given back.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iser_transport::conformance::{CASES, Connected, End, Harness, Knobs, Plan};
use iser_transport::queue::QueuePair;
use iser_transport::verbs::{Connecting, Verbs, VerbsConfig, VerbsListener, VerbsQueue};

struct Device {
    address: IpAddr,
    iwarp: bool,
    steps: u32,
}

struct Pair {
    queues: Option<[VerbsQueue; 2]>,
    users: [Arc<Verbs>; 2],
}

/// Tries until something is there, for at most 5 seconds.
fn wait<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn user(plan: &Plan, end: End) -> Arc<Verbs> {
    let config = VerbsConfig {
        private: plan.private[end as usize].to_vec(),
        read_depth: plan.read_depth[end as usize] as u8,
        // Both ends advertise.
        shares_domain: false,
        // A busy machine that does not send for a second is no peer that is gone.
        linger: Duration::from_secs(5),
        ..VerbsConfig::default()
    };
    Verbs::open(config).unwrap_or_else(|error| panic!("{error}"))
}

impl Harness for Device {
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
        let users = End::BOTH.map(|end| user(plan, end));
        let any = SocketAddr::new(self.address, 0);
        let listener = VerbsListener::bind(users[1].clone(), any).unwrap_or_else(|error| panic!("{error}"));
        let address = listener.local_address().expect("a listener has an address");
        let mut connecting =
            Connecting::start(users[0].clone(), address, 2000).unwrap_or_else(|error| panic!("{error}"));
        let mut active = wait("a way to the peer", || connecting.poll().unwrap_or_else(|error| panic!("{error}")));
        self.iwarp = active.device().iwarp;
        active.progress();
        let passive = wait("a request", || {
            active.progress();
            listener.poll_request().unwrap_or_else(|error| panic!("{error}"))
        });
        Box::new(Pair { queues: Some([active, passive]), users })
    }

    fn knobs(&self) -> Knobs {
        Knobs {
            pads_private: true,
            waits_for_receive: !self.iwarp,
            names_breaches: false,
            // The kernel's soft iWARP looks at the memory of a Read when its answer is about to leave, and not at the
            // direction.
            refuses_reads_at_once: !self.iwarp,
            checks_direction: !self.iwarp,
            invalidates: false,
            patience: 20_000,
            steps: self.steps,
            rounds: 2,
            ..Knobs::default()
        }
    }
}

impl Connected for Pair {
    fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        let queues = self.queues.as_mut().expect("it is alive");
        &mut queues[end as usize]
    }

    fn progress(&mut self) -> bool {
        let queues = self.queues.as_mut().expect("it is alive");
        let any = queues.iter_mut().fold(false, |any, queue| queue.progress() | any);
        if !any {
            thread::sleep(Duration::from_micros(500));
        }
        any
    }

    fn cut(&mut self) -> bool {
        false
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.queues = None;
        if !thread::panicking() {
            let left = self.users.each_ref().map(|user| user.registered());
            // Those who accept keep their domain, with what is sent for memory that was never written.
            assert!(left[0].max(left[1]) <= 64 << 10, "{left:?} bytes are still registered after the connection");
        }
    }
}

fn main() -> ExitCode {
    let mut addresses = Vec::new();
    let (mut only, mut steps) = (None, 24);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--case" => only = arguments.next(),
            "--steps" => steps = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(steps),
            address => match address.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => {
                    eprintln!("usage: verbs_conformance ADDRESS... [--case NAME] [--steps N]");
                    return ExitCode::from(2);
                }
            },
        }
    }
    let mut failed = 0;
    for address in addresses {
        let mut device = Device { address, iwarp: false, steps };
        for case in CASES.iter().filter(|case| only.as_ref().is_none_or(|only| only == case.name)) {
            let begin = Instant::now();
            let passed = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut device))).is_ok();
            failed += u32::from(!passed);
            let verdict = if passed { "ok" } else { "FAILED" };
            println!("{address} {:<50} {verdict:<6} {:>7.1} s", case.name, begin.elapsed().as_secs_f64());
        }
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
