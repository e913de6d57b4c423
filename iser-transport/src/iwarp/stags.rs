//! The table of advertised buffers: what the peer can reach, and what it cannot.

use alloc::vec::Vec;

use iscsi_memory::Payload;

use super::receive::STREAMED;
use crate::queue::{RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag};
use crate::random::Random;

/// One advertised buffer.
#[derive(Debug)]
struct Advertised {
    stag: u32,
    base: u64,
    access: RemoteAccess,
    /// Not invalidated by the peer.
    alive: bool,
    memory: Option<Payload>,
}

/// Why the peer cannot reach bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Stag,
    Access,
    Bounds,
    Wrap,
}

/// Advertised buffers by slot. A slot's number stands, masked, in the low bits of its STag; the other bits are new each
/// time.
#[derive(Debug)]
pub(super) struct Stags {
    slots: Vec<Advertised>,
    free: Vec<u16>,
    limit: usize,
    bits: u32,
    mask: u32,
    /// STags need not withstand cryptanalysis, since one is good only on the connection of the peer that it was told
    /// to. They are to be hard to hit by accident, and never twice the same in a row.
    random: Random,
    /// Large buffers that the peer may write to and has not invalidated.
    large: usize,
}

/// Whether a buffer is one that large Writes are due for.
fn is_large(access: RemoteAccess, memory: &Payload) -> bool {
    access == RemoteAccess::Write && memory.len() > STREAMED
}

impl Stags {
    /// A table of at most `limit` buffers.
    pub(super) fn new(limit: u16, mut random: Random) -> Self {
        let limit = usize::from(limit);
        let bits = limit.next_power_of_two().trailing_zeros();
        let mask = random.u64() as u32 & ((1 << bits) - 1);
        Self { slots: Vec::with_capacity(limit), free: Vec::with_capacity(limit), limit, bits, mask, random, large: 0 }
    }

