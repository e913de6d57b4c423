//! A disk as a stream of bytes, against a small target of the tests' own.

mod small_target;

use std::future::Future;
use std::io::{ErrorKind, SeekFrom};
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use initiator_core::{DiskIo, DiskIoOptions, Error, Session};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use small_target::{BYTES, config, start};

fn small() -> DiskIoOptions {
    DiskIoOptions { piece: 4096, read_ahead: 16_384, write_behind: 8192 }
}

#[tokio::test]
async fn any_bytes_anywhere_are_as_a_file_has_them() {
    let (portal, target) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let mut io = DiskIo::new(session.disk(0).await.unwrap(), small());
    let mut model = vec![0u8; 256 << 10];
    let mut seed = 7u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for round in 0..400u64 {
        let (at, len) = (next(240 << 10), 1 + next(if round % 5 == 0 { 15_000 } else { 700 }));
        io.seek(SeekFrom::Start(at)).await.unwrap();
        let range = at as usize..(at + len) as usize;
        if round % 3 == 0 {
            let mut back = vec![0; len as usize];
            io.read_exact(&mut back).await.unwrap();
            assert!(back == model[range], "round {round}: {len} bytes at {at}");
        } else {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 + round) as u8).collect();
            io.write_all(&data).await.unwrap();
            model[range].copy_from_slice(&data);
        }
    }
    io.shutdown().await.unwrap();
    assert!(target.blocks.lock().unwrap()[..model.len()] == model);
    // From the first byte to the last, and no further.
    io.rewind().await.unwrap();
    let mut all = Vec::new();
    assert_eq!(io.read_to_end(&mut all).await.unwrap(), BYTES);
    assert!(all == *target.blocks.lock().unwrap());
    let full = io.write_all(b"x").await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    assert_eq!(io.seek(SeekFrom::End(-1)).await.unwrap(), BYTES as u64 - 1);
    io.write_all(b"x").await.unwrap();
    io.flush().await.unwrap();
    assert_eq!(target.blocks.lock().unwrap()[BYTES - 1], b'x');
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_write_that_fails_behind_is_told_until_the_end() {
    let (portal, target) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let mut io = DiskIo::new(session.disk(0).await.unwrap(), small());
    // It takes less than a block of what it says that it took.
    target.untaken.store(4096, Ordering::Relaxed);
    io.write_all(&[1; 4096]).await.unwrap();
    let told = io.flush().await.unwrap_err();
    assert!(matches!(told.get_ref().and_then(|inner| inner.downcast_ref()), Some(Error::Short { .. })), "{told}");
    target.untaken.store(0, Ordering::Relaxed);
    assert!(io.write_all(&[2; 4096]).await.is_err() && io.flush().await.is_err() && io.shutdown().await.is_err());
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_flush_covers_what_was_given_after_one_that_nobody_waits_for() {
    let (portal, target) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let mut io = DiskIo::new(session.disk(0).await.unwrap(), small());
    let mut given_up = Box::pin(io.flush());
    assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "it is on its way");
    drop(given_up);
    io.write_all(b"later").await.unwrap();
    io.flush().await.unwrap();
    assert_eq!(target.blocks.lock().unwrap()[..5], *b"later");
    session.logout().await.unwrap();
}
