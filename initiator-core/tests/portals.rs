//! Targets that send their initiators elsewhere, and portals that are gone.

mod cutting_proxy;
mod small_target;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use initiator_core::{Error, Portal, Session, SessionConfig, SessionEvent};
use iscsi_proto::pdu::{BHS_LEN, Bhs, LoginRequest, LoginResponse, LoginStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use cutting_proxy::proxy;
use small_target::{NAME, config, start};

/// A portal that sends every login to another one, and counts them.
async fn redirector(to: &Portal, status: LoginStatus) -> (Portal, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let visits = Arc::new(AtomicUsize::new(0));
    let (count, address) = (visits.clone(), format!("TargetAddress={to}\0"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut header = [0; BHS_LEN];
            if stream.read_exact(&mut header).await.is_err() {
                continue;
            }
            let request = LoginRequest::parse(&Bhs(header)).unwrap();
            let mut text = vec![0; (Bhs(header).data_segment_len() as usize).next_multiple_of(4)];
            stream.read_exact(&mut text).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let mut bhs = LoginResponse { status, ..LoginResponse::granting(&request) }.emit();
            bhs.set_data_segment_len(address.len() as u32);
            let mut answer = [&bhs.0[..], address.as_bytes()].concat();
            answer.resize(answer.len().next_multiple_of(4), 0);
            stream.write_all(&answer).await.unwrap();
            let _ = stream.read(&mut [0; 64]).await;
        }
    });
    (own, visits)
}

/// Cuts the session's connection, and waits until it has another one.
async fn cut_once(session: &Session, cut: &tokio::sync::Notify) {
    let before = session.stats().reconnects;
    while session.stats().reconnects == before {
        // A login that was cut too would go to another portal.
        if session.stats().connected {
            cut.notify_waiters();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.luns().await.unwrap();
}

fn quick(portal: &Portal) -> SessionConfig {
    let mut config = config(portal);
    config.reconnect.first_delay = Duration::from_millis(5);
    config.reconnect.longest_delay = Duration::from_millis(5);
    config
}

#[tokio::test]
async fn a_permanent_redirection_is_where_reconnects_go() {
    let (target, _) = start();
    let (near, cut) = proxy(target).await;
    let (home, visits) = redirector(&near, LoginStatus::TARGET_MOVED_PERMANENTLY).await;
    let session = Session::connect(quick(&home)).await.unwrap();
    cut_once(&session, &cut).await;
    assert_eq!(visits.load(Ordering::SeqCst), 1, "it moved for good");
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_temporary_redirection_is_asked_for_again() {
    let (target, _) = start();
    let (near, cut) = proxy(target).await;
    let (home, visits) = redirector(&near, LoginStatus::TARGET_MOVED_TEMPORARILY).await;
    let session = Session::connect(quick(&home)).await.unwrap();
    let mut events = session.events();
    cut_once(&session, &cut).await;
    let reconnects = session.stats().reconnects as usize;
    assert!(visits.load(Ordering::SeqCst) > reconnects, "the configured portal is asked each time");
    let redirected = loop {
        match events.next().await {
            Some(SessionEvent::Redirected { to, permanent }) => break (to, permanent),
            Some(_) => {}
            None => panic!("the session ended"),
        }
    };
    assert_eq!(redirected, (near, false));
    session.logout().await.unwrap();
}

#[tokio::test]
async fn portals_that_send_logins_about_in_a_circle_are_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    drop(listener);
    let (home, visits) = redirector(&own, LoginStatus::TARGET_MOVED_PERMANENTLY).await;
    // The redirection's portal is gone, and the configured one knows no other.
    let error = Session::connect(quick(&home)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(visits.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_portal_that_is_gone_is_left_for_the_others() {
    let (target, _) = start();
    // It takes one connection, and then nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let cut = Arc::new(tokio::sync::Notify::new());
    let (to, cuts) = (target.clone(), cut.clone());
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut far = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            () = cuts.notified() => {}
        }
    });
    let mut config = quick(&first);
    config.portals = vec![target.clone()];
    let session = Session::connect(config.clone()).await.unwrap();
    assert_eq!(session.info().portal.port(), first.port);
    cut_once(&session, &cut).await;
    assert_eq!(session.info().portal.port(), target.port);
    session.logout().await.unwrap();
    // The first connection takes the way around too.
    let session = Session::connect(config).await.unwrap();
    assert_eq!((session.info().portal.port(), session.info().target_name.as_str()), (target.port, NAME));
    session.logout().await.unwrap();
}
