//! Worlds that are large: long commands, and disks of memory that devices register.

use std::time::Duration;

use super::{Scenario, SessionPlan};
use crate::disk::DiskPlan;
use crate::rng::Rng;
use crate::store::Door;

impl Scenario {
    /// Commands are long: of a few MiB.
    pub(super) fn lengthen(&mut self) {
        let rng = &mut Rng::new(self.seed, 18);
        self.store.block_size = 4096;
        self.store.blocks = rng.between(1000, 2000);
        self.weather.chunk = 1 << 20;
        self.weather.capacity = 1 << 20;
        self.weather.delay = self.weather.delay.min(Duration::from_micros(200));
        self.limits.offer.max_recv_data_segment_length = 256 << 10;
        if rng.permille(500) {
            (self.store.delay, self.store.slow) = (Duration::ZERO, (0, Duration::ZERO));
        }
        for session in &mut self.sessions {
            session.offer.max_recv_data_segment_length = 256 << 10;
            session.work.operations = session.work.operations.min(30);
            session.work.most_blocks = 900;
            session.work.others = rng.pick(&[100, 400]);
        }
    }

    /// The disk is memory that devices register, several pieces of it; reads, writes and deallocations take whole
    /// pieces, too.
    pub(super) fn pin(&mut self) {
        let rng = &mut Rng::new(self.seed, 16);
        self.store.door = Door::Memory;
        self.store.block_size = 4096;
        self.store.blocks = rng.between(200, 1600);
        self.store.unmap = true;
        (self.store.read_errors, self.store.write_errors, self.store.full) = (0, 0, 0);
        self.store.mapped = Some(rng.pick(&[0, 300, 700, 1000]));
        self.weather.chunk = self.weather.chunk.max(1460);
        let most_blocks = rng.magnitude(8, 320);
        let only_read = rng.permille(250);
        let unmaps = rng.pick(&[0, 100, 300]);
        for session in &mut self.sessions {
            let work = &mut session.work;
            work.most_blocks = most_blocks;
            work.others = rng.pick(&[100, 400]);
            work.unmap = true;
            work.store_fails = false;
            work.unmaps = unmaps;
            if only_read {
                (work.reads, work.others, work.unmaps) = (1000, 0, 0);
            }
        }
    }

    /// Whether all that reads as zero was never written, nor is about to be.
    #[must_use]
    pub fn unwritten_is_zero(&self) -> bool {
        let lent = |disk: DiskPlan| disk.store.mapped.is_some() && disk.store.door == Door::Memory;
        let reads =
            |session: &SessionPlan| session.work.reads == 1000 && session.work.others + session.work.unmaps == 0;
        let alone = self.mangled.is_none() && self.hostile == 0;
        self.disks().all(lent) && self.sessions.iter().all(reads) && alone
    }
}
