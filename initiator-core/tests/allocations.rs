//! Nothing is allocated per I/O once a session has warmed up: neither by the engine under a workload nor by a disk's handle.

mod small_target;

use initiator_core::{BlockCompletion, BlockRequest, Direction, Next, Session, Workload, run_load};
use iscsi_memory::{Buf, CountingAllocator};
use iscsi_proto::time::Instant;

use small_target::{config, start};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Reads and writes in turn, and counts allocations of this thread after a warm-up.
struct Mixed {
    buffers: Vec<Buf>,
    sent: u64,
    done: u64,
    before: u64,
    counted: Option<u64>,
}

const WARM_UP: u64 = 20_000;
const COUNTED: u64 = 20_000;
const ROUNDS: u64 = 3;

impl Workload for Mixed {
    fn next(&mut self, _now: Instant) -> Next {
        if self.done >= WARM_UP + ROUNDS * COUNTED {
            return Next::Finished;
        }
        let Some(buf) = self.buffers.pop() else { return Next::Wait };
        self.sent += 1;
        let direction = if self.sent.is_multiple_of(2) { Direction::Read } else { Direction::Write };
        let lba = self.sent * 8 % 65536;
        Next::Request(BlockRequest { token: 0, lun: 0, lba, blocks: 1, direction, buf })
    }

    fn complete(&mut self, completion: BlockCompletion, _now: Instant) {
        completion.result.unwrap();
        self.done += 1;
        self.buffers.push(completion.buf);
        if self.done == WARM_UP {
            self.before = CountingAllocator::allocations();
        } else if self.done > WARM_UP && (self.done - WARM_UP).is_multiple_of(COUNTED) {
            // A table may still grow once, when a slow machine lets more wait than before: the best of the rounds counts.
            let now = CountingAllocator::allocations();
            let round = now - self.before;
            self.counted = Some(self.counted.map_or(round, |best| best.min(round)));
            self.before = now;
        }
    }
}

#[tokio::test]
async fn a_workload_allocates_nothing() {
    let (portal, _) = start();
    let buffers = (0..64).map(|_| Buf::zeroed(512)).collect();
    let mixed = Mixed { buffers, sent: 0, done: 0, before: 0, counted: None };
    let (load, result) = run_load(config(&portal), &[], mixed).await;
    result.unwrap();
    assert_eq!(load.counted, Some(0), "allocations in {COUNTED} commands");
}

#[tokio::test]
async fn a_disk_allocates_nothing() {
    let (portal, _) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let mut block = [7; 4096];
    let mut best = u64::MAX;
    for round in 0..=ROUNDS {
        let before = CountingAllocator::allocations();
        for at in 0..2000u64 {
            disk.write(at % 100 * 4096, &block).await.unwrap();
            disk.read(at % 100 * 4096, &mut block).await.unwrap();
        }
        // The first round warms up; for the others see above.
        if round > 0 {
            best = best.min(CountingAllocator::allocations() - before);
        }
    }
    assert_eq!(best, 0, "allocations in 4000 commands");
    session.logout().await.unwrap();
}
