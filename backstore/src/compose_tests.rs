//! Composed stores against a plain vector, through both doors, with failing stores among them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::executor::block_on;
use iscsi_memory::{Buf, Region};
use proptest::prelude::*;

use super::*;
use crate::{NullStore, RamStore, StoreCompletion, StoreOp, StoreRequest};

fn ram(blocks: u64) -> Arc<dyn Backstore> {
    Arc::new(RamStore::over(Region::heap(blocks as usize * 512)))
}

#[derive(Debug, Clone)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8),
    Unmap(u64, u64),
    Flush,
    Status(u64),
}

/// Operations at any place, brought inside the store when they run.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (any::<u16>(), 0u64..80).prop_map(|(lba, n)| Op::Read(lba.into(), n)),
        4 => (any::<u16>(), 0u64..80, 1u8..).prop_map(|(lba, n, fill)| Op::Write(lba.into(), n, fill)),
        1 => (any::<u16>(), 0u64..200).prop_map(|(lba, n)| Op::Unmap(lba.into(), n)),
        1 => Just(Op::Flush),
        1 => any::<u16>().prop_map(|lba| Op::Status(lba.into())),
    ];
    prop::collection::vec(op, 1..60)
}

impl Op {
    fn inside(self, end: u64) -> Self {
        let fit = |lba: u64, n: u64| (lba % end, n.min(end - lba % end));
        match self {
            Self::Read(lba, n) => {
                let (lba, n) = fit(lba, n);
                Self::Read(lba, n)
            }
            Self::Write(lba, n, fill) => {
                let (lba, n) = fit(lba, n);
                Self::Write(lba, n, fill)
            }
            Self::Unmap(lba, n) => {
                let (lba, n) = fit(lba, n);
                Self::Unmap(lba, n)
            }
            Self::Flush => Self::Flush,
            Self::Status(lba) => Self::Status(lba % end),
        }
    }
}

fn span(lba: u64, n: u64) -> std::ops::Range<usize> {
    lba as usize * 512..(lba + n) as usize * 512
}

/// Blocks that differ from each other, so that a misplaced one shows.
fn pattern(n: u64, fill: u8) -> Vec<u8> {
    (0..n * 512).map(|i| fill.wrapping_add((i / 512) as u8)).collect()
}

/// Runs one request through a queue and waits for its completion.
fn once(queue: &mut dyn StoreQueue, token: u64, op: StoreOp) -> StoreCompletion {
    queue.submit(&mut vec![StoreRequest { token, op }]);
    let mut done = Vec::new();
    queue.poll(&mut done);
    assert_eq!(done.len(), 1, "stores that answer at once");
    assert_eq!(done[0].token, token);
    done.remove(0)
}

fn buf_of(data: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(data.len());
    buf.copy_from_slice(data);
    buf
}

