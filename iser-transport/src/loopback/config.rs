//! What a loopback connection is like: its ends, its network, its faults.

use alloc::vec::Vec;

use crate::queue::QueueLimits;
use crate::random::Random;

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// The end that connects: an initiator's.
    Active = 0,
    /// The end that accepts: a target's.
    Passive = 1,
}

impl End {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Active, Self::Passive];

    /// The one at the far end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
        }
    }
}

/// What one end brings to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndConfig {
    /// Private data that it sends with the connection. Default: none.
    pub private: Vec<u8>,
    /// Reads of the peer that it answers at the same time, and Reads of its own that it has in flight at most. Default
    /// 16.
    pub read_depth: u16,
    /// Bounds of its queue pair. Default: 256 work requests, 256 receives, 1 MiB a transfer.
    pub limits: QueueLimits,
    /// Buffers that it can advertise at the same time. Default 1024.
    pub advertisements: usize,
}

impl Default for EndConfig {
    fn default() -> Self {
        Self {
            private: Vec::new(),
            read_depth: 16,
            limits: QueueLimits { work: 256, receives: 256, transfer: 1 << 20 },
            advertisements: 1024,
        }
    }
}

/// What becomes of a message for which no receive is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReceive {
    /// It waits for one, and all behind it (InfiniBand with endless RNR retries).
    Waits,
    /// The connection ends (iWARP, RFC 5041 7.1).
    Ends,
}

/// How often what goes wrong: each number is a chance in a million, by default 0. Those from `mute` to `reject` end the
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Each step: an end reads nothing for up to 300 steps.
    pub stall: u32,
    /// Each step: an end never again hears of the other.
    pub mute: u32,
    /// Each step: the connection breaks.
    pub cut: u32,
    /// Each step: the device of one end goes away.
    pub device_gone: u32,
    /// Each work request: it fails.
    pub fail_work: u32,
    /// Each message: it arrives as if no receive were posted.
    pub drop_receive: u32,
    /// Each message: it arrives longer than its receive.
    pub overlong: u32,
    /// Each Write, and each Read: it arrives for an unknown STag, a dead one, or a place outside of its buffer.
    pub alter_stag: u32,
    /// Each connection: it is refused.
    pub reject: u32,
    /// Each Write, and each Read: one byte of its data changes on the way, which no network does. For those who want to
    /// know whether they would notice.
    pub corrupt: u32,
    /// Each message: some of its bytes change, it is cut short, or it invalidates something. No network does that; a
    /// bad peer does.
    pub mangle: u32,
}

/// A loopback connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopbackConfig {
    /// The end that connects.
    pub active: EndConfig,
    /// The end that accepts.
    pub passive: EndConfig,
    /// Messages without a receive. Default: they end the connection.
    pub no_receive: NoReceive,
    /// Whether private data arrive padded with zeroes, as on InfiniBand: then an empty one arrives as a zero byte.
    /// Default: no.
    pub pad_private: bool,
    /// The chance in a million that a Send or Write is done before it has arrived (as on iWARP), not after (as on
    /// InfiniBand). Default: half.
    pub early_done: u32,
    /// What goes wrong. Default: nothing.
    pub faults: Faults,
}

impl Default for LoopbackConfig {
    fn default() -> Self {
        Self {
            active: EndConfig::default(),
            passive: EndConfig::default(),
            no_receive: NoReceive::Ends,
            pad_private: false,
            early_done: 500_000,
            faults: Faults::default(),
        }
    }
}

impl LoopbackConfig {
    /// A network of any kind, and any faults, out of a seed: about one connection in three has no fault that ends it.
    ///
    /// It keeps to what peers of iSER need: at least 128 work requests and receives, at least one Read, transfers of at
    /// least 4 KiB, private data of at least one byte.
    #[must_use]
    pub fn hostile(seed: u64) -> Self {
        let rng = &mut Random::new(seed ^ 0x6c6f_6f70);
        let mut end = || EndConfig {
            private: match rng.below(3) {
                0 => [0x80, 0, 0, 0].into(),
                1 => [0xc0, 0, 0, 0].into(),
                _ => [0x00, 0, 0, 0].into(),
            },
            read_depth: [1, 1, 2, 8, 16, 128][rng.below(6) as usize],
            limits: QueueLimits {
                work: 128 << rng.below(4),
                receives: 128 << rng.below(4),
                transfer: 4096 << rng.below(10),
            },
            advertisements: 1024,
        };
        let (active, passive) = (end(), end());
        // Some end a connection in its first steps, others let it live for a while.
        let mut chance = |most: u64| if rng.below(3) == 0 { (rng.below(most) >> rng.below(8)) as u32 } else { 0 };
        let mut faults = Faults {
            stall: chance(20_000),
            mute: chance(5000),
            cut: chance(10_000),
            device_gone: chance(5000),
            fail_work: chance(40_000),
            drop_receive: chance(40_000),
            overlong: chance(40_000),
            alter_stag: chance(40_000),
            reject: chance(200_000),
            corrupt: 0,
            mangle: 0,
        };
        if rng.below(4) == 0 {
            faults = Faults { stall: faults.stall, ..Faults::default() };
        }
        Self {
            active,
            passive,
            no_receive: if rng.below(2) == 0 { NoReceive::Waits } else { NoReceive::Ends },
            pad_private: rng.below(2) == 0,
            early_done: [0, 500_000, 1_000_000][rng.below(3) as usize],
            faults,
        }
    }

    pub(super) fn end(&self, end: End) -> &EndConfig {
        match end {
            End::Active => &self.active,
            End::Passive => &self.passive,
        }
    }
}
