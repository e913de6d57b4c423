//! Vectored I/O over a socket pair, with private and lent memory.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use iscsi_memory::{BlocksPlace, Landing, ReceiveSlice, ReceiveWindow, Region, RegionSlice};
use iscsi_memory::{SendList, SendSlice, socket};

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

/// Sends these bytes.
fn give(to: impl std::os::fd::AsFd, bytes: &[u8]) {
    let mut list = SendList::default();
    list.push(SendSlice::Private(bytes));
    assert_eq!(socket::send(to, &list).unwrap(), bytes.len());
}

/// What one receive into blocks came to.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    /// Bytes from the socket.
    bytes: usize,
    landed: usize,
    /// Bytes that were asked for.
    asked: usize,
    staged: Vec<u8>,
}

/// Receives into bytes `start..end` of a slice, of which `begun` have come, and into `room` bytes of staging.
fn receive_blocks(
    from: impl std::os::fd::AsFd,
    (slice, start, end): (&RegionSlice, usize, usize),
    begun: &[u8],
    room: usize,
) -> Came {
    let (mut staging, mut landed) = (vec![0; room], 77);
    let payload = ReceiveSlice::Blocks(BlocksPlace::new(slice, (start, end), begun, &mut landed));
    let mut window = ReceiveWindow { payload, staging: &mut staging };
    let bytes = socket::receive(from, &mut window).unwrap();
    let asked = window.len();
    staging.truncate(bytes - landed.saturating_sub(begun.len()));
    Came { bytes, landed, asked, staged: staging }
}

/// So many bytes that are not zero.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 + 1) as u8).collect()
}

#[test]
fn whole_blocks_are_received_into_lent_memory_and_the_rest_into_staging() {
    let (a, b) = pair();
    let region = Region::heap(4 << 20);
    let slice = region.slice(1536, 100_000);
    let data = pattern(60_000);
    give(&a, &data[..30_100]);
    let came = receive_blocks(&b, (&slice, 0, 60_000), &[], 4096);
    let staged = data[58 * 512..30_100].to_vec();
    assert_eq!(came, Came { bytes: 30_100, landed: 58 * 512, asked: 58 * 512 + 4096, staged: staged.clone() });
    give(&a, &data[30_100..50_000]);
    let came = receive_blocks(&b, (&slice, 58 * 512, 60_000), &staged, 4096);
    let left = data[97 * 512..50_000].to_vec();
    let asked = 39 * 512 - staged.len() + 4096;
    assert_eq!(came, Came { bytes: 19_900, landed: 39 * 512, asked, staged: left.clone() });
    // Less than the rest of the block.
    give(&a, &data[50_000..50_100]);
    let came = receive_blocks(&b, (&slice, 97 * 512, 60_000), &left, 4096);
    assert_eq!(came, Came { bytes: 100, landed: 0, asked: 4096, staged: data[50_000..50_100].to_vec() });
    let mut back = vec![0; 60_000];
    slice.read(0, &mut back);
    assert!(back[..97 * 512] == data[..97 * 512] && back[97 * 512..].iter().all(|byte| *byte == 0));
    assert_eq!(region.allocated(), ((1536 + 97 * 512u64).div_ceil(4096)) * 4096, "the pages are entered");
}

#[test]
fn blocks_land_up_to_the_end_of_a_mebibyte_and_of_their_slice() {
    let (a, b) = pair();
    let region = Region::heap(4 << 20);
    let start = (1 << 20) - 20_480;
    let slice = region.slice(start as u64, 40_700);
    let data = pattern(40_800);
    give(&a, &data);
    let came = receive_blocks(&b, (&slice, 0, 40_700), &[], 100);
    assert_eq!((came.bytes, came.landed, &came.staged[..]), (20_580, 20_480, &data[20_480..20_580]));
    let came = receive_blocks(&b, (&slice, 20_480, 40_700), &came.staged, 100);
    assert_eq!((came.bytes, came.landed, &came.staged[..]), (20_220, 20_220, &data[40_700..]));
    let mut back = vec![0; 40_700];
    region.read(start as u64, &mut back);
    assert!(back == data[..40_700]);
}

#[test]
fn blocks_that_may_not_land_now_come_to_staging() {
    let (a, b) = pair();
    let landing = std::sync::Arc::new(NotYet(0.into()));
    let slice = Region::heap(1 << 20).slice(0, 65_536).with_landing(landing.clone());
    give(&a, &[5; 40_960]);
    let came = receive_blocks(&b, (&slice, 0, 65_536), &[], 512);
    assert_eq!(came, Came { bytes: 512, landed: 0, asked: 512, staged: vec![5; 512] }, "the socket is not empty");
    let came = receive_blocks(&b, (&slice, 512, 65_536), &[], 512);
    assert_eq!((came.bytes, came.landed), (40_448, 40_448));
    assert_eq!(landing.0.load(std::sync::atomic::Ordering::Relaxed), 2);
    drop(a);
    assert_eq!(receive_blocks(&b, (&slice, 40_960, 65_536), &[], 512).bytes, 0, "the end of the stream");
}

/// Receives bytes `at..` of a slice until they have all come, as a mover does: what has come whole in staging lands out
/// of it. Gives how many bytes landed straight.
fn receive_all(from: impl std::os::fd::AsFd, slice: &RegionSlice) -> usize {
    let (mut at, mut straight, mut staged) = (0, 0, Vec::new());
    while at < slice.len() {
        let came = receive_blocks(&from, (slice, at, slice.len()), &staged, 4096);
        assert_ne!(came.bytes, 0);
        if came.landed > 0 {
            staged.clear();
        }
        straight += came.landed;
        at += came.landed;
        staged.extend_from_slice(&came.staged);
        let whole = staged.len() / 512 * 512;
        assert!(slice.try_write(at, &staged[..whole]));
        staged.drain(..whole);
        at += whole;
    }
    straight
}

#[test]
fn a_byte_that_is_marked_as_urgent_leaves_no_part_of_a_block() {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    socket::keep_urgent_in_line(&b).unwrap();
    let data = pattern(10_240);
    let slice = Region::heap(1 << 20).slice(0, data.len());
    give(&a, &data[..700]);
    // SAFETY: the byte outlives the call.
    let sent = unsafe { libc::send(a.as_raw_fd(), data[700..].as_ptr().cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1);
    give(&a, &data[701..]);
    receive_all(&b, &slice);
    let mut back = vec![0; data.len()];
    slice.read(0, &mut back);
    assert!(back == data);
}

#[test]
fn a_block_is_received_whole_for_those_who_read_it() {
    const LEN: usize = 128 << 10;
    let (a, b) = UnixStream::pair().unwrap();
    let slice = Region::heap(1 << 20).slice(512, LEN);
    std::thread::scope(|scope| {
        let (next, turn) = std::sync::mpsc::sync_channel(0);
        scope.spawn(move || {
            while let Ok(round) = turn.recv() {
                let (data, mut sent) = ([round; LEN], 0);
                while sent < LEN {
                    let mut list = SendList::default();
                    list.push(SendSlice::Private(&data[sent..]));
                    sent += socket::send(&a, &list).unwrap();
                }
            }
        });
        let reader = scope.spawn(|| {
            let mut data = vec![0; LEN];
            while data[LEN - 1] < 200 {
                slice.read(0, &mut data);
                for block in data.chunks(512) {
                    assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
                }
            }
        });
        let mut straight = 0;
        for round in 1..=200u8 {
            next.send(round).unwrap();
            straight += receive_all(&b, &slice);
        }
        assert!(straight > 0);
        reader.join().unwrap();
    });
}