fn check(store: Arc<dyn Backstore>, ops: Vec<Op>, by_queue: bool) {
    let end = store.geometry().blocks;
    let mut model = vec![0u8; end as usize * 512];
    let mut queue = store.clone().open_queue(Waker::noop().clone()).expect("RAM has queues");
    for (token, op) in ops.into_iter().enumerate() {
        let token = token as u64;
        match op.inside(end) {
            Op::Read(lba, n) => {
                let data = if by_queue {
                    let mut buf = Buf::zeroed(span(0, n).len());
                    buf.fill(0xee);
                    let done = once(&mut *queue, token, StoreOp::Read { lba, buf });
                    assert_eq!(done.result, Ok(()));
                    done.buf.expect("the buffer comes back").to_vec()
                } else {
                    let mut data = vec![0xee; span(0, n).len()];
                    block_on(store.read(lba, &mut data)).unwrap();
                    data
                };
                assert!(data == model[span(lba, n)], "read of {n} at {lba}");
            }
            Op::Write(lba, n, fill) => {
                let data = pattern(n, fill);
                model[span(lba, n)].copy_from_slice(&data);
                if by_queue {
                    let done = once(&mut *queue, token, StoreOp::Write { lba, buf: buf_of(&data) });
                    assert_eq!(done.result, Ok(()));
                    assert!(done.buf.expect("the buffer comes back")[..] == data);
                } else {
                    block_on(store.write(lba, &data)).unwrap();
                }
            }
            Op::Unmap(lba, n) => {
                model[span(lba, n)].fill(0);
                if by_queue {
                    assert_eq!(once(&mut *queue, token, StoreOp::Unmap { lba, blocks: n }).result, Ok(()));
                } else {
                    block_on(store.unmap(lba, n)).unwrap();
                }
            }
            Op::Flush if by_queue => assert_eq!(once(&mut *queue, token, StoreOp::Flush).result, Ok(())),
            Op::Flush => block_on(store.flush()).unwrap(),
            Op::Status(lba) => {
                let status = if by_queue {
                    once(&mut *queue, token, StoreOp::LbaStatus { lba }).lba_status.expect("an answer")
                } else {
                    block_on(store.lba_status(lba)).unwrap()
                };
                assert!(status.blocks >= 1 && lba + status.blocks <= end, "{status:?} at {lba} of {end}");
                assert!(status.mapped || model[span(lba, status.blocks)].iter().all(|b| *b == 0));
            }
        }
    }
    let mut data = vec![0; model.len()];
    block_on(store.read(0, &mut data)).unwrap();
    assert!(data == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_stripe_is_a_disk(
        sizes in prop::collection::vec(20u64..120, 1..5), chunk in 1u64..20, by_queue: bool, ops in ops(),
    ) {
        let stripe = StripeStore::new(sizes.iter().map(|n| ram(*n)).collect(), chunk * 512).unwrap();
        let rows = sizes.iter().min().unwrap() / chunk;
        prop_assert_eq!(stripe.geometry().blocks, rows * chunk * sizes.len() as u64);
        check(Arc::new(stripe), ops, by_queue);
    }

    #[test]
    fn a_linear_store_is_a_disk(sizes in prop::collection::vec(1u64..120, 1..5), by_queue: bool, ops in ops()) {
        let linear = LinearStore::new(sizes.iter().map(|n| ram(*n)).collect()).unwrap();
        prop_assert_eq!(linear.geometry().blocks, sizes.iter().sum::<u64>());
        check(Arc::new(linear), ops, by_queue);
    }

    #[test]
    fn stores_of_stores_are_disks(chunk in 1u64..9, by_queue: bool, ops in ops()) {
        let pair = || Arc::new(LinearStore::new(vec![ram(30), ram(50)]).unwrap()) as Arc<dyn Backstore>;
        check(Arc::new(StripeStore::new(vec![pair(), pair(), ram(70)], chunk * 512).unwrap()), ops, by_queue);
    }
}

/// Fails at one block, and completes in the reverse order of submission, one a poll.
struct Faulty {
    inner: RamStore,
    bad: AtomicU64,
    flush_fails: AtomicBool,
}

impl Faulty {
    fn new(blocks: u64, bad: u64) -> Arc<Self> {
        let inner = RamStore::over(Region::heap(blocks as usize * 512));
        Arc::new(Self { inner, bad: bad.into(), flush_fails: false.into() })
    }

    fn hit(&self, lba: u64, bytes: usize) -> Option<u64> {
        let bad = self.bad.load(Ordering::Relaxed);
        (lba..lba + bytes as u64 / 512).contains(&bad).then_some(bad)
    }
}

#[async_trait]
impl Backstore for Faulty {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        match self.hit(lba, data.len()) {
            Some(bad) => Err(StoreError::Read(Some(bad))),
            None => self.inner.read(lba, data).await,
        }
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        match self.hit(lba, data.len()) {
            Some(bad) => Err(StoreError::Write(Some(bad))),
            None => self.inner.write(lba, data).await,
        }
    }
    async fn flush(&self) -> Result<(), StoreError> {
        if self.flush_fails.load(Ordering::Relaxed) { Err(StoreError::Failed) } else { Ok(()) }
    }
    fn open_queue(self: Arc<Self>, _: Waker) -> Option<Box<dyn StoreQueue>> {
        Some(Box::new(Backwards { store: self, stack: Vec::new() }))
    }
}

struct Backwards {
    store: Arc<Faulty>,
    stack: Vec<StoreRequest>,
}

