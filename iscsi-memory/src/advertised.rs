//! Memory that a peer may reach while it is held here.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::registration::register_by_all_means;
use crate::{Access, Payload, RegisterFailure, Registrar, Registration};

/// Memory with a registration of its own: exactly these bytes, for exactly one kind of access, until it is taken back.
///
/// Unlike the registration that stays attached to a buffer or a region, this one is made for one operation, because a
/// peer learns its key.
#[derive(Debug)]
pub struct Advertised {
    memory: ManuallyDrop<Payload>,
    registration: Arc<dyn Registration>,
    address: u64,
    start: usize,
    len: usize,
    access: Access,
    ended: bool,
}

impl Advertised {
    /// Registers bytes `start..start + len` of a memory.
    ///
    /// # Errors
    /// When a limit is reached or the device refuses; the memory comes back.
    ///
    /// # Panics
    /// If the range is empty or lies outside the memory.
    pub fn new(
        memory: Payload,
        start: usize,
        len: usize,
        registrar: &dyn Registrar,
        access: Access,
    ) -> Result<Self, (Payload, RegisterFailure)> {
        assert!(
            len != 0 && start.checked_add(len).is_some_and(|end| end <= memory.len()),
            "what is advertised lies inside its memory"
        );
        let at = memory.as_ptr(start);
        if let Payload::Region(slice) = &memory {
            slice.pin(start, len);
        }
        // SAFETY: the memory is owned by what is made here, which frees it only after the registration has ended. A
        // buffer's pages do not change; a region leaves pages alone that are pinned, as has just been done.
        match unsafe { register_by_all_means(registrar, at, len, access) } {
            Ok(registration) => {
                let address = at.expose_provenance() as u64;
                let memory = ManuallyDrop::new(memory);
                Ok(Self { memory, registration, address, start, len, access, ended: false })
            }
            Err(failure) => {
                if let Payload::Region(slice) = &memory {
                    slice.unpin(start, len);
                }
                Err((memory, failure))
            }
        }
    }

    /// The key that a peer names the memory by.
    #[must_use]
    pub fn remote_key(&self) -> u32 {
        self.registration.remote_key()
    }

    /// The key that local work requests name the memory by.
    #[must_use]
    pub fn local_key(&self) -> u32 {
        self.registration.local_key()
    }

    /// Virtual address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What it was registered for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Ends the registration and gives the memory back. `None` where the device would not let go: the memory is then
    /// lost on purpose.
    #[must_use]
    pub fn end(mut self) -> Option<Payload> {
        self.release()
    }

    fn release(&mut self) -> Option<Payload> {
        if self.ended {
            return None;
        }
        self.ended = true;
        if !self.registration.release() {
            return None;
        }
        if let Payload::Region(slice) = &*self.memory {
            slice.unpin(self.start, self.len);
        }
        // SAFETY: taken once, since `ended` was false until now, and not used afterwards.
        Some(unsafe { ManuallyDrop::take(&mut self.memory) })
    }
}

impl Drop for Advertised {
    fn drop(&mut self) {
        drop(self.release());
    }
}
