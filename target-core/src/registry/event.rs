//! What an operator is to hear of that no initiator is told in so many words.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use iscsi_memory::Lock;

/// Something that happened in a target.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A store has not given back operations of aborted tasks within
    /// [`Limits::drain_timeout`](crate::session::Limits::drain_timeout). Until it does, no new session of the I_T nexus
    /// is let in, and nobody writes where those operations write.
    OperationsOverdue {
        /// The initiator's name.
        initiator_name: String,
        /// TargetName.
        target_name: String,
        /// How many.
        operations: usize,
        /// The connection of the session has ended.
        connection_ended: bool,
    },
    /// Connections that do not log in give way to later ones, because
    /// [`Limits::logins`](crate::session::Limits::logins) are at it. Told with the first, and again each time that
    /// their number has doubled, until fewer than half as many are logging in.
    LoginsDisplaced {
        /// The bound.
        logins: usize,
        /// How many have given way.
        displaced: u64,
    },
    /// Sessions wait for buffers, or do with less, because all together have most of
    /// [`Limits::buffered`](crate::session::Limits::buffered): initiators do not take what they asked for, or do not
    /// send what they owe. Told once until half of the budget was free.
    BuffersShort {
        /// Bytes that the sessions have.
        out: usize,
        /// The most that they may have.
        total: usize,
    },
    /// The operations of such a session whose connection has ended are all given back.
    OperationsEnded {
        /// The initiator's name.
        initiator_name: String,
        /// TargetName.
        target_name: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperationsOverdue { initiator_name, target_name, operations, connection_ended } => {
                let ended = if *connection_ended { "ended " } else { "" };
                write!(
                    f,
                    "the store of {target_name} does not give back {operations} operations of a {ended}session of \
                     {initiator_name}; what they write to is not written to by anybody until it does"
                )
            }
            Self::LoginsDisplaced { logins, displaced } => {
                write!(
                    f,
                    "{logins} connections are logging in, which is the limit; {displaced} that were at it for \
                     the longest have given way to later ones"
                )
            }
            Self::BuffersShort { out, total } => {
                write!(
                    f,
                    "the buffers of all sessions have {out} of {total} bytes; sessions wait for initiators that do not \
                     take, or do not send, their data"
                )
            }
            Self::OperationsEnded { initiator_name, target_name } => {
                write!(f, "the store of {target_name} has given back the operations of {initiator_name}")
            }
        }
    }
}

/// Who hears of events.
type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// The one who hears of events, if anybody does.
#[derive(Default)]
pub(super) struct Observer(Lock<Option<OnEvent>>);

impl Observer {
    pub(super) fn set(&self, on_event: OnEvent) {
        self.0.with(|kept| *kept = Some(on_event));
    }

    pub(super) fn tell(&self, event: &Event) {
        if let Some(on_event) = self.0.with(|kept| kept.clone()) {
            on_event(event);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
