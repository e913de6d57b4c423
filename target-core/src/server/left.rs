//! What stores have not given back when a server has stopped.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{Builder, Thread};

use crate::session::Target;

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits, on a thread of its own, until the stores have given back what sessions have left behind: what those write to
/// is closed until then, to other servers of the process too. Where nothing is left, or no thread can be had, nothing
/// happens; the logical units keep it then.
pub(crate) fn look_after(target: &Arc<Target>) {
    if target.registry().poll_unfinished(Waker::noop()) == 0 {
        return;
    }
    let target = target.clone();
    let wait = move || {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        while target.registry().poll_unfinished(&waker) != 0 {
            std::thread::park();
        }
    };
    let _ = Builder::new().name("iscsi-target-left".into()).spawn(wait);
}
