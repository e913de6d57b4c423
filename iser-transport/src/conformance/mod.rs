//! The cases that every provider of queue pairs passes: what the [contract](crate::queue) says, asked from outside.
//!
//! A provider brings a [`Harness`], which connects pairs of its queue pairs and lets time pass for them; [`CASES`] do
//! the rest. A case panics with a sentence when the provider breaks the contract. Beneath each case lies a ledger that
//! knows everything that was posted, and checks each completion: nothing before
//! [`Established`](crate::queue::Completion::Established), receives and work each in their order, each memory back once
//! and the same one, nothing after [`Ended`](crate::queue::Completion::Ended).
//!
//! ```
//! use iser_transport::conformance::{CASES, Connected, End, Harness, Knobs, Plan};
//! use iser_transport::loopback::{Fabric, LoopbackConfig, LoopbackQueue, pair};
//! use iser_transport::queue::QueuePair;
//!
//! struct Loopback {
//!     seed: u64,
//! }
//! struct Pair([LoopbackQueue; 2], Fabric);
//!
//! impl Harness for Loopback {
//!     fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
//!         let mut config = LoopbackConfig::default();
//!         config.active.private = plan.private[0].to_vec();
//!         config.passive.private = plan.private[1].to_vec();
//!         (config.active.read_depth, config.passive.read_depth) = (plan.read_depth[0], plan.read_depth[1]);
//!         self.seed += 1;
//!         let (active, passive, fabric) = pair(config, self.seed);
//!         Box::new(Pair([active, passive], fabric))
//!     }
//!     fn knobs(&self) -> Knobs {
//!         Knobs::default()
//!     }
//! }
//!
//! impl Connected for Pair {
//!     fn queue(&mut self, end: End) -> &mut dyn QueuePair {
//!         &mut self.0[end as usize]
//!     }
//!     fn progress(&mut self) -> bool {
//!         self.1.step().is_some()
//!     }
//!     fn cut(&mut self) -> bool {
//!         self.1.cut();
//!         true
//!     }
//! }
//!
//! for case in CASES {
//!     (case.run)(&mut Loopback { seed: 1 });
//! }
//! ```

mod endings;
mod established;
mod messages;
mod rig;
mod transfers;
mod violations;

use alloc::boxed::Box;

pub use crate::loopback::End;
use crate::queue::QueuePair;
pub use rig::{Rig, Seen};

/// What a connection is made with.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Private data of each end, the active one first.
    pub private: [&'static [u8]; 2],
    /// Reads in flight that each end asks for and answers, at most.
    pub read_depth: [u16; 2],
}

impl Default for Plan {
    fn default() -> Self {
        Self { private: [&[0x80, 0, 0, 0], &[0x00, 0, 0, 0]], read_depth: [16, 16] }
    }
}

/// How a provider may differ from the strictest one, for the devices below it.
#[derive(Debug, Clone, Copy)]
pub struct Knobs {
    /// Private data arrive padded with zeroes: an empty one may arrive as a zero byte.
    pub pads_private: bool,
    /// A message without a receive waits for one; else it ends the connection.
    pub waits_for_receive: bool,
    /// Both ends name a breach of the peer: [`PeerProtocol`](crate::queue::EndCause::PeerProtocol) and
    /// [`ByPeer`](crate::queue::EndCause::ByPeer).
    pub names_breaches: bool,
    /// Bounds are those of the advertisement, to the byte; else those of the memory that it is a part of.
    pub exact_bounds: bool,
    /// Reads of what is advertised for Writes, and the other way round, are refused.
    pub checks_direction: bool,
    /// Nothing is taken behind a Read that is not allowed; else what came with it may be, before the connection ends.
    pub refuses_reads_at_once: bool,
    /// A withdrawn STag is dead at once.
    pub withdraw_revokes: bool,
    /// The STags of one connection are no good on another.
    pub checks_owner: bool,
    /// Send with Invalidate works.
    pub invalidates: bool,
    /// An end hears of the loss of the other without being asked to do something.
    pub notices_abort: bool,
    /// Calls of [`Connected::progress`] without effect after which a wait has failed.
    pub patience: u32,
    /// At how many points the cases that end a connection at every step do so.
    pub steps: u32,
    /// Rounds of the cases that mix transfers of random sizes.
    pub rounds: u32,
}

impl Default for Knobs {
    /// The strictest provider.
    fn default() -> Self {
        Self {
            pads_private: false,
            waits_for_receive: false,
            names_breaches: true,
            exact_bounds: true,
            checks_direction: true,
            refuses_reads_at_once: true,
            withdraw_revokes: true,
            checks_owner: true,
            invalidates: true,
            notices_abort: true,
            patience: 2,
            steps: 80,
            rounds: 6,
        }
    }
}

/// Makes connections of one provider.
pub trait Harness {
    /// A new connection. Its ends may still be connecting.
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected>;

    /// What to expect of it.
    fn knobs(&self) -> Knobs;
}

/// A connection of one provider, both ends.
pub trait Connected {
    /// One end.
    fn queue(&mut self, end: End) -> &mut dyn QueuePair;

    /// Moves on a little; on real devices it may wait for up to a few milliseconds. Whether anything moved, or may
    /// have.
    fn progress(&mut self) -> bool;

    /// Breaks the network between the ends; `false` where that cannot be done.
    fn cut(&mut self) -> bool;
}

/// A case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What holds.
    pub name: &'static str,
    /// Panics if it does not.
    pub run: fn(&mut dyn Harness),
}

macro_rules! cases {
    ($($module:ident: $($name:ident),+;)+) => {
        /// All cases.
        pub const CASES: &[Case] = &[$($(Case { name: stringify!($name), run: $module::$name }),+),+];
    };
}

cases! {
    established: established_comes_first, private_data_arrive, the_read_depth_is_agreed;
    messages: messages_arrive_in_order, receives_are_used_in_order, an_empty_message_arrives,
        messages_leave_from_any_memory,
        inline_payloads_keep_their_place, the_longest_message_fits, an_stag_is_invalidated;
    transfers: a_message_comes_after_the_writes_before_it, memory_of_either_kind_is_written,
        memory_of_either_kind_is_read,
        reads_beyond_the_depth_wait, transfers_of_all_sizes_mix, transfers_of_all_sizes_mix_from_the_active_end;
    violations: an_overlong_message_ends_the_connection, a_message_without_a_receive,
        an_unknown_stag_ends_the_connection,
        bytes_outside_end_the_connection, the_wrong_direction_ends_the_connection, a_withdrawn_stag_ends_the_connection,
        an_invalidated_stag_ends_the_connection, an_unknown_stag_is_not_invalidated,
            an_stag_of_another_connection_ends_the_connection;
    endings: what_was_posted_is_sent_before_the_end, disconnect_at_every_step, abort_at_every_step, a_cut_at_every_step,
        both_ends_leave_at_every_step, what_is_posted_after_the_end_comes_back, ending_is_idempotent;
}
