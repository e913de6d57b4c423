//! What a RAM store takes of the machine's memory, by what is resident of the whole process: one test in a process of
//! its own, so that nothing else takes or gives memory meanwhile.

use std::time::Instant;

use backstore::{Backstore, RamStore};
use futures::executor::block_on;

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
}

#[test]
fn a_ram_store_takes_what_was_written_and_gives_back_what_is_unmapped() {
    fifty_gibibytes_cost_nothing();
    unmap_gives_memory_back_to_the_machine();
    scattered_small_writes_take_a_page_each();
}

fn fifty_gibibytes_cost_nothing() {
    let before = resident();
    let start = Instant::now();
    let store = RamStore::new(50 << 30).unwrap();
    let took = start.elapsed();
    let mut data = vec![1; 1 << 20];
    for lba in (0..store.geometry().blocks).step_by(1 << 20) {
        block_on(store.read(lba, &mut data)).unwrap();
        assert!(data.iter().all(|b| *b == 0));
    }
    let grown = resident().saturating_sub(before);
    println!("50 GiB: open {took:?}, {} KiB resident in all, {} KiB more than before", resident() >> 10, grown >> 10);
    assert!(grown < 16 << 20, "{grown} bytes");
    assert!(resident() < 64 << 20);
    assert_eq!(store.allocated(), 0);
}

fn unmap_gives_memory_back_to_the_machine() {
    let store = RamStore::new(1 << 30).unwrap();
    let data = vec![7; 1 << 20];
    let before = resident();
    for i in 0..64 {
        block_on(store.write(i * 2048, &data)).unwrap();
    }
    let full = resident();
    assert!(full >= before + (60 << 20), "{before} to {full}");
    assert_eq!(store.allocated(), 64 << 20);
    block_on(store.unmap(0, 64 * 2048)).unwrap();
    let after = resident();
    println!(
        "64 MiB written: {} KiB more resident; after UNMAP {} KiB",
        (full - before) >> 10,
        after.saturating_sub(before) >> 10
    );
    assert!(after <= before + (4 << 20), "{before} to {full} to {after}");
    assert_eq!(store.allocated(), 0);
}

fn scattered_small_writes_take_a_page_each() {
    let store = RamStore::new(8 << 30).unwrap();
    let before = resident();
    for i in 0..1000 {
        block_on(store.write(i * 16_384, &[1; 512])).unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert_eq!(store.allocated(), 1000 * 4096);
    assert!(grown < 16 << 20, "{grown} bytes: the pages are not the small ones that are counted");
}
