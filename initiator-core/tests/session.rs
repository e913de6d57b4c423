//! Sessions and disks end to end over TCP, against a small target of the tests' own.

mod cutting_proxy;
mod small_target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use initiator_core::{Error, Session, SessionEvent, Transfer};
use iscsi_memory::Buf;
use iscsi_proto::parameters::Digest;

use cutting_proxy::proxy;
use small_target::{BYTES, config, start};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) % 251) as u8).collect()
}

#[tokio::test]
async fn a_disk_is_found_read_and_written() {
    let (portal, _) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    assert_eq!(session.luns().await.unwrap(), [0]);
    assert_eq!(session.info().tpgt, Some(1));
    let disk = session.disk(0).await.unwrap();
    assert_eq!((disk.size(), disk.block_size()), (BYTES as u64, 512));
    let data = pattern(9 << 20, 1);
    disk.write(512, &data).await.unwrap();
    disk.flush().await.unwrap();
    let mut back = vec![0; data.len()];
    disk.read(512, &mut back).await.unwrap();
    assert!(back == data);
    let (buf, result) = disk.read_buf(512, Buf::zeroed(65536)).await;
    result.unwrap();
    assert!(buf[..] == data[..65536]);
    let answer = session.command(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], Transfer::In(64)).await.unwrap();
    assert_eq!((answer.status, answer.data.len()), (0, 16));
    session.logout().await.unwrap();
    assert!(matches!(disk.flush().await, Err(Error::LoggedOut)));
}

#[tokio::test]
async fn what_a_target_leaves_of_a_write_is_written_anew_or_told() {
    let (portal, target) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let data = pattern(65536, 1);
    // Three quarters of a block less than it says: half of what is left each time is not enough to end.
    target.untaken.store(384, Ordering::Relaxed);
    let error = disk.write(0, &data).await.unwrap_err();
    let Error::Short { short, .. } = &error else { panic!("{error}") };
    assert_eq!((short.moved as usize, short.of), (65536 - 512, 65536));
    assert!(target.blocks.lock().unwrap()[..65536 - 512] == data[..65536 - 512], "all but the last block is there");
    let error = disk.write_zeroes(0, 512).await.unwrap_err();
    assert!(error.to_string().contains("of 512 bytes") || matches!(error, Error::Scsi { .. }), "{error}");
    target.untaken.store(0, Ordering::Relaxed);
    disk.write(0, &data).await.unwrap();
    assert!(target.blocks.lock().unwrap()[..65536] == data);
}

#[tokio::test]
async fn a_lun_is_spelled_as_the_target_lists_it() {
    for (number, spelled) in [(256, 0x0100u64), (256, 0x4100), (300, 0x012c), (300, 0x412c), (7, 0x0007), (7, 0x4007)] {
        let (portal, target) = start();
        target.lun.store(spelled << 48, Ordering::Relaxed);
        let session = Session::connect(config(&portal)).await.unwrap();
        let disk = session.disk(number).await.unwrap_or_else(|error| panic!("{spelled:#06x}: {error}"));
        assert_eq!(disk.lun(), number);
        disk.write(0, &pattern(4096, u64::from(number))).await.unwrap();
        assert!(target.blocks.lock().unwrap()[..4096] == pattern(4096, u64::from(number)));
        session.command(number, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], Transfer::None).await.unwrap();
        assert_eq!(session.luns().await.unwrap(), [number]);
        assert!(matches!(session.disk(8).await, Err(Error::NoSuchLun { lun: 8, .. })));
        session.logout().await.unwrap();
    }
}

