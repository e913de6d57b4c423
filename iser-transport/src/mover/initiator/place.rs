//! Where a command's buffer is: with us, or in the target's reach.

use iscsi_memory::Payload;
use iscsi_proto::datamover::TaskHandle;

use super::super::IserMover;
use crate::queue::{QueuePair, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag};

/// Where one of a command's buffers is.
#[derive(Debug, Default)]
pub(super) enum Place {
    /// There is none.
    #[default]
    None,
    /// With us: not advertised yet or any more, or never to be.
    Own(Payload),
    /// The target reaches it under this STag.
    Advertised(Stag),
    /// The target reaches a buffer of the pool in its stead, because it could not be registered itself.
    Bounced(Stag, Payload),
}

/// Why a buffer cannot be advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// Others are advertised, and one of them may make room.
    UntilOneIsWithdrawn,
    /// Nothing is there to be waited for.
    ForGood(&'static str),
}

impl Blocked {
    pub(super) fn for_good(self) -> Self {
        match self {
            Self::UntilOneIsWithdrawn => {
                Self::ForGood("a command needs more advertised buffers than the connection has")
            }
            other => other,
        }
    }
}

impl Place {
    pub(super) fn of(memory: Option<Payload>) -> Self {
        memory.map_or(Self::None, Self::Own)
    }

    pub(super) fn is_at(&self, stag: Stag) -> bool {
        matches!(self, Self::Advertised(own) | Self::Bounced(own, _) if *own == stag)
    }

    fn stag(&self) -> Option<Stag> {
        match self {
            Self::Advertised(stag) | Self::Bounced(stag, _) => Some(*stag),
            Self::None | Self::Own(_) => None,
        }
    }

    /// Takes out what is with us.
    pub(super) fn take_own(&mut self) -> Option<Payload> {
        match core::mem::take(self) {
            Self::Own(memory) => Some(memory),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl<Q: QueuePair> IserMover<Q> {
    fn place(&mut self, task: TaskHandle, access: RemoteAccess) -> Option<&mut Place> {
        let command = self.initiator.named(task)?;
        Some(if access == RemoteAccess::Read { &mut command.data_out } else { &mut command.data_in })
    }

    fn put_place(&mut self, task: TaskHandle, access: RemoteAccess, now: Place) {
        if let Some(place) = self.place(task, access) {
            *place = now;
        }
    }

    /// Puts a buffer of a command that is with us into the target's reach.
    pub(super) fn advertise_place(&mut self, task: TaskHandle, access: RemoteAccess) -> Result<RemoteBuffer, Blocked> {
        let Some(memory) = self.place(task, access).and_then(Place::take_own) else {
            return Err(Blocked::ForGood("a command asks for data and brings no buffer for them"));
        };
        let len = memory.len();
        let RegisterError { memory, reason } = match self.queue.advertise(memory, access) {
            Ok(at) => {
                self.put_place(task, access, Place::Advertised(at.stag));
                self.initiator.advertised += 1;
                return Ok(at);
            }
            Err(error) => error,
        };
        // The pool's buffers may be registered already. A full table takes those no more than others.
        if reason != RegisterReason::TooMany {
            let mut bounce = self.send.take_buffer(len);
            if access == RemoteAccess::Read {
                memory.read(0, &mut bounce);
                self.counters.copied += len as u64;
            }
            match self.queue.advertise(Payload::Buf(bounce), access) {
                Ok(at) => {
                    self.put_place(task, access, Place::Bounced(at.stag, memory));
                    self.initiator.advertised += 1;
                    return Ok(at);
                }
                Err(error) => self.give_pooled(error.memory),
            }
        }
        self.put_place(task, access, Place::Own(memory));
        if self.initiator.advertised > 0 {
            Err(Blocked::UntilOneIsWithdrawn)
        } else {
            Err(Blocked::ForGood(why(reason)))
        }
    }

    /// Takes both buffers of a command out of the target's reach.
    pub(super) fn withdraw(&mut self, task: TaskHandle) {
        for access in [RemoteAccess::Read, RemoteAccess::Write] {
            let came = self.initiator.named(task).map_or(0, |command| command.in_len) as usize;
            let Some(place) = self.place(task, access) else { return };
            let Some(stag) = place.stag() else { continue };
            let place = core::mem::take(place);
            self.initiator.advertised = self.initiator.advertised.saturating_sub(1);
            let back = self.queue.withdraw(stag);
            if back.is_none()
                && access == RemoteAccess::Write
                && let Some(command) = self.initiator.named(task)
            {
                // The queue pair keeps it, and has ended for that.
                command.in_len = 0;
            }
            let own = match place {
                Place::Bounced(_, mut memory) => {
                    if let Some(Payload::Buf(bounce)) = back {
                        if access == RemoteAccess::Write
                            && let Some(data) = bounce.get(..came.min(memory.len()))
                        {
                            memory.write(0, data);
                            self.counters.copied += data.len() as u64;
                        }
                        self.give_pooled(Payload::Buf(bounce));
                    }
                    Some(memory)
                }
                _ => back,
            };
            self.put_place(task, access, Place::of(own));
        }
    }
}

/// What a person can do about it.
const fn why(reason: RegisterReason) -> &'static str {
    match reason {
        RegisterReason::TooMany => {
            "no buffer can be advertised on this connection: raise the number of advertised buffers"
        }
        RegisterReason::Budget(_) => "the limit of registered memory is reached: raise it in the configuration",
        RegisterReason::MemoryLock => {
            "the process may not lock more memory (`ulimit -l`): raise the memlock limit, or lower the limit of \
             registered memory"
        }
        RegisterReason::Device(_) => "the RDMA device refused to register a command's memory",
    }
}