impl StoreQueue for Backwards {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        self.stack.append(batch);
    }
    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        let Some(StoreRequest { token, op }) = self.stack.pop() else { return };
        let (buf, result) = match op {
            StoreOp::Read { lba, mut buf } => {
                let result = block_on(self.store.read(lba, &mut buf));
                (Some(buf), result)
            }
            StoreOp::Write { lba, buf } => {
                let result = block_on(self.store.write(lba, &buf));
                (Some(buf), result)
            }
            StoreOp::Flush => (None, block_on(self.store.flush())),
            StoreOp::Unmap { .. } | StoreOp::LbaStatus { .. } => (None, Err(StoreError::Unsupported)),
        };
        completions.push(StoreCompletion { token, buf, lba_status: None, result });
    }
}

#[test]
fn a_flush_reaches_every_store() {
    for last in 0..3 {
        let stores = [Faulty::new(40, u64::MAX), Faulty::new(40, u64::MAX), Faulty::new(40, u64::MAX)];
        let children = stores.iter().map(|store| store.clone() as Arc<dyn Backstore>).collect();
        let stripe = Arc::new(StripeStore::new(children, 4 * 512).unwrap());
        assert_eq!(block_on(stripe.flush()), Ok(()));
        // Whose flush fails has been asked for one.
        stores[last].flush_fails.store(true, Ordering::Relaxed);
        assert_eq!(block_on(stripe.flush()), Err(StoreError::Failed));
        let mut queue = stripe.open_queue(Waker::noop().clone()).expect("all stores have queues");
        queue.submit(&mut vec![StoreRequest { token: 1, op: StoreOp::Flush }]);
        let mut completions = Vec::new();
        for _ in 0..3 {
            queue.poll(&mut completions);
        }
        assert_eq!(completions.pop().map(|completion| completion.result), Some(Err(StoreError::Failed)));
    }
}

#[test]
fn partial_failures_tell_the_lowest_bad_block_of_the_whole() {
    // Chunks of 4 blocks over 3 stores: block 5 of store 1 is block 17 of the whole, block 6 of store 2 is block 22.
    let stores = [Faulty::new(40, u64::MAX), Faulty::new(40, 5), Faulty::new(40, 6)];
    let children = stores.iter().map(|store| store.clone() as Arc<dyn Backstore>).collect();
    let stripe = Arc::new(StripeStore::new(children, 4 * 512).unwrap());
    assert!(!stripe.abilities().unmap);
    let mut data = vec![0; 24 * 512];
    assert_eq!(block_on(stripe.read(0, &mut data)), Err(StoreError::Read(Some(17))));
    assert_eq!(block_on(stripe.read(18, &mut data)), Err(StoreError::Read(Some(22))));
    assert_eq!(block_on(stripe.write(0, &data)), Err(StoreError::Write(Some(17))));
    assert_eq!(block_on(stripe.write(0, &data[..17 * 512])), Ok(()));

    let mut queue = stripe.clone().open_queue(Waker::noop().clone()).expect("all stores have queues");
    let read =
        |token, lba, blocks: usize| StoreRequest { token, op: StoreOp::Read { lba, buf: Buf::zeroed(blocks * 512) } };
    stores[0].flush_fails.store(true, Ordering::Relaxed);
    queue.submit(&mut vec![
        read(1, 0, 24),
        read(2, 18, 24),
        read(3, 0, 17),
        read(4, 17, 1),
        StoreRequest { token: 5, op: StoreOp::Flush },
        StoreRequest { token: 6, op: StoreOp::Unmap { lba: 0, blocks: 1 } },
        read(7, 3, 0),
    ]);
    let mut done = Vec::new();
    for _ in 0..20 {
        queue.poll(&mut done);
    }
    done.sort_by_key(|completion| completion.token);
    let results: Vec<_> = done.iter().map(|completion| (completion.token, completion.result)).collect();
    assert_eq!(
        results,
        [
            (1, Err(StoreError::Read(Some(17)))),
            (2, Err(StoreError::Read(Some(22)))),
            (3, Ok(())),
            (4, Err(StoreError::Read(Some(17)))),
            (5, Err(StoreError::Failed)),
            (6, Err(StoreError::Unsupported)),
            (7, Ok(())),
        ]
    );
    for (completion, blocks) in done.iter().zip([24, 24, 17, 1]) {
        assert_eq!(completion.buf.as_ref().map(|buf| buf.len()), Some(blocks * 512), "the submitter's own buffer");
    }
}

