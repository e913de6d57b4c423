//! Every bound of the target: tables, queues and waits, each with its default.

use core::time::Duration;

use iscsi_proto::chap::ChapPolicy;
use iscsi_proto::login::Offer;

use crate::task::ExecutorConfig;

/// Bounds of every connection and session, and of all of them together.
///
/// ```
/// use target_core::session::Limits;
/// let limits = Limits { command_window: 32, ..Limits::default() };
/// assert_eq!(limits.login_timeout.as_secs(), 15);
/// ```
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time, logged in or not. Default 1024.
    pub connections: usize,
    /// Connections at a time whose login is not done, at least 1. A connection beyond them, or beyond
    /// [`connections`](Self::connections), takes the place of the one that has been logging in for the longest, never
    /// that of one that is logged in. Default 256.
    pub logins: usize,
    /// Sessions at a time, normal and discovery. Default 512, at most 65535.
    pub sessions: usize,
    /// How long a connection may take to log in. Default 15 s.
    pub login_timeout: Duration,
    /// Numbered requests that an initiator may have with us at a time (MaxCmdSN - ExpCmdSN + 1 when idle), 1 to 16384.
    /// Default 128.
    pub command_window: u16,
    /// SCSI commands for immediate delivery at a time in one session; more are rejected. Default 8.
    pub immediate_commands: u16,
    /// Task management functions in progress at a time in one session; more are rejected. Default 8.
    pub task_management_functions: usize,
    /// Bytes of requests that came ahead of their turn (a CmdSN before them is missing) in one session; beyond it the
    /// connection is closed. Default 64 KiB.
    pub held_bytes: usize,
    /// How long a missing CmdSN is waited for once it is the next one: then the connection is closed if requests came
    /// ahead of it. A task management function that waits for commands before it waits as long, and is then answered
    /// "Function rejected". Default 10 s.
    pub gap_timeout: Duration,
    /// A connection that is silent for so long is asked by NOP-In whether the initiator is still there; `None` never
    /// asks. Default 30 s.
    pub nop_in_idle: Option<Duration>,
    /// How long the answer to a NOP-In may take before the connection is closed, from the time at which it has left and
    /// the initiator last took or sent something. Default 15 s.
    pub nop_in_timeout: Duration,
    /// Bytes waiting to be sent at which no further request is looked at. Default 4 MiB.
    pub send_backlog: usize,
    /// Bytes that the buffers of all sessions may have together: those that hold data between wire and store, wait to
    /// be sent, or take in what comes in bulk. Half of it is the sessions' own, 64 KiB each at most, with which each
    /// goes on whatever the others do; of the other half a session takes at most as much as it leaves. See
    /// [`BufferBudget`](iscsi_memory::BufferBudget). Where it is too little for 16 KiB a session it is raised. What a
    /// session holds besides, of its own and of one large PDU, is bounded for itself. Stores that lend their memory
    /// need little. Default 64 MiB.
    pub buffered: usize,
    /// Bytes of buffers that are kept for reuse while sessions are active, of all workers together. Default 8 MiB.
    pub idle_buffers: usize,
    /// How long a session is silent when it gives its buffers back to its worker. Default 500 ms.
    pub idle_after: Duration,
    /// How long an initiator may take none of the bytes that wait for it before the connection is closed. Default 60 s.
    pub send_timeout: Duration,
    /// How long a task-set function waits for data that the initiator still owes to aborted tasks (RFC 7143 4.2.3.3 a),
    /// unless TaskReporting is FastAbort. Initiators that owe them and never send them are common. Over RDMA, where
    /// such data would still land, the session ends then, once a function of its own or of another session waits for
    /// them; its own are answered first, which may take as long again. Default 1 s.
    pub owed_data_wait: Duration,
    /// How long data that a command waits for may not get on, once the initiator has taken what asks for them. Then the
    /// command ends with CHECK CONDITION (RFC 7143 11.4.7.2: INCORRECT AMOUNT OF DATA), or, over RDMA, the session
    /// ends, because the data could still land. While data of other commands of its session come, it has up to ten
    /// times as long. It is looked at four times in that time, or more often. A session that
    /// holds more of [`buffered`](Self::buffered) than its own while others wait in line for some has
    /// [`owed_data_wait`](Self::owed_data_wait) instead. Default 30 s.
    pub data_timeout: Duration,
    /// How long aborted store operations are waited for. Then a task management function is answered "Function
    /// rejected", a login of the same I_T nexus is refused with status 0301h, and a connection that ends goes without
    /// its session, which stays entered until they have ended: time alone lets nobody in. Default 30 s.
    pub drain_timeout: Duration,
    /// How long a logout waits for aborted store operations, [`drain_timeout`](Self::drain_timeout) at most. Then it is
    /// answered "cleanup failed" (RFC 7143 11.15.1), because the tasks have not ended, and the session stays entered until
    /// they have. Initiators wait 5 to 15 s for the answer before they drop the connection. Default 2 s.
    pub logout_wait: Duration,
    /// How long a connection that is closing may take to send what is left. Default 5 s.
    pub close_timeout: Duration,
    /// How long an initiator that has logged out over a transport without half-close (RDMA) may take to close the
    /// connection itself. Default 2 s.
    pub logout_linger: Duration,
    /// What CHAP accepts.
    pub chap: ChapPolicy,
    /// Bounds of the executor of each session; its `slots` follow from the command window.
    pub executor: ExecutorConfig,
    /// What login offers. `MaxConnections` above 1 and `ErrorRecoveryLevel` above 0 are not served and taken for 1 and
    /// 0.
    pub offer: Offer,
}

impl Limits {
    /// How often it is looked at whether data that commands wait for get on.
    pub(super) fn data_look(&self) -> Duration {
        (self.data_timeout / 4).min(self.owed_data_wait.max(self.data_timeout / 64))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            logins: 256,
            sessions: 512,
            login_timeout: Duration::from_secs(15),
            command_window: 128,
            immediate_commands: 8,
            task_management_functions: 8,
            held_bytes: 64 << 10,
            gap_timeout: Duration::from_secs(10),
            nop_in_idle: Some(Duration::from_secs(30)),
            nop_in_timeout: Duration::from_secs(15),
            send_backlog: 4 << 20,
            buffered: 64 << 20,
            idle_buffers: 8 << 20,
            idle_after: Duration::from_millis(500),
            send_timeout: Duration::from_secs(60),
            owed_data_wait: Duration::from_secs(1),
            data_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            logout_wait: Duration::from_secs(2),
            close_timeout: Duration::from_secs(5),
            logout_linger: Duration::from_secs(2),
            chap: ChapPolicy::default(),
            executor: ExecutorConfig::default(),
            offer: Offer::default(),
        }
    }
}
