//! The RAM store: sizes, memory taken and given back, limits.

use futures::executor::block_on;

use super::*;
use crate::StoreOpenError;

#[test]
fn writes_past_the_limit_find_no_space_until_something_is_unmapped() {
    let store = RamStore::builder(1 << 20).memory_limit(8192).open().unwrap();
    block_on(store.write(0, &[1; 8192])).unwrap();
    assert_eq!(block_on(store.write(64, &[1; 512])), Err(StoreError::NoSpace));
    block_on(store.write(3, &[2; 512])).unwrap();
    block_on(store.unmap(8, 8)).unwrap();
    block_on(store.write(64, &[1; 512])).unwrap();
    let mut data = [9; 512];
    block_on(store.read(8, &mut data)).unwrap();
    assert_eq!(data, [0; 512]);
}

#[test]
fn lba_status_follows_writes_and_unmaps() {
    let store = RamStore::builder(1 << 20).block_size(1024).open().unwrap();
    let status = |lba| block_on(store.lba_status(lba)).unwrap();
    assert_eq!(status(5), LbaStatus { blocks: 1019, mapped: false });
    block_on(store.write(9, &[1; 1024])).unwrap();
    assert_eq!(status(0), LbaStatus { blocks: 8, mapped: false });
    assert_eq!(status(10), LbaStatus { blocks: 2, mapped: true });
    block_on(store.unmap(8, 4)).unwrap();
    assert_eq!(status(0), LbaStatus { blocks: 1024, mapped: false });
}

#[test]
fn sizes_that_cannot_be_are_refused_with_a_sentence() {
    for (bytes, block_size, part) in [
        (0, 512, "whole number of blocks"),
        (1000, 512, "1000 bytes is not a whole number of blocks of 512"),
        (512, 4096, "give a multiple"),
        (4096, 520, "use 512, 1024, 2048 or 4096"),
        (1 << 50, 512, "more than this machine can ever hold"),
        (u64::MAX - 511, 512, "more than this machine can ever hold"),
    ] {
        let error = RamStore::builder(bytes).block_size(block_size).open().expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(RamStore::new(1 << 60), Err(StoreOpenError::TooLarge { bytes, .. }) if bytes == 1 << 60));
}

#[test]
fn the_memory_door_shows_the_same_bytes() {
    let store = RamStore::over(Region::heap(1 << 16));
    block_on(store.write(3, &[5; 512])).unwrap();
    let mut data = [0; 512];
    store.memory().expect("a memory door").read(3 * 512, &mut data);
    assert_eq!(data, [5; 512]);
    assert_eq!(store.geometry().blocks, 128);
}

#[test]
fn stores_draw_on_one_budget_as_their_pages_are_touched() {
    let budget = iscsi_memory::MemoryBudget::new(3 * 4096);
    let open = |bytes| RamStore::builder(bytes).memory_budget(budget.clone()).open().unwrap();
    let (small, big) = (open(8192), open(1 << 30));
    block_on(small.write(0, &[1; 8192])).unwrap();
    block_on(big.write(0, &[1; 512])).unwrap();
    assert_eq!(block_on(big.write(8, &[1; 512])), Err(StoreError::NoSpace));
    assert_eq!(budget.used(), 3 * 4096);
    block_on(small.unmap(0, 8)).unwrap();
    block_on(big.write(8, &[1; 512])).unwrap();
    drop(big);
    assert_eq!(budget.used(), 4096);
}