    pub(super) fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        let slot = match self.free.pop() {
            Some(slot) => usize::from(slot),
            None if self.slots.len() < self.limit => self.slots.len(),
            None => return Err(RegisterError { memory, reason: RegisterReason::TooMany }),
        };
        let previous = self.slots.get(slot).map_or(0, |entry| entry.stag);
        let stag = loop {
            let high = (self.random.u64() as u32).checked_shl(self.bits).unwrap_or(0);
            let stag = high | (slot as u32 ^ self.mask);
            // Zero is what peers take for no STag at all.
            if stag != 0 && stag != previous {
                break stag;
            }
        };
        // A whole page's offset, far enough below the end that no buffer wraps.
        let base = self.random.u64() & 0x0000_7fff_ffff_f000;
        self.large += usize::from(is_large(access, &memory));
        let entry = Advertised { stag, base, access, alive: true, memory: Some(memory) };
        match self.slots.get_mut(slot) {
            Some(place) => *place = entry,
            None => self.slots.push(entry),
        }
        Ok(RemoteBuffer { stag: Stag(stag), offset: base })
    }

    fn slot(&self, stag: u32) -> Option<usize> {
        let slot = ((stag ^ self.mask) & ((1 << self.bits) - 1)) as usize;
        let entry = self.slots.get(slot)?;
        (entry.stag == stag && entry.memory.is_some()).then_some(slot)
    }

    /// The slot of a buffer and the place in it, if the peer may access `len` bytes at `to` of `stag` so.
    #[inline]
    pub(super) fn reach(
        &self,
        stag: u32,
        to: u64,
        len: u64,
        access: RemoteAccess,
    ) -> Result<(usize, usize), Unreachable> {
        let slot = self.slot(stag).ok_or(Unreachable::Stag)?;
        let entry = self.slots.get(slot).filter(|entry| entry.alive).ok_or(Unreachable::Stag)?;
        if entry.access != access {
            return Err(Unreachable::Access);
        }
        let end = to.checked_add(len).ok_or(Unreachable::Wrap)?;
        let size = self.memory(slot).map_or(0, Payload::len) as u64;
        if to < entry.base || end > entry.base + size {
            return Err(Unreachable::Bounds);
        }
        Ok((slot, (to - entry.base) as usize))
    }

    /// Whether the peer can invalidate this STag.
    pub(super) fn is_alive(&self, stag: u32) -> bool {
        self.slot(stag).and_then(|slot| self.slots.get(slot)).is_some_and(|entry| entry.alive)
    }

    /// The peer reaches the buffer no more; its memory waits to be withdrawn.
    pub(super) fn invalidate(&mut self, stag: u32) {
        if let Some(slot) = self.slot(stag)
            && let Some(entry) = self.slots.get_mut(slot)
            && entry.alive
        {
            entry.alive = false;
            self.large -= usize::from(entry.memory.as_ref().is_some_and(|memory| is_large(entry.access, memory)));
        }
    }

    /// Whether the peer may be about to write much.
    #[inline]
    pub(super) fn awaits_large(&self) -> bool {
        self.large > 0
    }

    /// Takes a buffer out of the table: its slot and its memory.
    pub(super) fn withdraw(&mut self, stag: u32) -> Option<(usize, Payload)> {
        let slot = self.slot(stag)?;
        let entry = self.slots.get_mut(slot)?;
        let memory = entry.memory.take()?;
        self.large -= usize::from(entry.alive && is_large(entry.access, &memory));
        self.free.push(slot as u16);
        Some((slot, memory))
    }

    #[inline]
    pub(super) fn memory(&self, slot: usize) -> Option<&Payload> {
        self.slots.get(slot)?.memory.as_ref()
    }

    #[inline]
    pub(super) fn memory_mut(&mut self, slot: usize) -> Option<&mut Payload> {
        self.slots.get_mut(slot)?.memory.as_mut()
    }

    /// A number for the STag field of an RDMA Read's sink, which only its own response may name.
    pub(super) fn sink(&mut self) -> (u32, u64) {
        let stag = self.random.u64() as u32 | 1;
        (stag, self.random.u64() & 0x0000_7fff_ffff_f000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iscsi_memory::Buf;

    fn memory(len: usize) -> Payload {
        Payload::Buf(Buf::zeroed(len))
    }

    #[test]
    fn a_buffer_is_reached_within_its_bounds_in_its_direction_while_it_is_advertised() {
        let mut stags = Stags::new(4, Random::new(1));
        let buffer = stags.advertise(memory(100), RemoteAccess::Write).unwrap();
        let (stag, base) = (buffer.stag.0, buffer.offset);
        let write = RemoteAccess::Write;
        assert_eq!(stags.reach(stag, base, 100, write), Ok((0, 0)));
        assert_eq!(stags.reach(stag, base + 99, 1, write), Ok((0, 99)));
        assert_eq!(stags.reach(stag, base + 100, 0, write), Ok((0, 100)));
        assert_eq!(stags.reach(stag, base + 99, 2, write), Err(Unreachable::Bounds));
        assert_eq!(stags.reach(stag, base - 1, 1, write), Err(Unreachable::Bounds));
        assert_eq!(stags.reach(stag, u64::MAX, 2, write), Err(Unreachable::Wrap));
        assert_eq!(stags.reach(stag, base, 1, RemoteAccess::Read), Err(Unreachable::Access));
        assert_eq!(stags.reach(stag ^ 0x10, base, 1, write), Err(Unreachable::Stag));
        stags.invalidate(stag);
        assert!(!stags.is_alive(stag));
        assert_eq!(stags.reach(stag, base, 1, write), Err(Unreachable::Stag));
        assert_eq!(stags.withdraw(stag).unwrap().1.len(), 100);
        assert!(stags.withdraw(stag).is_none());
    }

    #[test]
    fn stags_differ_and_their_number_is_bounded() {
        let mut stags = Stags::new(3, Random::new(7));
        let all: Vec<u32> = (0..3).map(|_| stags.advertise(memory(8), RemoteAccess::Read).unwrap().stag.0).collect();
        let error = stags.advertise(memory(9), RemoteAccess::Read).unwrap_err();
        assert_eq!((error.memory.len(), error.reason), (9, RegisterReason::TooMany));
        let mut last = all[1];
        for _ in 0..1000 {
            assert!(stags.withdraw(last).is_some());
            let new = stags.advertise(memory(8), RemoteAccess::Read).unwrap().stag.0;
            assert!(new != last && new != all[0] && new != all[2] && new != 0);
            assert_eq!(stags.reach(last, 0, 0, RemoteAccess::Read), Err(Unreachable::Stag));
            last = new;
        }
    }

    #[test]
    fn a_table_of_one_and_of_none() {
        let mut one = Stags::new(1, Random::new(3));
        let buffer = one.advertise(memory(1), RemoteAccess::Read).unwrap();
        assert!(one.is_alive(buffer.stag.0));
        let mut none = Stags::new(0, Random::new(3));
        assert!(none.advertise(memory(1), RemoteAccess::Read).is_err());
        assert!(!none.is_alive(0));
    }
}
