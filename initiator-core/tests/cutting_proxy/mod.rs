//! A proxy between a session and its target that cuts connections.

use std::sync::Arc;

use initiator_core::Portal;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Passes bytes on until it is told to cut.
pub(crate) async fn proxy(to: Portal) -> (Portal, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let portal = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let cut = Arc::new(Notify::new());
    let cuts = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let Ok(mut far) = TcpStream::connect((to.host.as_str(), to.port)).await else { continue };
            let cut = cuts.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified() => {}
                }
            });
        }
    });
    (portal, cut)
}
