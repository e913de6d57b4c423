//! A relay between a program and its target that stops in the middle, by a count of bytes and not by the clock.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes go to the target before all stops.
    Before(usize),
    /// Nothing goes to the target.
    Middle,
    /// Everything does, and connections that stood still have been cut, or not.
    After { cut: bool },
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    target: Mutex<String>,
}

/// The relay; its threads end with the process.
pub(crate) struct Relay {
    address: String,
    shared: Arc<Shared>,
}

impl Relay {
    /// Leads to a target, and stops after so many bytes.
    pub(crate) fn start(target: &str, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Before(bytes)),
            changed: Condvar::new(),
            target: Mutex::new(target.to_owned()),
        });
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = of_thread.target.lock().unwrap().clone();
                // Where nobody listens the program finds its connection closed.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (from_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let shared = of_thread.clone();
                std::thread::spawn(move || pump(from_client, server, |n| shared.pass(n)));
                std::thread::spawn(move || pump(from_server, client, |_| true));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits until it has stopped.
    pub(crate) fn wait_for_the_middle(&self) {
        let state = self.shared.state.lock().unwrap();
        drop(self.shared.changed.wait_while(state, |state| *state != State::Middle).unwrap());
    }

    /// New connections lead to another target.
    pub(crate) fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.shared.target.lock().unwrap());
    }

    /// Cuts the connections that stand still; others pass.
    pub(crate) fn cut(&self) {
        self.set(State::After { cut: true });
    }

    /// Lets everything pass.
    pub(crate) fn go_on(&self) {
        self.set(State::After { cut: false });
    }

    fn set(&self, state: State) {
        *self.shared.state.lock().unwrap() = state;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Whether so many bytes may pass; waits where all stands still.
    fn pass(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().unwrap();
        if let State::Before(left) = &mut *state {
            match left.checked_sub(bytes) {
                Some(rest) => {
                    *left = rest;
                    return true;
                }
                None => *state = State::Middle,
            }
            self.changed.notify_all();
        }
        if *state == State::Middle {
            state = self.changed.wait_while(state, |state| *state == State::Middle).unwrap();
            return *state == State::After { cut: false };
        }
        true
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn(usize) -> bool) {
    let mut data = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut data)
        && n > 0
        && may_pass(n)
        && to.write_all(&data[..n]).is_ok()
    {}
    // Either may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
