//! What the driver of a queue pair waits for, apart from the queue pair itself, which its connection owns.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::endpoint::{DevicePort, Parts};
use super::state::Activity;

/// The event sources of a [`VerbsQueue`](super::VerbsQueue), for its driver.
///
/// The device wakes nobody unless it is asked to: the order is [`arm`](Self::arm), then look once more for completions,
/// then wait for one of [`descriptors`](Self::descriptors), then [`take`](Self::take).
#[derive(Debug)]
pub struct VerbsEvents {
    parts: Weak<Parts>,
    activity: Arc<Activity>,
}

impl VerbsEvents {
    pub(super) fn new(port: &DevicePort, activity: Arc<Activity>) -> Self {
        Self { parts: port.parts().map_or_else(Weak::new, Arc::downgrade), activity }
    }

    /// Copies of the descriptors of the connection, of its completions, and of its device: readable when there is
    /// something. Once the queue pair has ended there are none.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn descriptors(&self) -> std::io::Result<Option<[OwnedFd; 3]>> {
        let Some(parts) = self.parts.upgrade() else { return Ok(None) };
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        Ok(Some([copy(parts.connection_fd())?, copy(parts.completion_fd())?, copy(parts.device_fd())?]))
    }

    /// Makes the device wake us at the next completion.
    pub fn arm(&self) {
        if let Some(parts) = self.parts.upgrade() {
            parts.arm();
        }
    }

    /// Takes the wake-ups that have come.
    pub fn take(&self) {
        if let Some(parts) = self.parts.upgrade() {
            parts.take_wakes();
        }
    }

    /// A number that grows with each completion and event that the queue pair has taken.
    #[must_use]
    pub fn activity(&self) -> u64 {
        self.activity.count.load(Ordering::Relaxed)
    }

    /// Whether the queue pair is ending, and wants to be looked at every few milliseconds.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.activity.is_ending.load(Ordering::Relaxed)
    }

    /// Whether the queue pair has done enough for a while, and others of its thread are to have their turn: memory was
    /// registered, which takes a device long, or many completions were given and there may be more. Asking takes it
    /// back.
    #[must_use]
    pub fn gives_way(&self) -> bool {
        self.activity.gives_way.swap(false, Ordering::Relaxed)
    }
}
