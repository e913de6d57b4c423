//! Vectored I/O over a socket pair, with private and lent memory.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use iscsi_memory::{Landing, ReceiveSlice, ReceiveWindow, Region, SendList, SendSlice, socket};

fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    (a, b)
}

#[test]
fn pieces_arrive_in_order_from_and_into_both_kinds_of_memory() {
    let (a, b) = pair();
    let from = Region::mapped(1 << 20, u64::MAX).unwrap();
    from.reserve_for_write(5000, 3000).unwrap();
    from.write(5000, &[2; 3000]);
    let from = from.slice(4000, 5000);
    let mut list = SendList::default();
    assert!(list.push(SendSlice::Private(&[1; 48])));
    assert!(list.push(SendSlice::Private(&[])), "empty pieces take no room");
    assert!(list.push(SendSlice::Lent(&from, 1000, 4000)));
    assert!(list.push(SendSlice::Private(&[3; 4])));
    assert_eq!((list.len(), list.as_slice().len()), (3052, 3));
    assert_eq!(socket::send(&a, &list).unwrap(), 3052);

    let into = Region::heap(1 << 16);
    into.reserve_for_write(0, 1 << 16).unwrap();
    let slice = into.slice(100, 5000);
    let mut head = [0; 48];
    let mut staging = [0; 100];
    let mut window = ReceiveWindow { payload: ReceiveSlice::Private(&mut head), staging: &mut [] };
    assert_eq!(socket::receive(&b, &mut window).unwrap(), 48);
    let mut window = ReceiveWindow { payload: ReceiveSlice::Lent(&slice, 10, 3010), staging: &mut staging };
    assert_eq!(window.len(), 3100);
    assert_eq!(socket::receive(&b, &mut window).unwrap(), 3004);
    assert_eq!((head, &staging[..5]), ([1; 48], &[3, 3, 3, 3, 0][..]));
    let mut back = [0; 3002];
    into.read(109, &mut back);
    assert_eq!((back[0], back[3001]), (0, 0), "not a byte beyond the window");
    assert_eq!(back[1..3001], [2; 3000]);
}

/// Says once that nothing may land.
#[derive(Debug)]
struct NotYet(std::sync::atomic::AtomicI32);

impl Landing for NotYet {
    fn try_land(&self, _: u64, _: u64, copy: &mut dyn FnMut()) -> bool {
        let may = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0;
        if may {
            copy();
        }
        may
    }
}

#[test]
fn nothing_is_written_that_may_not_land() {
    let landing = std::sync::Arc::new(NotYet(0.into()));
    let slice = Region::heap(4096).slice(0, 4096).with_landing(landing.clone());
    let mut back = [0; 5];
    assert!(!slice.try_write(0, b"hello"));
    slice.read(0, &mut back);
    assert_eq!(&back, &[0; 5]);
    assert!(slice.try_write(0, b"hello"));
    slice.read(0, &mut back);
    assert_eq!(&back, b"hello");
    assert_eq!(landing.0.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn what_is_held_is_not_written_and_the_list_ends_where_a_writer_is() {
    let region = Region::heap(1 << 20);
    let slice = region.slice(0, 1 << 20);
    let mut list = SendList::default();
    list.push(SendSlice::Lent(&slice, 512, 3 * 65_536));
    let held = list.hold();
    assert_eq!(list.len(), 3 * 65_536 - 512, "all of it");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| region.write(65_536, &[7; 512]));
        // The writer waits, and lets no new reader in: what is held next ends before it.
        let cut = loop {
            let mut list = SendList::default();
            list.push(SendSlice::Private(b"header"));
            list.push(SendSlice::Lent(&slice, 512, 3 * 65_536));
            let _held = list.hold();
            if list.len() < 6 + 3 * 65_536 - 512 {
                break list.len();
            }
            std::thread::yield_now();
        };
        assert_eq!(cut, 6 + 65_536 - 512);
        assert!(!writer.is_finished());
        let mut back = [1; 512];
        region.read(65_536, &mut back);
        assert_eq!(back, [0; 512]);
        drop(held);
    });
    let mut back = [1; 512];
    region.read(65_536, &mut back);
    assert_eq!(back, [7; 512]);
}

#[test]
fn what_is_held_ends_between_two_blocks() {
    let region = Region::heap(4 << 20);
    region.set_block_size(4096);
    let slice = region.slice(4096, 2_000_000);
    let mut list = SendList::default();
    list.push(SendSlice::Private(&[0; 48]));
    list.push(SendSlice::Lent(&slice, 0, 5000));
    list.push(SendSlice::Lent(&slice, 5000, 2_000_000));
    let _held = list.hold();
    assert_eq!((list.len() - 48) % 4096, 0);
    assert_eq!(list.len() - 48, 1 << 20);
}

#[test]
fn an_empty_payload_place_is_left_out() {
    let (a, b) = pair();
    let mut list = SendList::default();
    list.push(SendSlice::Private(b"hello"));
    socket::send(&a, &list).unwrap();
    let mut staging = [0; 8];
    let mut window = ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut staging };
    assert_eq!(socket::receive(&b, &mut window).unwrap(), 5);
    assert_eq!(&staging[..5], b"hello");
}

#[test]
fn what_the_kernel_says_is_handed_on() {
    let (a, b) = pair();
    let mut staging = [0; 8];
    let mut window = ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut staging };
    assert_eq!(socket::receive(&b, &mut window).unwrap_err().kind(), ErrorKind::WouldBlock);
    let big = vec![0; 1 << 20];
    let mut list = SendList::default();
    list.push(SendSlice::Private(&big));
    let mut sent = 0;
    let error = loop {
        match socket::send(&a, &list) {
            Ok(n) => sent += n,
            Err(error) => break error,
        }
    };
    assert!(sent > 0);
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(b);
    // No signal ends the process.
    assert_eq!(socket::send(&a, &list).unwrap_err().kind(), ErrorKind::BrokenPipe);
    let (a, b) = pair();
    drop(a);
    assert_eq!(socket::receive(&b, &mut window).unwrap(), 0);
}

#[test]
fn a_full_list_takes_no_more() {
    let mut list = SendList::default();
    for _ in 0..SendList::CAPACITY {
        assert!(list.push(SendSlice::Private(b"x")));
    }
    assert!(!list.push(SendSlice::Private(b"y")));
    assert_eq!(list.len(), SendList::CAPACITY);
}

#[test]
fn a_window_fills_payload_first() {
    let region = Region::heap(8192);
    region.reserve_for_write(0, 8192).unwrap();
    let slice = region.slice(0, 10);
    let mut staging = [0; 4];
    let mut window = ReceiveWindow { payload: ReceiveSlice::Lent(&slice, 8, 10), staging: &mut staging };
    assert_eq!(window.fill(&[1, 2, 3, 4, 5, 6, 7]), 6);
    assert_eq!(staging, [3, 4, 5, 6]);
    let mut back = [0; 3];
    region.read(7, &mut back);
    assert_eq!(back, [0, 1, 2]);
}
