//! What a person sees when the other side is no working target: each case has its sentence.

use std::time::Duration;

use initiator_core::{DiscoveryConfig, Error, Portal, ReconnectPolicy, Session, SessionConfig, Timeouts, discover};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "iqn.2004-10.com.example:disk";

/// More patience than any answer here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(portal: Portal) -> SessionConfig {
    let timeouts = Timeouts { connect: PATIENCE, login: PATIENCE, ..Timeouts::default() };
    SessionConfig { timeouts, reconnect: ReconnectPolicy::default(), ..SessionConfig::new(portal, NAME) }
}

/// Listens with a peer of one's own behind.
async fn peer<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Portal
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream).await;
        }
    });
    Portal { host: "127.0.0.1".into(), port }
}

async fn both(portal: Portal) -> [Error; 2] {
    let session = Session::connect(config(portal.clone())).await.unwrap_err();
    let discovery = DiscoveryConfig { timeouts: config(portal.clone()).timeouts, ..DiscoveryConfig::default() };
    [session, discover(&portal, &discovery).await.unwrap_err()]
}

#[tokio::test]
async fn nobody_listens() {
    // A bound port whose listener is gone refuses.
    let portal = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }
    };
    for error in both(portal).await {
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("check that the target runs"));
    }
}

#[tokio::test]
async fn a_peer_that_is_silent() {
    let portal = peer(|stream| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(stream);
    })
    .await;
    let mut config = config(portal);
    config.timeouts.login = Duration::from_millis(200);
    let error = Session::connect(config).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error:?}");
    assert!(error.to_string().contains("was silent for 200ms during login"));
}

#[tokio::test]
async fn a_peer_that_speaks_something_else() {
    let portal = peer(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6 and more than a header's worth of bytes\r\n").await;
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    for error in both(portal).await {
        assert!(matches!(error, Error::NotIscsi { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_peer_that_hangs_up() {
    let portal = peer(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    for error in both(portal).await {
        assert!(matches!(error, Error::ClosedInLogin { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_host_without_address() {
    let mut config = config(Portal { host: "no-such-host.invalid".into(), port: 3260 });
    // Without a network, resolvers take their time.
    config.timeouts.connect = Duration::from_millis(500);
    let error = Session::connect(config).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. } | Error::ConnectTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn names_and_secrets_that_cannot_be() {
    let portal = Portal { host: "127.0.0.1".into(), port: 1 };
    let error = Session::connect(SessionConfig::new(portal.clone(), "Disk")).await.unwrap_err();
    assert!(error.to_string().contains("the target's name"), "{error}");
    let mut config = config(portal);
    config.target_credentials = Some(initiator_core::Credentials {
        user: "target".into(),
        secret: iscsi_proto::chap::ChapSecret::new("0123456789abcdef"),
    });
    let error = Session::connect(config).await.unwrap_err();
    assert!(error.to_string().contains("mutual CHAP needs both sides' secrets"), "{error}");
}

#[tokio::test]
async fn a_connect_that_is_dropped_ends_its_connection() {
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let portal = peer(move |mut stream| {
        let told = told.clone();
        async move {
            // It reads the login request and never answers.
            let mut bytes = [0; 4096];
            let mut first = true;
            while matches!(stream.read(&mut bytes).await, Ok(n) if n > 0) {
                if std::mem::take(&mut first) {
                    told.send("login").unwrap();
                }
            }
            told.send("end").unwrap();
        }
    })
    .await;
    {
        let connecting = Session::connect(config(portal));
        tokio::pin!(connecting);
        tokio::select! {
            session = &mut connecting => panic!("{session:?}"),
            seen = seen.recv() => assert_eq!(seen, Some("login")),
        }
    }
    let end = tokio::time::timeout(PATIENCE / 6, seen.recv()).await;
    assert_eq!(end.expect("the target sees the end long before the login's time is over"), Some("end"));
}
