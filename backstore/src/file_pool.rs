//! The threads of a file store, and the queue in front of them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures::channel::oneshot;

use super::file_medium::{BlockFile, FileMedium};
use super::threads::{Condvar, JoinHandle, spawn};
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
    /// Operations of the queue that threads are at: written under the lock of what waits.
    running: AtomicUsize,
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

impl Job {
    /// Whether its queue has fewer than `most` operations at threads.
    fn may_run(&self, most: usize) -> bool {
        match &self.submitter {
            Submitter::Queue(finished) => finished.running.load(Relaxed) < most,
            Submitter::Call(_) => true,
        }
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Threads that have nothing to do.
    idle: usize,
    closed: bool,
}

impl Waiting {
    /// The oldest that may run.
    fn next(&mut self, most: usize) -> Option<Job> {
        let at = self.jobs.iter().position(|job| job.may_run(most))?;
        let job = self.jobs.remove(at)?;
        if let Submitter::Queue(finished) = &job.submitter {
            finished.running.fetch_add(1, Relaxed);
        }
        Some(job)
    }
}

/// What waits for a thread.
pub(super) struct Jobs {
    waiting: Mutex<Waiting>,
    added: Condvar,
    /// Operations of one queue that run at a time: one fewer than there are threads, so that a queue whose operations
    /// the file holds back does not hold back the others.
    most: usize,
}

impl Jobs {
    fn work<F: BlockFile>(&self, medium: &FileMedium<F>) {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(Job { request: StoreRequest { token, op }, submitter }) = waiting.next(self.most) {
                // Nobody was woken for what could not run when it came.
                if waiting.idle != 0 && waiting.jobs.iter().any(|job| job.may_run(self.most)) {
                    self.added.notify_one();
                }
                drop(waiting);
                let completion = medium.perform(token, op);
                match submitter {
                    Submitter::Queue(finished) => {
                        finished.add(completion);
                        waiting = lock(&self.waiting);
                        finished.running.fetch_sub(1, Relaxed);
                    }
                    Submitter::Call(sender) => {
                        // A caller that went away wants no answer.
                        drop(sender.send(completion));
                        waiting = lock(&self.waiting);
                    }
                }
            } else if waiting.closed && waiting.jobs.is_empty() {
                // Those who had nothing that could run.
                self.added.notify_all();
                return;
            } else {
                waiting.idle += 1;
                waiting = self.added.wait(&self.waiting, waiting);
                waiting.idle -= 1;
            }
        }
    }
}

/// The threads. Dropping it does what was accepted, and ends them.
pub(super) struct Pool {
    jobs: Arc<Jobs>,
    threads: Vec<JoinHandle>,
}

impl Pool {
    /// As many operations of one queue as `most` run at a time, and one of others beside them.
    pub(super) fn start<F: BlockFile>(medium: Arc<FileMedium<F>>, most: usize) -> io::Result<Self> {
        let jobs = Arc::new(Jobs { waiting: Mutex::default(), added: Condvar::default(), most });
        let threads = most + 1;
        let mut pool = Self { jobs, threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let (jobs, medium) = (pool.jobs.clone(), medium.clone());
            pool.threads.push(spawn("file-store", move || jobs.work(&medium))?);
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
        let list = Mutex::new(Vec::with_capacity(QUEUE_DEPTH));
        let finished = Arc::new(Finished { list, waker, running: AtomicUsize::new(0) });
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
        let runs = self.finished.running.load(Relaxed) < self.jobs.most;
        drop(waiting);
        // A thread that takes one wakes another for the next.
        if runs {
            self.jobs.added.notify_one();
        }
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
