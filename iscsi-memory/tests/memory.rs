//! Buffers, their pool, and regions against a plain vector as model.

use std::sync::Arc;

use iscsi_memory::{Buf, BufPool, OutOfMemory, Region};
use proptest::prelude::*;

#[test]
fn buffers_keep_their_content_over_length_changes() {
    let mut buf = Buf::zeroed(5000);
    buf.fill(9);
    buf.set_len(10);
    assert_eq!(buf[..], [9; 10]);
    buf.set_len(5000);
    assert_eq!(buf[4999], 9);
    assert!(Buf::zeroed(0).is_empty());
}

#[test]
#[should_panic(expected = "above the buffer's capacity")]
fn a_length_above_capacity_is_a_bug_of_the_caller() {
    Buf::zeroed(10).set_len(11);
}

#[test]
fn the_pool_recycles_by_class_and_keeps_within_its_limit() {
    let mut pool = BufPool::new(3 * 4096);
    for (len, capacity) in
        [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (16 << 20, 16 << 20), (17 << 20, 17 << 20)]
    {
        let buf = pool.take(len);
        assert_eq!((buf.len(), buf.capacity()), (len, capacity));
    }
    let bufs: Vec<Buf> = (0..4).map(|_| pool.take(512)).collect();
    for buf in bufs {
        pool.give(buf);
    }
    assert_eq!(pool.idle(), 3 * 4096, "the fourth is freed");
    pool.give(Buf::zeroed(512));
    assert_eq!(pool.idle(), 3 * 4096, "odd sizes are freed");
    let large = pool.take(8192);
    pool.give(large);
    assert_eq!(pool.idle(), 3 * 4096);
    drop(pool.take(100));
    assert_eq!(pool.idle(), 2 * 4096);
}

#[test]
fn a_slice_keeps_its_region_alive() {
    let region = Region::mapped(1 << 16, u64::MAX).unwrap();
    region.reserve_for_write(0, 4).unwrap();
    region.write(0, b"kept");
    let slice = region.slice(0, 4);
    drop(region);
    let mut back = [0; 4];
    slice.read(0, &mut back);
    assert_eq!(&back, b"kept");
}

#[test]
fn the_limit_counts_pages_and_unmap_gives_them_back() {
    let region = Region::mapped(1 << 40, 8192).unwrap();
    region.reserve_for_write(0, 1).unwrap();
    region.reserve_for_write(4095, 2).unwrap();
    assert_eq!(region.allocated(), 8192);
    assert_eq!(region.reserve_for_write(1 << 39, 1), Err(OutOfMemory { limit: 8192 }));
    region.discard(1, 8191);
    assert_eq!(region.allocated(), 4096, "the first page is not whole");
    region.reserve_for_write(1 << 39, 1).unwrap();
}

#[test]
#[should_panic(expected = "outside a region")]
fn reading_outside_is_a_bug_of_the_caller() {
    Region::heap(4096).read(4000, &mut [0; 97]);
}

#[test]
fn many_threads_may_write_and_discard_at_once() {
    let region = Region::mapped(1 << 20, u64::MAX).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let region = &region;
            scope.spawn(move || {
                for round in 0..200u64 {
                    let at = (round * 7919 + u64::from(thread) * 4099) % ((1 << 20) - 9000);
                    region.reserve_for_write(at, 9000).unwrap();
                    region.write(at, &[thread; 9000]);
                    region.read(at, &mut [0; 9000]);
                    if round % 16 == 0 {
                        region.discard(at, 9000);
                    }
                }
            });
        }
    });
    region.discard(0, 1 << 20);
    assert_eq!(region.allocated(), 0);
    assert_eq!(region.extent(0), (false, 1 << 20));
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize, u8),
    Discard(u64, usize),
}

const SIZE: u64 = 300_000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..SIZE, prop_oneof![1usize..100, 1usize..20_000, Just(4096usize)]);
    let step = prop_oneof![
        (range(), 1u8..).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        range().prop_map(|(at, len)| Step::Discard(at / 512 * 512, len)),
    ];
    proptest::collection::vec(step, 1..40)
}

fn run(region: &Arc<Region>, steps: &[Step]) {
    let mut model = vec![0u8; SIZE as usize];
    for step in steps {
        match *step {
            Step::Write(at, len, byte) => {
                let len = len.min((SIZE - at) as usize);
                region.reserve_for_write(at, len as u64).unwrap();
                region.write(at, &vec![byte; len]);
                model[at as usize..][..len].fill(byte);
            }
            Step::Discard(at, len) => {
                let len = len.min((SIZE - at) as usize);
                region.discard(at, len as u64);
                model[at as usize..][..len].fill(0);
            }
        }
    }
    let mut back = vec![1; SIZE as usize];
    region.read(0, &mut back);
    assert!(back == model, "region and model differ");
    // Extents tile the region, and what is not allocated is zero.
    let (mut at, mut allocated) = (0, 0);
    while at < SIZE {
        let (is_allocated, end) = region.extent(at);
        assert!(end > at);
        assert!(is_allocated || model[at as usize..end as usize].iter().all(|byte| *byte == 0));
        allocated += if is_allocated { (end - at).next_multiple_of(4096) } else { 0 };
        at = end;
    }
    assert_eq!(allocated, region.allocated());
}

proptest! {
    #[test]
    fn regions_read_what_was_written(steps in steps()) {
        run(&Region::heap(SIZE as usize), &steps);
        run(&Region::mapped(SIZE, u64::MAX).unwrap(), &steps);
    }
}

#[test]
fn all_memory_is_aligned_to_pages_and_may_be_empty() {
    assert_eq!(Buf::zeroed(1).as_ptr() as usize % 4096, 0);
    for region in [Region::heap(0), Region::mapped(0, 0).unwrap()] {
        assert!(region.is_empty());
        region.read(0, &mut []);
        region.discard(0, 0);
        assert_eq!(region.reserve_for_write(0, 0), Ok(()));
    }
}
