//! A TCP relay that cuts: stands between an initiator and a target, and resets every connection on demand.
//!
//! Only login goes to the portal that a URL names, so an initiator that is given the relay's address
//! stays with it; a discovery answer would lead it around.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Context, Result};

/// A running relay.
#[derive(Debug)]
pub struct Cutter {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    /// Both sockets of each connection that was not cut.
    pairs: Mutex<Vec<[TcpStream; 2]>>,
}

impl Cutter {
    /// Relays from a free port of 127.0.0.1 to `target`, a port of the same address.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("the relay's port")?;
        let port = listener.local_addr().context("the relay's port")?.port();
        listener.set_nonblocking(true).context("the relay's port")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            while !theirs.ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A connection that cannot be relayed is closed: the initiator sees a cut.
                    Ok((near, _)) => drop(theirs.join(near, target)),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { port, shared, acceptor: Some(acceptor) })
    }

    /// The relay's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection that is up, in both directions at once, whatever is under way, and says how
    /// many there were. New connections are relayed again at once.
    pub fn cut(&self) -> usize {
        let mut cut = 0;
        for [near, far] in self.shared.lock().drain(..) {
            let alive = near.shutdown(Shutdown::Both).is_ok();
            // By now the relay threads may have closed the far side themselves.
            let _ = far.shutdown(Shutdown::Both);
            cut += usize::from(alive);
        }
        cut
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<[TcpStream; 2]>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, near: TcpStream, target: u16) -> std::io::Result<()> {
        near.set_nonblocking(false)?;
        let far = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target)))?;
        for socket in [&near, &far] {
            socket.set_nodelay(true)?;
        }
        self.lock().push([near.try_clone()?, far.try_clone()?]);
        let (near_in, far_out) = (near.try_clone()?, far.try_clone()?);
        thread::spawn(move || relay(near_in, far_out));
        thread::spawn(move || relay(far, near));
        Ok(())
    }
}

/// Copies until either end closes, then closes both.
fn relay(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_pass_until_the_cut_and_again_after_it() {
        let echo = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let cutter = Cutter::start(echo.local_addr().unwrap().port()).unwrap();
        thread::spawn(move || {
            while let Ok((mut socket, _)) = echo.accept() {
                let mut byte = [0];
                while let Ok(1) = socket.read(&mut byte) {
                    socket.write_all(&byte).unwrap();
                }
            }
        });
        for _ in 0..2 {
            let mut socket = TcpStream::connect(("127.0.0.1", cutter.port())).unwrap();
            socket.write_all(b"x").unwrap();
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"x");
            assert_eq!(cutter.cut(), 1);
            assert!(matches!(socket.read(&mut byte), Ok(0) | Err(_)));
        }
    }
}
