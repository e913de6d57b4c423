//! Both roles together, over iSER on iWARP in user space, with plain iSCSI beside it on the same port.
#![cfg(feature = "iser")]

mod cutting_proxy;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use initiator_core::{
    Credentials, DiscoveryConfig, Error, Portal, Rdma, Session, SessionConfig, Transport, Url, discover,
};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::pdu::LoginStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use cutting_proxy::proxy;
use server::{BYTES, NAME, config, held, serve, serve_with};
use target_core::session::Limits;

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) % 251) as u8).collect()
}

fn iser(portal: &Portal) -> SessionConfig {
    let mut config = config(portal);
    config.transport = Transport::Iser;
    config.iser.rdma = Rdma::Iwarp;
    config
}

fn auto(portal: &Portal) -> SessionConfig {
    SessionConfig { transport: Transport::Auto, ..iser(portal) }
}

fn quick(mut config: SessionConfig) -> SessionConfig {
    config.reconnect.longest_delay = Duration::from_millis(100);
    config.reconnect.first_delay = Duration::from_millis(10);
    config.reconnect.honour_time2wait = false;
    config
}

/// A portal that answers each connection as `serve` does.
async fn peer<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Portal
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Portal { host: "127.0.0.1".into(), port }
}

/// Passes connections on to a target, except that it treats those of iWARP as `iwarp` does.
async fn tcp_only<F>(to: Portal, iwarp: impl Fn(TcpStream) -> F + Clone + Send + 'static) -> Portal
where
    F: Future<Output = ()> + Send + 'static,
{
    peer(move |mut near| {
        let (to, iwarp) = (to.clone(), iwarp.clone());
        async move {
            let mut first = [0; 1];
            if near.peek(&mut first).await.unwrap_or(0) == 0 {
                return;
            }
            if first == *b"M" {
                return iwarp(near).await;
            }
            let mut far = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_disk_over_iser_with_tcp_beside_it_on_the_same_port() {
    let (server, portal, store) = serve(None);
    let url: Url = format!("iser://{portal}/{NAME}/0?rdma=iwarp").parse().unwrap();
    let session = Session::from_url(&url).await.unwrap();
    let info = session.info();
    assert_eq!((info.transport, info.provider, info.device.as_deref()), ("iser", "iwarp", None));
    assert_eq!(info.read_depth, Some(32));
    assert!(info.parameters.rdma_extensions);
    let disk = session.disk(0).await.unwrap();
    let tcp = Session::connect(config(&portal)).await.unwrap();
    assert_eq!((tcp.info().transport, tcp.info().provider, tcp.info().read_depth), ("tcp", "tcp", None));
    let plain = tcp.disk(0).await.unwrap();
    for len in [512, 4096, 8192, 12_288, 65_536, 1_048_576 + 512, 4 << 20] {
        let data = pattern(len, len as u64);
        disk.write(1 << 20, &data).await.unwrap();
        assert!(held(&store, 1 << 20, len).await == data, "{len} bytes written");
        let mut back = vec![0; len];
        plain.read(1 << 20, &mut back).await.unwrap();
        assert!(back == data, "{len} bytes over TCP");
        back.fill(0);
        disk.read(1 << 20, &mut back).await.unwrap();
        assert!(back == data, "{len} bytes read");
    }
    disk.flush().await.unwrap();
    disk.unmap(1 << 20, 1 << 20).await.unwrap();
    assert!(held(&store, 1 << 20, 1 << 20).await.iter().all(|byte| *byte == 0));
    disk.compare_and_write(0, &[0; 512], &[7; 512]).await.unwrap();
    assert!(matches!(disk.compare_and_write(0, &[0; 512], &[8; 512]).await, Err(Error::Miscompare(0))));
    assert_eq!(session.luns().await.unwrap(), [0]);
    assert_eq!(session.send_targets().await.unwrap().targets[0].portals[0].port, portal.port);

    let sessions = server.sessions();
    let [ours, other] = [0, 1].map(|at| &sessions[at]);
    assert_eq!((ours.transport, ours.carrier.provider), ("iser", "iwarp"));
    assert_eq!((other.transport, other.carrier.provider, other.mover), ("tcp", "tcp", None));
    let mover = ours.mover.unwrap();
    assert_eq!(mover.read_depth, 32);
    assert!(mover.written > 5 << 20 && mover.read > 5 << 20, "{mover:?}");
    assert!(mover.registered > 0);
    assert_eq!(server.movers(), Some(mover));
    assert!(session.stats().mover.is_some() && tcp.stats().mover.is_none());
    session.logout().await.unwrap();
    tcp.logout().await.unwrap();
}

#[tokio::test]
async fn large_transfers_are_not_copied_by_the_target() {
    let (server, portal, _) = serve(None);
    let session = Session::connect(iser(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let before = server.sessions()[0].mover.unwrap();
    let data = pattern(1 << 20, 1);
    let mut back = vec![0; 1 << 20];
    for _ in 0..16 {
        disk.write(0, &data).await.unwrap();
        disk.read(0, &mut back).await.unwrap();
    }
    assert!(back == data);
    let after = server.sessions()[0].mover.unwrap();
    assert_eq!((after.read - before.read, after.written - before.written), (16 << 20, 16 << 20));
    // Without the CRC, what a stream brings together with a header is all that has to be copied.
    let copied = after.copied - before.copied;
    assert!(copied < 4 << 20, "{copied} of 32 MiB");
    session.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_io_is_what_was_written() {
    for crc in [false, true] {
        let (_server, portal, _) = serve(None);
        let mut config = iser(&portal);
        config.iser.crc = crc;
        let session = Session::connect(config).await.unwrap();
        let workers: Vec<_> = (0..16u64)
            .map(|worker| {
                let session = session.clone();
                tokio::spawn(async move {
                    let disk = session.disk(0).await.unwrap();
                    // Each has its own part of the disk, and knows what is there.
                    let (base, part) = (worker * (BYTES / 16), (BYTES / 16) as usize);
                    let mut model = vec![0; part];
                    let mut random = worker + 1;
                    for pass in 0..60 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let len = [512, 2048, 8192, 16_384, 131_072, 524_288][(random >> 33) as usize % 6];
                        let at = (random >> 40) as usize % ((part - len) / 512) * 512;
                        if random >> 62 != 0 {
                            let data = pattern(len, pass);
                            disk.write(base + at as u64, &data).await.unwrap();
                            model[at..at + len].copy_from_slice(&data);
                        } else {
                            let mut back = vec![0xee; len];
                            disk.read(base + at as u64, &mut back).await.unwrap();
                            assert!(back == model[at..at + len], "worker {worker}, pass {pass}, {len} at {at}");
                        }
                    }
                    let mut back = vec![0; part];
                    disk.read(base, &mut back).await.unwrap();
                    assert!(back == model, "worker {worker}");
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        session.logout().await.unwrap();
    }
}

#[tokio::test]
async fn chap_over_iser() {
    let (_server, portal, _) = serve(Some(("alice", "a-secret-of-alice", "real", "a-secret-of-real")));
    let credentials =
        |user: &str, secret: &str| Some(Credentials { user: user.into(), secret: ChapSecret::new(secret) });
    let with = |own, target| SessionConfig { credentials: own, target_credentials: target, ..iser(&portal) };
    let mutual = with(credentials("alice", "a-secret-of-alice"), credentials("real", "a-secret-of-real"));
    let session = Session::connect(mutual).await.unwrap();
    session.disk(0).await.unwrap().write(0, &pattern(65_536, 3)).await.unwrap();
    session.logout().await.unwrap();
    for own in [None, credentials("alice", "another-secret")] {
        // A secret that is wrong over iSER is no less wrong over TCP.
        for config in [with(own.clone(), None), SessionConfig { credentials: own, ..auto(&portal) }] {
            let error = Session::connect(config).await.unwrap_err();
            assert!(
                matches!(error, Error::LoginRefused { status: LoginStatus::AUTHENTICATION_FAILURE, .. }),
                "{error:?}"
            );
        }
    }
}

/// Writers each own a megabyte, and write to it pass after pass while the connection is cut `cuts` times.
async fn every_acknowledged_write_is_there(config: SessionConfig, cut: impl Fn(), cuts: u64) -> Session {
    let session = Session::connect(quick(config)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let passes = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..16u64)
        .map(|i| {
            let (disk, stop, passes) = (disk.clone(), stop.clone(), passes.clone());
            tokio::spawn(async move {
                // Immediate data; one RDMA Read; many.
                let len = [4096, 131_072, 786_432, 512][i as usize % 4];
                let mut pass = 0;
                while !stop.load(Ordering::Relaxed) {
                    pass += 1;
                    let data = pattern(len, pass);
                    disk.write(i << 20, &data).await.unwrap();
                    let mut back = vec![0; len];
                    disk.read(i << 20, &mut back).await.unwrap();
                    assert!(back == data, "writer {i}, pass {pass}");
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for n in 1..=cuts {
        let before = passes.load(Ordering::Relaxed);
        while passes.load(Ordering::Relaxed) < before + 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while session.stats().reconnects < n {
            cut();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let stats = session.stats();
    assert!(stats.repeated > 0, "commands were in flight when the connection was cut: {stats:?}");
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_cut_connections_over_iser() {
    let (_server, target, _) = serve(None);
    let (portal, cut) = proxy(target).await;
    let session = every_acknowledged_write_is_there(iser(&portal), || cut.notify_waiters(), 8).await;
    assert_eq!(session.info().transport, "iser");
    session.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_rdma_is_gone_comes_back_over_tcp() {
    let (_server, target, _) = serve(None);
    let gone = Arc::new(AtomicBool::new(false));
    let (iwarp, cut) = proxy(target.clone()).await;
    let is_gone = gone.clone();
    let portal = tcp_only(target, move |mut near| {
        let (iwarp, gone) = (iwarp.clone(), is_gone.clone());
        async move {
            if !gone.load(Ordering::Relaxed) {
                let mut far = TcpStream::connect((iwarp.host.as_str(), iwarp.port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        }
    })
    .await;
    let cut = || {
        gone.store(true, Ordering::Relaxed);
        cut.notify_waiters();
    };
    let session = every_acknowledged_write_is_there(auto(&portal), cut, 1).await;
    assert_eq!(session.info().transport, "tcp");
    session.logout().await.unwrap();
}

#[tokio::test]
async fn auto_takes_tcp_within_a_second_where_there_is_no_iser() {
    let (_server, target, _) = serve(None);
    let both = Session::connect(auto(&target)).await.unwrap();
    assert_eq!(both.info().transport, "iser");
    both.logout().await.unwrap();

    let closes = tcp_only(target.clone(), |stream| async move { drop(stream) }).await;
    let silent = tcp_only(target.clone(), |mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let reads_and_closes = tcp_only(target.clone(), |mut stream| async move {
        let _ = stream.read(&mut [0; 48]).await;
    })
    .await;
    let babbles = tcp_only(target.clone(), |mut stream| async move {
        let _ = stream.write_all(&[0x3f; 400]).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let rejects = tcp_only(target.clone(), |mut stream| async move {
        let mut request = [0; 20];
        let _ = stream.read_exact(&mut request).await;
        let _ = stream.write_all(b"MPA ID Rep Frame\x20\x02\0\0").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for (portal, what) in [
        (closes, "closes"),
        (silent, "is silent"),
        (reads_and_closes, "reads and closes"),
        (babbles, "babbles"),
        (rejects, "rejects"),
    ] {
        let mut took = Duration::MAX;
        // A machine that is busy may hold one of them up, but not each.
        for _ in 0..10 {
            let start = Instant::now();
            let session = Session::connect(auto(&portal)).await.unwrap();
            took = took.min(start.elapsed());
            assert_eq!(session.info().transport, "tcp", "a portal that {what}");
            session.logout().await.unwrap();
            if took < Duration::from_secs(1) {
                break;
            }
        }
        assert!(took < Duration::from_secs(1), "a portal that {what}: {took:?}");
        let mut only = iser(&portal);
        only.timeouts.login = Duration::from_millis(300);
        let error = Session::connect(only).await.unwrap_err();
        assert!(matches!(error, Error::NoIser { .. }), "a portal that {what}: {error:?}");
        assert!(error.to_string().contains("transport=auto"), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_the_same_for_all() {
    let portal = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }
    };
    for config in [iser(&portal), auto(&portal), SessionConfig { transport: Transport::Tcp, ..iser(&portal) }] {
        let error = Session::connect(config).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn no_rdma_device_leads_to_the_loopback_address() {
    let (_server, portal, _) = serve(None);
    let mut config = iser(&portal);
    config.iser.rdma = Rdma::Verbs;
    let error = Session::connect(config.clone()).await.unwrap_err();
    // It says what is missing: the libraries, the kernel's modules, or the device.
    assert!(matches!(error, Error::NoRdma { .. }) && error.to_string().contains("rdma=iwarp needs none"), "{error}");
    config.transport = Transport::Auto;
    let session = Session::connect(config.clone()).await.unwrap();
    assert_eq!(session.info().transport, "tcp");
    session.logout().await.unwrap();
    config.iser.rdma = Rdma::Auto;
    let session = Session::connect(config).await.unwrap();
    assert_eq!((session.info().transport, session.info().provider), ("iser", "iwarp"));
    session.logout().await.unwrap();
}

#[tokio::test]
async fn discovery_over_iser_tells_the_same_as_over_tcp() {
    let (_server, portal, _) = serve(None);
    let plain = discover(&portal, &DiscoveryConfig::default()).await.unwrap().targets;
    let mut config = DiscoveryConfig { transport: Transport::Iser, ..DiscoveryConfig::default() };
    config.iser.rdma = Rdma::Iwarp;
    assert_eq!(discover(&portal, &config).await.unwrap().targets, plain);
    assert_eq!((plain.len(), plain[0].portals[0].port, plain[0].portals[0].tpgt), (1, portal.port, 1));
}

/// Lets so many bytes of the target's through, then ends the connection or falls silent; so at every step of login.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_breaks_off_at_any_byte_ends_in_an_error_and_leaves_nothing_behind() {
    let (server, target, _) = serve(None);
    let left = Arc::new(AtomicU64::new(0));
    let budget = left.clone();
    let to = target.clone();
    let portal = peer(move |near| {
        let (to, budget) = (to.clone(), budget.clone());
        async move {
            let far = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            let up = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut near_in, &mut far_out).await;
            });
            let mut limited = (&mut far_in).take(budget.load(Ordering::Relaxed));
            let _ = tokio::io::copy(&mut limited, &mut near_out).await;
            up.abort();
        }
    })
    .await;
    let mut reached = false;
    for bytes in (0..700).step_by(7) {
        left.store(bytes, Ordering::Relaxed);
        let mut config = iser(&portal);
        config.timeouts.login = Duration::from_secs(60);
        config.reconnect.deadline = Duration::ZERO;
        match Session::connect(config).await {
            Ok(_) => {
                reached = true;
                break;
            }
            Err(Error::NoIser { .. } | Error::ClosedInLogin { .. }) => {}
            Err(error) => panic!("after {bytes} bytes: {error:?}"),
        }
    }
    assert!(reached, "a login takes no more bytes than that");
    let start = Instant::now();
    while server.target().registry().connections() > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "connections are left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let session = Session::connect(iser(&target)).await.unwrap();
    session.logout().await.unwrap();
}

/// An initiator that takes nothing any more costs the target a bounded time, and its other sessions nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_reading_is_let_go() {
    let limits = Limits { send_timeout: Duration::from_millis(400), ..Limits::default() };
    let (server, target, _) = serve_with(None, limits);
    let stopped = Arc::new(AtomicBool::new(false));
    let (stop, to) = (stopped.clone(), target.clone());
    let portal = peer(move |near| {
        let (stop, to) = (stop.clone(), to.clone());
        async move {
            let far = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            let up = tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
            let mut piece = vec![0; 16_384];
            while !stop.load(Ordering::Relaxed) {
                let Ok(n @ 1..) = far_in.read(&mut piece).await else { return };
                if near_out.write_all(&piece[..n]).await.is_err() {
                    return;
                }
            }
            // Neither reads nor hangs up.
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop((far_in, near_out, up));
        }
    })
    .await;
    let mut config = iser(&portal);
    config.reconnect.deadline = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let other = Session::connect(iser(&target)).await.unwrap();
    let healthy = other.disk(0).await.unwrap();
    stopped.store(true, Ordering::Relaxed);
    let readers: Vec<_> = (0..16u64)
        .map(|i| {
            let disk = disk.clone();
            tokio::spawn(async move { disk.read(i << 20, &mut vec![0; 2 << 20]).await.is_err() })
        })
        .collect();
    let start = Instant::now();
    while server.sessions().len() > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "the session stays");
        healthy.read(0, &mut [0; 4096]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for reader in readers {
        reader.abort();
    }
    other.logout().await.unwrap();
}
