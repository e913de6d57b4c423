//! The file store on real files: both doors, holes, errors.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::Wake;
use std::time::Duration;

use futures::executor::block_on;

use super::*;
use crate::StoreRequest;
use crate::file_medium::{of_write, whole};

/// A path of its own for each test; what is there is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("file-store-{}-{count}", std::process::id())))
    }

    fn create(&self, bytes: u64) -> FileStore {
        FileStore::open(&self.0, &FileOptions { create: Some(bytes), ..FileOptions::default() }).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn what_is_written_is_there_after_opening_again() {
    let path = Scratch::new();
    let store = path.create(1 << 20);
    assert_eq!(store.geometry().blocks, 2048);
    assert!(store.abilities().volatile_cache);
    block_on(store.write(2047, &[7; 512])).unwrap();
    block_on(store.write(0, &[8; 8192])).unwrap();
    block_on(store.flush()).unwrap();
    drop(store);
    let store = path.create(1 << 30);
    assert_eq!(store.geometry().blocks, 2048, "what exists is not resized");
    let mut data = vec![0; 1 << 20];
    block_on(store.read(0, &mut data)).unwrap();
    assert!(data[..8192].iter().all(|b| *b == 8));
    assert!(data[8192..2047 * 512].iter().all(|b| *b == 0));
    assert!(data[2047 * 512..].iter().all(|b| *b == 7));
}

#[test]
fn unmap_punches_holes_that_lba_status_sees() {
    let path = Scratch::new();
    let store = path.create(4 << 20);
    assert_eq!(block_on(store.lba_status(5)), Ok(LbaStatus { blocks: 8192 - 5, mapped: false }));
    block_on(store.write(0, &vec![1; 2 << 20])).unwrap();
    let full = fs::metadata(&path.0).unwrap().blocks();
    assert_eq!(block_on(store.lba_status(0)), Ok(LbaStatus { blocks: 4096, mapped: true }));
    assert!(store.abilities().unmap, "the test needs a temporary directory whose file system punches holes");
    block_on(store.unmap(1024, 2048)).unwrap();
    assert!(fs::metadata(&path.0).unwrap().blocks() <= full - 2048 + 16);
    assert_eq!(block_on(store.lba_status(0)), Ok(LbaStatus { blocks: 1024, mapped: true }));
    assert_eq!(block_on(store.lba_status(1024)), Ok(LbaStatus { blocks: 2048, mapped: false }));
    let mut data = [9; 1024];
    block_on(store.read(1023, &mut data)).unwrap();
    assert_eq!((data[0], data[512]), (1, 0));
}

/// A file whose `fsync` fails as told, and forgets that it did: as Linux, with what it could not write dropped.
#[derive(Default)]
struct Dropping {
    bytes: std::sync::Mutex<Vec<u8>>,
    fails: std::sync::atomic::AtomicBool,
    syncing: std::sync::Mutex<()>,
    syncs: AtomicUsize,
}

impl BlockFile for Arc<Dropping> {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        data.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..offset as usize + data.len()]);
        Ok(data.len())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.bytes.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(data.len())
    }
    fn sync_data(&self) -> io::Result<()> {
        let result = if self.fails.swap(false, Ordering::SeqCst) { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
        self.syncs.fetch_add(1, Ordering::SeqCst);
        drop(self.syncing.lock().unwrap());
        result
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn next_hole(&self, _: u64) -> io::Result<u64> {
        Ok(1 << 20)
    }
}

fn dropping() -> (Arc<Dropping>, Arc<FileMedium<Arc<Dropping>>>) {
    let file = Arc::new(Dropping { bytes: vec![0; 1 << 20].into(), ..Dropping::default() });
    let abilities = Abilities { unmap: true, volatile_cache: true, ..Abilities::default() };
    (file.clone(), Arc::new(FileMedium::new(file, Geometry::of_bytes(1 << 20), abilities)))
}

fn write(lba: u64, blocks: usize) -> StoreOp {
    StoreOp::Write { lba, buf: Buf::zeroed(blocks * 512) }
}

#[test]
fn what_a_failed_flush_may_have_lost_cannot_be_read_until_it_is_written_again() {
    let (file, medium) = dropping();
    let run = |op| medium.perform(0, op).result;
    let read = |lba, blocks: usize| run(StoreOp::Read { lba, buf: Buf::zeroed(blocks * 512) });
    assert_eq!((run(write(0, 8)), run(StoreOp::Flush), medium.failed_flushes()), (Ok(()), Ok(()), 0));
    run(write(10, 4)).unwrap();
    run(StoreOp::Unmap { lba: 20, blocks: 2 }).unwrap();
    file.fails.store(true, Ordering::SeqCst);
    assert_eq!((run(StoreOp::Flush), medium.failed_flushes()), (Err(StoreError::Write(None)), 1));
    assert_eq!(run(StoreOp::Flush), Ok(()), "the system says nothing of it any more");
    assert_eq!((read(0, 10), read(14, 6)), (Ok(()), Ok(())));
    assert_eq!((read(8, 4), read(21, 4)), (Err(StoreError::Read(Some(10))), Err(StoreError::Read(Some(21)))));
    run(write(10, 2)).unwrap();
    run(StoreOp::Unmap { lba: 19, blocks: 4 }).unwrap();
    assert_eq!((read(8, 4), read(8, 5)), (Ok(()), Err(StoreError::Read(Some(12)))));
    assert_eq!(read(19, 4), Ok(()));
    // What was written in the place of lost data can be lost again.
    file.fails.store(true, Ordering::SeqCst);
    assert_eq!((run(StoreOp::Flush), read(10, 1)), (Err(StoreError::Write(None)), Err(StoreError::Read(Some(10)))));
}

#[test]
fn no_flush_at_the_same_time_is_good_though_the_system_tells_the_error_once() {
    let (file, medium) = dropping();
    let _ = medium.perform(0, write(0, 1));
    file.fails.store(true, Ordering::SeqCst);
    let syncing = file.syncing.lock().unwrap();
    let flush = || {
        let medium = medium.clone();
        std::thread::spawn(move || medium.perform(0, StoreOp::Flush).result)
    };
    let first = flush();
    while file.syncs.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    // Written while the flush is under way, and asked to be durable before it is known to fail.
    let _ = medium.perform(0, write(5, 1));
    let others = [flush(), flush(), flush()];
    while medium.waiting_flushes() < 3 {
        std::thread::yield_now();
    }
    drop(syncing);
    assert_eq!(first.join().unwrap(), Err(StoreError::Write(None)));
    for other in others {
        assert_eq!(other.join().unwrap(), Err(StoreError::Write(None)));
    }
    assert_eq!(medium.perform(0, StoreOp::Flush).result, Ok(()));
    let read = |lba| medium.perform(0, StoreOp::Read { lba, buf: Buf::zeroed(512) }).result;
    assert_eq!((read(0), read(5), read(9)), (Err(StoreError::Read(Some(0))), Err(StoreError::Read(Some(5))), Ok(())));
    // Three that waited at once were done by one.
    assert_eq!((file.syncs.load(Ordering::SeqCst), medium.failed_flushes()), (3, 1));
}

struct Bell(mpsc::Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

#[test]
fn the_queue_takes_more_than_its_depth_and_answers_each_once() {
    let path = Scratch::new();
    let store = Arc::new(path.create(1 << 20));
    let (sender, bell) = mpsc::channel();
    let mut queue = store.clone().open_queue(Waker::from(Arc::new(Bell(sender)))).expect("a queue");
    drop(store);
    let mut run = |requests: Vec<StoreRequest>| {
        let count = requests.len();
        let mut batch = requests;
        queue.submit(&mut batch);
        assert!(batch.is_empty());
        let mut done = Vec::new();
        while done.len() < count {
            bell.recv_timeout(Duration::from_secs(20)).expect("a wake for each completion that waits");
            queue.poll(&mut done);
        }
        assert_eq!(done.len(), count);
        done.sort_by_key(|c| c.token);
        assert!(done.iter().enumerate().all(|(i, c)| c.token == i as u64 && c.result.is_ok()));
        done
    };
    let written = run((0..1000)
        .map(|i| {
            let mut buf = Buf::zeroed(512);
            buf.fill(i as u8);
            StoreRequest { token: i, op: StoreOp::Write { lba: i, buf } }
        })
        .collect());
    assert!(written.iter().all(|c| c.buf.is_some()));
    let read = run((0..1000)
        .map(|i| StoreRequest { token: i, op: StoreOp::Read { lba: i, buf: Buf::zeroed(512) } })
        .collect());
    for c in &read {
        assert!(c.buf.as_ref().is_some_and(|buf| buf.iter().all(|b| *b == c.token as u8)), "block {}", c.token);
    }
    run(vec![
        StoreRequest { token: 0, op: StoreOp::Flush },
        StoreRequest { token: 1, op: StoreOp::Unmap { lba: 0, blocks: 8 } },
        StoreRequest { token: 2, op: StoreOp::LbaStatus { lba: 0 } },
    ]);
}

#[test]
fn threads_end_with_the_store_and_accepted_writes_are_done() {
    let path = Scratch::new();
    let store = path.create(1 << 20);
    let weak = Arc::downgrade(&store.medium);
    let store = Arc::new(store);
    let mut queue = store.clone().open_queue(Waker::noop().clone()).expect("a queue");
    let mut buf = Buf::zeroed(1 << 19);
    buf.fill(3);
    queue.submit(&mut vec![StoreRequest { token: 0, op: StoreOp::Write { lba: 0, buf } }]);
    drop(store);
    assert!(weak.upgrade().is_some(), "the queue keeps the store");
    drop(queue);
    assert!(weak.upgrade().is_none(), "threads are joined, and with them the last use of the file is over");
    assert!(fs::read(&path.0).unwrap()[..1 << 19].iter().all(|b| *b == 3));
}

#[test]
fn a_read_only_store_refuses_writes_and_shares_its_file() {
    let path = Scratch::new();
    drop(path.create(4096));
    let options = FileOptions { read_only: true, ..FileOptions::default() };
    let store = FileStore::open(&path.0, &options).unwrap();
    let other = FileStore::open(&path.0, &options).unwrap();
    assert!(other.abilities().read_only && !other.abilities().unmap);
    assert_eq!(block_on(store.write(0, &[1; 512])), Err(StoreError::ReadOnly));
    assert_eq!(block_on(store.unmap(0, 1)), Err(StoreError::ReadOnly));
    assert_eq!(block_on(store.flush()), Ok(()));
    assert_eq!(block_on(store.read(0, &mut [0; 512])), Ok(()));
}

#[test]
fn a_file_that_was_cut_gives_a_medium_error_at_the_first_missing_block() {
    let path = Scratch::new();
    let store = path.create(1 << 20);
    File::options().write(true).open(&path.0).unwrap().set_len(512 * 10).unwrap();
    assert_eq!(block_on(store.read(8, &mut [0; 4096])), Err(StoreError::Read(Some(10))));
}

#[test]
fn blocks_that_a_cut_file_has_lost_are_no_hole() {
    let path = Scratch::new();
    let store = path.create(1 << 20);
    // A block that is there in part cannot be read either.
    File::options().write(true).open(&path.0).unwrap().set_len(512 * 1024 + 100).unwrap();
    assert_eq!(block_on(store.lba_status(0)), Ok(LbaStatus { blocks: 1024, mapped: false }));
    for lba in [1024, 1025, 2047] {
        assert_eq!(block_on(store.lba_status(lba)), Ok(LbaStatus { blocks: 2048 - lba, mapped: true }), "{lba}");
        assert!(block_on(store.read(lba, &mut [0; 512])).is_err());
    }
}

#[test]
fn system_errors_become_store_errors() {
    let of = |errno: Errno| of_write(&errno.into(), Some(4));
    assert_eq!(of(Errno::NOSPC), StoreError::NoSpace);
    assert_eq!(of(Errno::DQUOT), StoreError::NoSpace);
    assert_eq!(of(Errno::ROFS), StoreError::ReadOnly);
    assert_eq!(of(Errno::IO), StoreError::Write(Some(4)));
    assert_eq!(of(Errno::OPNOTSUPP), StoreError::Unsupported);
}

#[test]
fn a_full_device_is_no_space() {
    // Linux has a device whose writes always find no space; it holds no blocks, so the medium is put together here.
    let file = File::options().read(true).write(true).open("/dev/full").unwrap();
    let medium = FileMedium::new(file, Geometry::of_bytes(1 << 20), Abilities::default());
    assert_eq!(medium.write(0, &[1; 512]), Err(StoreError::NoSpace));
}

#[test]
fn a_flush_reaches_the_file() {
    // A device that can take bytes and has nothing to make durable says so, which tells that it was asked.
    let file = File::options().write(true).open("/dev/null").unwrap();
    let medium = FileMedium::new(file, Geometry::of_bytes(1 << 20), Abilities::default());
    assert_eq!(medium.perform(0, StoreOp::Flush).result, Err(StoreError::Write(None)));
}

#[test]
fn a_short_write_is_continued() {
    let mut taken = Vec::new();
    let mut pieces = [Ok(1), Ok(300), Err(io::ErrorKind::Interrupted.into()), Ok(211), Ok(512), Ok(0)].into_iter();
    let mut write = |at| {
        taken.push(at);
        pieces.next().unwrap()
    };
    assert!(whole(1024, &mut write).is_ok());
    assert!(matches!(whole(512, &mut write), Err((0, None))), "no progress is no success");
    assert_eq!(taken, [0, 1, 301, 301, 512, 0]);
}

#[test]
fn what_cannot_be_opened_is_told_in_a_sentence() {
    let told = |path: &Path, options: &FileOptions| FileStore::open(path, options).expect_err("a refusal").to_string();
    let plain = FileOptions::default();
    let path = Scratch::new();
    let text = told(&path.0, &plain);
    assert!(text.contains(&path.0.display().to_string()) && text.contains("there is no file"), "{text}");
    assert!(told(&std::env::temp_dir(), &plain).contains("is not a file or block device"));
    assert!(told(Path::new("/dev/null"), &plain).contains("is not a file or block device"));
    assert!(told(&path.0, &FileOptions { create: Some(1000), ..plain.clone() }).contains("whole number of blocks"));
    assert!(told(&path.0, &FileOptions { block_size: 520, ..plain.clone() }).contains("block size of 520"));
    assert!(!path.0.exists(), "a refusal creates nothing");

    fs::write(&path.0, [0; 1000]).unwrap();
    assert!(told(&path.0, &plain).contains("is 1000 bytes long"));
    fs::write(&path.0, []).unwrap();
    assert!(told(&path.0, &plain).contains("is 0 bytes long"));
    fs::write(&path.0, [0; 4096]).unwrap();
    let store = FileStore::open(&path.0, &plain).unwrap();
    assert!(told(&path.0, &plain).contains("is in use"));
    assert!(told(&path.0, &FileOptions { read_only: true, ..plain.clone() }).contains("is in use"));
    drop(store);
    FileStore::open(&path.0, &plain).unwrap();
    for (write, part) in [(true, "for writing"), (false, "may not be opened:")] {
        let text = StoreOpenError::Denied { path: path.0.clone(), write }.to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn direct_files_take_whole_pages() {
    let path = Scratch::new();
    drop(path.create(1 << 20));
    let options = FileOptions { direct: true, block_size: 4096, ..FileOptions::default() };
    match FileStore::open(&path.0, &options) {
        Ok(store) => {
            block_on(store.write(3, &[6; 8192])).unwrap();
            let mut data = [0; 4096];
            block_on(store.read(4, &mut data)).unwrap();
            assert_eq!(data, [6; 4096]);
        }
        // Some file systems for temporary files have no direct I/O; the refusal must say so.
        Err(error) => assert!(matches!(error, StoreOpenError::Direct { .. }), "{error}"),
    }
}

/// A file whose first call halts in the middle of a block until it is let go on.
struct Halting {
    bytes: std::sync::Mutex<Vec<u8>>,
    halts: std::sync::atomic::AtomicBool,
    halted: mpsc::SyncSender<()>,
    goes_on: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl Halting {
    /// Copies `len` bytes by `copy`, which is given from where to where.
    fn by_halves(&self, len: usize, mut copy: impl FnMut(&mut [u8], std::ops::Range<usize>)) {
        copy(&mut self.bytes.lock().unwrap(), 0..len / 2);
        if self.halts.swap(false, Ordering::SeqCst) {
            self.halted.send(()).unwrap();
            self.goes_on.lock().unwrap().recv().unwrap();
        }
        copy(&mut self.bytes.lock().unwrap(), len / 2..len);
    }
}

impl BlockFile for Arc<Halting> {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = |bytes: &mut [u8], part: std::ops::Range<usize>| {
            data[part.clone()].copy_from_slice(&bytes[offset as usize..][part]);
        };
        self.by_halves(512, from);
        Ok(512)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let to = |bytes: &mut [u8], part: std::ops::Range<usize>| {
            bytes[offset as usize..][part.clone()].copy_from_slice(&data[part]);
        };
        self.by_halves(512, to);
        Ok(512)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn punch_hole(&self, offset: u64, _: u64) -> io::Result<()> {
        self.by_halves(512, |bytes, part| bytes[offset as usize..][part].fill(0));
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn next_hole(&self, _: u64) -> io::Result<u64> {
        Ok(1 << 20)
    }
}

/// Whether a read of a block of 7s finds it whole, when the one of the two calls comes in the middle of the other.
fn is_whole(first: StoreOp, second: StoreOp, patience: Duration) -> bool {
    let ((halted, reached), (go_on, goes_on)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    let file =
        Arc::new(Halting { bytes: vec![7; 1 << 20].into(), halts: true.into(), halted, goes_on: goes_on.into() });
    let abilities = Abilities { unmap: true, ..Abilities::default() };
    let medium = Arc::new(FileMedium::new(file, Geometry::of_bytes(1 << 20), abilities).with_patience(patience));
    let run = |op| {
        let medium = medium.clone();
        std::thread::spawn(move || medium.perform(0, op).buf)
    };
    let first = run(first);
    reached.recv().unwrap();
    let second = run(second);
    while medium.waiting_calls() == 0 && !second.is_finished() {
        std::thread::yield_now();
    }
    if patience.is_zero() {
        // It is not waited for.
        while !second.is_finished() {
            std::thread::yield_now();
        }
    }
    go_on.send(()).unwrap();
    let bufs = [first.join().unwrap(), second.join().unwrap()];
    // What is written is zero.
    bufs.iter().flatten().all(|buf| buf.iter().all(|byte| *byte == buf[0]))
}

#[test]
fn a_block_that_is_read_is_old_or_new_whatever_is_under_way() {
    let read = || StoreOp::Read { lba: 3, buf: Buf::zeroed(512) };
    let unmap = || StoreOp::Unmap { lba: 3, blocks: 1 };
    let hour = Duration::from_secs(3600);
    for (first, second) in [(write(3, 1), read()), (read(), write(3, 1)), (unmap(), read()), (read(), unmap())] {
        assert!(is_whole(first, second, hour));
    }
    // A file that holds a write back does not hold back the reads.
    assert!(!is_whole(write(3, 1), read(), Duration::ZERO));
}

/// A file that holds back reads beyond its first block until it is let go on.
#[derive(Default)]
struct Holding {
    let_go: std::sync::Mutex<bool>,
    went: std::sync::Condvar,
}

impl BlockFile for Arc<Holding> {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset != 0 {
            drop(self.went.wait_while(self.let_go.lock().unwrap(), |let_go| !*let_go).unwrap());
        }
        Ok(data.len())
    }
    fn write_at(&self, data: &[u8], _: u64) -> io::Result<usize> {
        Ok(data.len())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn next_hole(&self, _: u64) -> io::Result<u64> {
        Ok(1 << 20)
    }
}

#[test]
fn a_queue_whose_operations_are_held_back_leaves_a_thread_to_the_others() {
    let file = Arc::new(Holding::default());
    let medium = Arc::new(FileMedium::new(file.clone(), Geometry::of_bytes(1 << 20), Abilities::default()));
    let pool = Pool::start(medium, 2).unwrap();
    let (ours, our_bell) = mpsc::channel();
    let (theirs, their_bell) = mpsc::channel();
    let mut held = FileQueue::new(pool.jobs(), Waker::from(Arc::new(Bell(ours))));
    let mut other = FileQueue::new(pool.jobs(), Waker::from(Arc::new(Bell(theirs))));
    let read = |token, lba| StoreRequest { token, op: StoreOp::Read { lba, buf: Buf::zeroed(512) } };
    held.submit(&mut (1..9).map(|lba| read(lba, lba)).collect());
    other.submit(&mut vec![read(0, 0)]);
    let passed = their_bell.recv_timeout(Duration::from_secs(20)).is_ok();
    *file.let_go.lock().unwrap() = true;
    file.went.notify_all();
    let mut done = Vec::new();
    while done.len() < 8 {
        our_bell.recv_timeout(Duration::from_secs(20)).expect("a wake for each completion that waits");
        held.poll(&mut done);
    }
    assert!(passed);
}
