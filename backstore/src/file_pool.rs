//! The threads of a file store, and the queue in front of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{Builder, JoinHandle};

use futures::channel::oneshot;

use super::file_medium::FileMedium;
use super::{StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest};

/// Operations of one queue that wait for a thread or run: what is beyond waits in the queue itself, so that one
/// worker's burst does not stand before another worker's first request.
const QUEUE_DEPTH: usize = 128;

/// A panic under these locks leaves the lists whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for an operation.
enum Submitter {
    Queue(Arc<Finished>),
    Call(oneshot::Sender<StoreCompletion>),
}

struct Job {
    request: StoreRequest,
    submitter: Submitter,
}

/// Completions on their way back to one queue.
struct Finished {
    list: Mutex<Vec<StoreCompletion>>,
    waker: Waker,
}

impl Finished {
    fn add(&self, completion: StoreCompletion) {
        let mut list = lock(&self.list);
        list.push(completion);
        // Those that come before the queue looks are under the first one's wake.
        let first = list.len() == 1;
        drop(list);
        if first {
            self.waker.wake_by_ref();
        }
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What waits for a thread.
pub(super) struct Jobs {
    waiting: Mutex<Waiting>,
    added: Condvar,
}

impl Jobs {
    fn work(&self, medium: &FileMedium<File>) {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(Job { request: StoreRequest { token, op }, submitter }) = waiting.jobs.pop_front() {
                drop(waiting);
                let completion = medium.perform(token, op);
                match submitter {
                    Submitter::Queue(finished) => finished.add(completion),
                    // A caller that went away wants no answer.
                    Submitter::Call(sender) => drop(sender.send(completion)),
                }
                waiting = lock(&self.waiting);
            } else if waiting.closed {
                return;
            } else {
                waiting = self.added.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The threads. Dropping it does what was accepted, and ends them.
pub(super) struct Pool {
    jobs: Arc<Jobs>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(medium: Arc<FileMedium<File>>, threads: usize) -> io::Result<Self> {
        let jobs = Arc::new(Jobs { waiting: Mutex::default(), added: Condvar::new() });
        let mut pool = Self { jobs, threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let (jobs, medium) = (pool.jobs.clone(), medium.clone());
            pool.threads.push(Builder::new().name("file-store".into()).spawn(move || jobs.work(&medium))?);
        }
        Ok(pool)
    }

    pub(super) fn jobs(&self) -> Arc<Jobs> {
        self.jobs.clone()
    }

    /// Has one operation done, for the easy door.
    pub(super) async fn run(&self, op: StoreOp) -> Result<StoreCompletion, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job = Job { request: StoreRequest { token: 0, op }, submitter: Submitter::Call(sender) };
        lock(&self.jobs.waiting).jobs.push_back(job);
        self.jobs.added.notify_one();
        receiver.await.map_err(|_| StoreError::Failed)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.jobs.waiting).closed = true;
        self.jobs.added.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads.len())
    }
}

/// One worker's queue to the threads. What it holds is bounded by what its submitter has in flight.
pub(super) struct FileQueue {
    jobs: Arc<Jobs>,
    finished: Arc<Finished>,
    /// Requests that find [`QUEUE_DEPTH`] before them.
    backlog: VecDeque<StoreRequest>,
    running: usize,
}

impl FileQueue {
    pub(super) fn new(jobs: Arc<Jobs>, waker: Waker) -> Self {
        let finished = Arc::new(Finished { list: Mutex::new(Vec::with_capacity(QUEUE_DEPTH)), waker });
        Self { jobs, finished, backlog: VecDeque::new(), running: 0 }
    }

    fn hand_over(&mut self) {
        let count = (QUEUE_DEPTH - self.running).min(self.backlog.len());
        if count == 0 {
            return;
        }
        self.running += count;
        let mut waiting = lock(&self.jobs.waiting);
        waiting.jobs.extend(
            self.backlog
                .drain(..count)
                .map(|request| Job { request, submitter: Submitter::Queue(self.finished.clone()) }),
        );
        drop(waiting);
        if count == 1 { self.jobs.added.notify_one() } else { self.jobs.added.notify_all() }
    }
}

impl StoreQueue for FileQueue {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        self.backlog.extend(batch.drain(..));
        self.hand_over();
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        {
            let mut list = lock(&self.finished.list);
            self.running -= list.len();
            completions.append(&mut list);
        }
        self.hand_over();
    }
}