#[test]
fn a_session_whose_runtime_is_gone_says_so() {
    let lasting = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let portal = lasting.block_on(async { start().0 });
    let brief = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let disk = brief.block_on(async {
        let session = Session::connect(config(&portal)).await.unwrap();
        session.disk(0).await.unwrap()
    });
    drop(brief);
    lasting.block_on(async {
        let ended = async {
            let error = disk.flush().await.unwrap_err();
            assert!(matches!(error, Error::RuntimeGone) && error.to_string().contains("runtime"), "{error}");
            assert!(disk.session().logout().await.is_err());
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.expect("nobody waits for ever");
    });
}

#[tokio::test]
async fn mistakes_have_their_sentences() {
    let (portal, _) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let error = session.disk(7).await.unwrap_err();
    assert!(error.to_string().contains("has no LUN 7 for this initiator"), "{error}");
    let disk = session.disk(0).await.unwrap();
    for (offset, len) in [(1, 512), (0, 100), (BYTES as u64, 512), (u64::MAX - 511, 512)] {
        assert!(matches!(disk.read(offset, &mut vec![0; len]).await, Err(Error::Range { .. })));
    }
    let error = disk.unmap(0, 512).await.unwrap_err();
    assert!(error.to_string().contains("not thin provisioned"), "{error}");
    let error = disk.write_zeroes(0, 512).await.unwrap_err();
    assert!(error.to_string().contains("WRITE SAME(16)"), "{error}");
}

#[tokio::test]
async fn answers_that_are_needed_by_nobody_and_make_no_sense_are_told_and_cost_nothing_else() {
    let (portal, target) = start();
    target.babbles.store(true, Ordering::Relaxed);
    let session = Session::connect(config(&portal)).await.unwrap();
    let mut events = session.events();
    let disk = session.disk(0).await.unwrap();
    let info = disk.info();
    assert_eq!((disk.size(), info.serial, info.write_cache, info.designators), (BYTES as u64, None, None, Vec::new()));
    disk.write(0, &pattern(4096, 1)).await.unwrap();
    let mut odd = Vec::new();
    while odd.len() < 8 {
        match events.next().await {
            Some(SessionEvent::OddAnswer { command, reason }) => odd.push((command, reason)),
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
    for page in ["80h", "83h", "b0h", "b1h", "b2h", "MODE SENSE"] {
        assert!(odd.iter().any(|(command, reason)| command.contains(page) && reason.contains("LUN 0")), "{odd:?}");
    }
    session.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_operations_are_under_way_with_digests() {
    let (portal, _) = start();
    let mut config = config(&portal);
    config.offer.header_digest = vec![Digest::Crc32c];
    config.offer.data_digest = vec![Digest::Crc32c];
    config.limits.commands = 32;
    let session = Session::connect(config).await.unwrap();
    assert_eq!(session.info().parameters.data_digest, Digest::Crc32c);
    let disk = session.disk(0).await.unwrap();
    let tasks: Vec<_> = (0..100u64)
        .map(|i| {
            let disk = disk.clone();
            tokio::spawn(async move {
                let len = [512, 4096, 12288, 131_072][i as usize % 4];
                let data = pattern(len, i);
                disk.write(i * 131_072, &data).await.unwrap();
                let mut back = vec![0; len];
                disk.read(i * 131_072, &mut back).await.unwrap();
                assert!(back == data);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_dropped_operation_leaves_no_trace() {
    let (portal, _) = start();
    let mut config = config(&portal);
    config.limits.commands = 2;
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    for _ in 0..50 {
        let mut data = vec![0; 65536];
        let read = disk.read(0, &mut data);
        // Polled once, then dropped at whatever point it has reached.
        let _ = tokio::time::timeout(Duration::from_micros(50), read).await;
    }
    // Each place in the table came back, or this would wait for ever.
    let mut block = [0; 512];
    tokio::time::timeout(Duration::from_secs(60), disk.read(0, &mut block)).await.unwrap().unwrap();
    session.logout().await.unwrap();
}

#[tokio::test]
async fn buffers_come_back_from_dropped_operations_and_from_failed_ones() {
    let (portal, _) = start();
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let buf = disk.buf(3 << 20);
    let address = buf.as_ptr();
    {
        let write = disk.write_buf(0, buf);
        tokio::pin!(write);
        // Polled once: it is handed over and not done.
        assert!(futures::poll!(&mut write).is_pending());
    }
    let back = async {
        loop {
            let buf = disk.buf(3 << 20);
            if buf.as_ptr() == address {
                break buf;
            }
            tokio::task::yield_now().await;
        }
    };
    let buf = tokio::time::timeout(Duration::from_secs(60), back).await.expect("it comes back");
    session.logout().await.unwrap();
    let (buf, result) = disk.write_buf(0, buf).await;
    assert!(matches!(result, Err(Error::LoggedOut)));
    assert_eq!((buf.as_ptr(), buf.len()), (address, 3 << 20), "it comes back with the error");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_over_cut_connections_and_none_is_lost() {
    let (target, memory) = start();
    let (portal, cut) = proxy(target).await;
    let mut config = config(&portal);
    config.reconnect.longest_delay = Duration::from_millis(100);
    config.reconnect.first_delay = Duration::from_millis(10);
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16u64)
        .map(|i| {
            let (disk, stop) = (disk.clone(), stop.clone());
            tokio::spawn(async move {
                let len = if i % 4 == 0 { 131_072 } else { 4096 };
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    written += 1;
                    disk.write(i << 20, &pattern(len, written)).await.unwrap();
                }
                (i, len, written)
            })
        })
        .collect();
    for n in 1..=10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The proxy may not have taken the new connection yet: cut until the session has noticed.
        while session.stats().reconnects < n {
            cut.notify_waiters();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (i, len, written) = writer.await.unwrap();
        assert!(written > 0);
        let at = (i as usize) << 20;
        assert!(memory.blocks.lock().unwrap()[at..at + len] == pattern(len, written), "writer {i}");
    }
    let stats = session.stats();
    assert!(stats.repeated > 0, "commands were in flight when the connection was cut: {stats:?}");
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_session_that_cannot_come_back_says_so() {
    let (target, _) = start();
    let (portal, cut) = proxy(target.clone()).await;
    let mut config = config(&portal);
    config.reconnect.deadline = Duration::from_millis(300);
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    // The next connections of the proxy are cut as soon as they come.
    let cutter = tokio::spawn(async move {
        loop {
            cut.notify_waiters();
            tokio::task::yield_now().await;
        }
    });
    let error = loop {
        if let Err(error) = disk.read(0, &mut [0; 512]).await {
            break error;
        }
    };
    cutter.abort();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert!(error.to_string().contains("could not be built anew within 300ms"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_found_to_be_another_when_it_is_refreshed_gets_nothing_more() {
    let (portal, target) = start();
    target.serial.store(1, Ordering::Relaxed);
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    assert_eq!(disk.refresh().await.unwrap().serial.as_deref(), Some("0001"));
    disk.write(0, &[1; 512]).await.unwrap();
    // The target says no word of it.
    target.serial.store(2, Ordering::Relaxed);
    let told = disk.refresh().await;
    assert!(matches!(told, Err(Error::OtherDisk { lun: 0, .. })), "{told:?}");
    assert!(matches!(disk.write(0, &[2; 512]).await, Err(Error::OtherDisk { .. })));
    assert_eq!(target.blocks.lock().unwrap()[0], 1);
    assert!(session.disk(0).await.is_ok(), "who opens it anew means it");
}
