//! The deterministic simulator: initiators and a target on one thread and virtual time, with links and stores that fail, and an oracle that knows what
//! every read may bring. And the harnesses of the fuzz targets.
//!
//! One seed makes a whole run: [`scenario`] says what it means, [`world`] lives it. Every failure names the command that replays it.
//!
//! | part | what it is |
//! |---|---|
//! | [`transport`] | what sessions run over: TCP, iSER over iWARP, over loopback queue pairs, and over queue pairs of verbs |
//! | [`rng`], [`trace`] | decisions out of a seed; what happened, as a hash and as lines |
//! | [`link`] | a byte stream with delay, chunks, stalls, cuts, half-open ends, flipped bits |
//! | [`fabric`] | the loopback of `iser-transport`, and its verbs over simulated devices, on virtual time |
//! | [`network`] | either of the two |
//! | [`store`] | a backstore with delay, reordering, errors, no space; all three doors |
//! | [`pipe`] | drives a connection over its side of a network, and checks the driving contract |
//! | [`parting`] | what the target knows of a session when its queue pair goes |
//! | [`disk`] | a disk, made of one store or several, and what serves it |
//! | [`model`] | the oracle |
//! | [`watch`] | what the target says over TCP, and whether it may say it then |
//! | [`told`] | what operators hear |
//! | [`workload`] | the operations of a session |
//! | [`hostile`], [`hostile_queue`] | peers that send anything |
//! | [`peer`] | an initiator's end of a TCP session, by hand |
//! | [`careless`] | an initiator that does what few do, and checks what it is answered |
//! | [`borrower`] | initiators that need buffers of a target that has few |
//! | [`by_hand`] | one end of an iSER connection, played by hand |
//! | [`odd`] | an initiator against a target that is odd |
//! | [`driven`] | the real drivers over tokio, with streams and stores that are simulated |
//! | [`threads`] | threads of the product that take turns |
//! | [`served`] | a target with one disk, for one connection at a time |
//! | [`fuzzed`], [`input`] | what the fuzz targets run |
#![forbid(unsafe_code)]

pub mod borrower;
pub mod by_hand;
pub mod careless;
pub mod disk;
pub mod driven;
pub mod fabric;
pub mod fuzzed;
pub mod hostile;
pub mod hostile_queue;
pub mod input;
pub mod link;
pub mod model;
pub mod network;
pub mod odd;
pub mod parting;
pub mod peer;
pub mod pipe;
pub mod rng;
pub mod scenario;
pub mod served;
pub mod store;
pub mod threads;
pub mod told;
pub mod trace;
pub mod transport;
pub mod watch;
pub mod workload;
pub mod world;

pub use scenario::{Kind, Scenario};
pub use transport::Transport;
pub use world::{Failure, Report, run};

/// Runs the scenario of a seed.
///
/// # Errors
/// What it found.
pub fn run_seed(seed: u64, transport: Transport, print: bool) -> Result<Report, Failure> {
    run(&Scenario::over(seed, transport), print)
}
