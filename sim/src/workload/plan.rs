//! What a workload does, and how it says that something is wrong.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use iscsi_proto::pdu::TaskFunction;

/// What a run may look like from the outside, shared by all of its parts.
#[derive(Debug, Clone, Default)]
pub struct Verdict(Rc<RefCell<Option<String>>>);

impl Verdict {
    /// A rule was broken; the first one counts.
    pub fn broken(&self, what: String) {
        self.0.borrow_mut().get_or_insert(what);
    }

    /// What was broken.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// What a workload does.
#[derive(Debug, Clone)]
pub struct WorkPlan {
    /// Operations to do.
    pub operations: u64,
    /// Most of them under way at a time.
    pub depth: usize,
    /// Pause between two, at most.
    pub think: Duration,
    /// Most blocks of one.
    pub most_blocks: u64,
    /// So many in 1000 read; the rest writes, mostly.
    pub reads: u64,
    /// So many in 1000 are neither read nor write.
    pub others: u64,
    /// So many in 1000 are UNMAPs, beside those among the others.
    pub unmaps: u64,
    /// So often in 1000 operations a task management function is asked for.
    pub functions: u64,
    /// The functions that may be.
    pub function_kinds: &'static [TaskFunction],
    /// So often in 1000 operations one is abandoned.
    pub abandons: u64,
    /// So often in 1000 operations a discovery text is sent.
    pub texts: u64,
    /// The LU can unmap.
    pub unmap: bool,
    /// The store may fail.
    pub store_fails: bool,
    /// The peer or the link breaks the protocol: data and statuses are not checked, completions are.
    pub untrusted: bool,
    /// One bit may flip: a PDU may be rejected for its digest.
    pub flips: bool,
    /// So many atomic commands in 1000 expect what the disk never held.
    pub wrong: u64,
    /// Logs out when its operations are done: it is not asked for its last reads.
    pub leaves: bool,
    /// Nothing disturbs its connection, and nobody aborts its commands: their order is that of their making.
    pub undisturbed: bool,
    /// How long it waits for a command before it has it aborted.
    pub patience: Duration,
    /// All sessions are of one target node.
    pub one_node: bool,
    /// All its commands are SIMPLE.
    pub simple: bool,
    /// What a function on a disk whose store is never slow may take, to its answer, whatever other disks do.
    pub function_within: Option<Duration>,
    /// How long a target waits for operations before it answers a function "rejected".
    pub drain: Duration,
    /// What each command may take, from where it is handed in to its end, whatever other sessions do.
    pub within: Option<Duration>,
}