#[test]
fn many_requests_at_once_complete_once_each_in_any_order() {
    let stores: Vec<_> = (0..3).map(|_| Faulty::new(400, u64::MAX)).collect();
    let children = stores.iter().map(|store| store.clone() as Arc<dyn Backstore>).collect();
    let stripe = Arc::new(StripeStore::new(children, 3 * 512).unwrap());
    let mut queue = stripe.open_queue(Waker::noop().clone()).expect("a queue");
    let mut run = |batch: Vec<StoreRequest>| {
        let count = batch.len();
        queue.submit(&mut { batch });
        let mut done = Vec::new();
        while done.len() < count {
            let before = done.len();
            for _ in 0..4 {
                queue.poll(&mut done);
            }
            assert!(done.len() > before || count > before, "progress");
        }
        queue.poll(&mut done);
        done.sort_by_key(|completion| completion.token);
        assert!(done.iter().map(|c| c.token).eq(0..count as u64));
        assert!(done.iter().all(|c| c.result.is_ok()));
        done
    };
    // Neighbouring ranges of 7 blocks: most cross chunks.
    let data = |i: u64| pattern(7, i as u8);
    run((0..150)
        .map(|i| StoreRequest { token: i, op: StoreOp::Write { lba: i * 7, buf: buf_of(&data(i)) } })
        .collect());
    let read = run((0..150)
        .map(|i| StoreRequest { token: i, op: StoreOp::Read { lba: i * 7, buf: Buf::zeroed(7 * 512) } })
        .collect());
    for completion in &read {
        assert!(completion.buf.as_ref().is_some_and(|buf| buf[..] == data(completion.token)), "{}", completion.token);
    }
}

#[test]
fn what_does_not_fit_together_is_refused_with_a_sentence() {
    let null = |bytes| Arc::new(NullStore::new(bytes)) as Arc<dyn Backstore>;
    let large = Arc::new(NullStore::with_geometry(Geometry { block_size: 4096, ..Geometry::of_bytes(1 << 20) }));
    let huge = || Arc::new(NullStore::new(u64::MAX)) as Arc<dyn Backstore>;
    for (error, part) in [
        (StripeStore::new(vec![], 4096).unwrap_err(), "at least one store"),
        (LinearStore::new(vec![]).unwrap_err(), "at least one store"),
        (LinearStore::new(vec![null(4096), large]).unwrap_err(), "store 1 has blocks of 4096 bytes and store 0 of 512"),
        (StripeStore::new(vec![null(4096)], 0).unwrap_err(), "a chunk of 0 bytes"),
        (StripeStore::new(vec![null(4096)], 1000).unwrap_err(), "a chunk of 1000 bytes"),
        (StripeStore::new(vec![null(8192), null(4096)], 8192).unwrap_err(), "store 1 holds 4096 bytes, less than one"),
        (StripeStore::new(vec![huge(), huge()], 512).unwrap_err(), "more than 16 EiB"),
        (LinearStore::new(vec![huge(), huge()]).unwrap_err(), "more than 16 EiB"),
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn abilities_are_what_all_have() {
    let stripe = StripeStore::new(vec![ram(1024), Arc::new(NullStore::new(1 << 19))], 65_536).unwrap();
    let able = stripe.abilities();
    assert!(able.unmap && able.unmapped_reads_zero && able.solid_state && !able.volatile_cache && !able.read_only);
    assert_eq!(able.unmap_granularity, 8);
    assert_eq!(stripe.geometry().optimal_transfer, 256);
    let odd = StripeStore::new(vec![ram(1024)], 3 * 512).unwrap();
    assert_eq!((odd.abilities().unmap_granularity, odd.geometry().physical_exponent), (0, 0));
    let odd = LinearStore::new(vec![ram(9), ram(8)]).unwrap();
    assert_eq!((odd.abilities().unmap_granularity, odd.geometry().physical_exponent), (0, 0));
}
