//! What the initiator advertised with its commands, by Initiator Task Tag: the Remote Mappings of RFC 7145 7.3.1.

use alloc::vec::Vec;

use crate::queue::RemoteBuffer;

/// Where unsolicited Data-Out PDUs of a command go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Unsolicited {
    /// None are to come.
    #[default]
    None,
    /// They are dropped in silence: the command was answered, or its data were not asked for.
    Dropped,
    /// To the transfer in this slot.
    Transfer(u16),
}

/// What is known of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tag {
    pub(super) itt: u32,
    /// Where its read data go, and how many bytes of them there may be.
    pub(super) read: Option<RemoteBuffer>,
    pub(super) read_len: u32,
    /// Where its write data are, and the Expected Data Transfer Length.
    pub(super) write: Option<RemoteBuffer>,
    pub(super) write_len: u32,
    /// Immediate bytes that came with it.
    pub(super) immediate: u32,
    /// Unsolicited data came, or were to come, that nobody took.
    pub(super) lost: bool,
    pub(super) unsolicited: Unsolicited,
}

/// Places of the smallest table.
const FEWEST: usize = 16;

/// A bounded table: open addressing, linear probing. When it is full, the oldest entry gives way: one whose command was
/// answered, if there is any.
#[derive(Debug)]
pub(super) struct TagTable {
    /// A power of two of places, at most half of them in use.
    places: Vec<Option<(Tag, u64)>>,
    len: usize,
    most: usize,
    /// Counts insertions.
    clock: u64,
}

impl TagTable {
    /// A table for at most `most` entries.
    pub(super) fn new(most: usize) -> Self {
        Self { places: Vec::new(), len: 0, most, clock: 0 }
    }

    /// Gives the memory back when there is no entry.
    pub(super) fn trim(&mut self) {
        if self.len == 0 {
            self.places = Vec::new();
        }
    }

    /// A table of twice as many places.
    #[cold]
    fn grow(&mut self) {
        let size = (self.places.len() * 2).max(FEWEST);
        let old = core::mem::replace(&mut self.places, alloc::vec![None; size]);
        for entry in old.into_iter().flatten() {
            let mut at = self.home(entry.0.itt);
            while self.places.get(at).is_some_and(Option::is_some) {
                at = (at + 1) & (size - 1);
            }
            if let Some(place) = self.places.get_mut(at) {
                *place = Some(entry);
            }
        }
    }

    /// The place where a probe for the tag begins.
    fn home(&self, itt: u32) -> usize {
        // Fibonacci hashing: initiators count their tags up in either half.
        let mixed = (itt ^ itt >> 16).wrapping_mul(0x9e37_79b9);
        (mixed >> 8) as usize & (self.places.len() - 1)
    }

    fn position(&self, itt: u32) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(itt);
        loop {
            match self.places.get(at)? {
                Some((tag, _)) if tag.itt == itt => return Some(at),
                Some(_) => at = (at + 1) & (self.places.len() - 1),
                None => return None,
            }
        }
    }

    pub(super) fn get(&self, itt: u32) -> Option<&Tag> {
        let at = self.position(itt)?;
        self.places.get(at)?.as_ref().map(|(tag, _)| tag)
    }

    pub(super) fn get_mut(&mut self, itt: u32) -> Option<&mut Tag> {
        let at = self.position(itt)?;
        self.places.get_mut(at)?.as_mut().map(|(tag, _)| tag)
    }

    /// Enters a tag in place of what is known of its last use.
    pub(super) fn insert(&mut self, tag: Tag) {
        if self.most == 0 {
            return;
        }
        self.clock += 1;
        let entry = Some((tag, self.clock));
        if let Some(at) = self.position(tag.itt) {
            if let Some(place) = self.places.get_mut(at) {
                *place = entry;
            }
            return;
        }
        if self.len >= self.most {
            self.evict();
        }
        if self.places.len() < (self.len + 1) * 2 {
            self.grow();
        }
        let mut at = self.home(tag.itt);
        while let Some(place) = self.places.get_mut(at) {
            if place.is_none() {
                *place = entry;
                self.len += 1;
                return;
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    pub(super) fn remove(&mut self, itt: u32) -> Option<Tag> {
        let at = self.position(itt)?;
        let tag = self.places.get_mut(at)?.take().map(|(tag, _)| tag);
        self.len -= 1;
        // What was pushed away from the place that is free now moves back, so that every probe still ends at the first
        // free place.
        let mask = self.places.len() - 1;
        let (mut free, mut next) = (at, (at + 1) & mask);
        while let Some(Some((moved, _))) = self.places.get(next) {
            let home = self.home(moved.itt);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(free) & mask {
                self.places.swap(free, next);
                free = next;
            }
            next = (next + 1) & mask;
        }
        tag
    }

    #[cold]
    fn evict(&mut self) {
        let age = |(tag, clock): &(Tag, u64)| {
            let live = tag.read.is_some() || tag.write.is_some() || matches!(tag.unsolicited, Unsolicited::Transfer(_));
            (live, *clock)
        };
        let oldest = self.places.iter().flatten().min_by_key(|entry| age(entry)).map(|(tag, _)| tag.itt);
        if let Some(itt) = oldest {
            self.remove(itt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Stag;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn tag(itt: u32, stag: u32) -> Tag {
        Tag { itt, read: Some(RemoteBuffer { stag: Stag(stag), offset: 0 }), ..Tag::default() }
    }

    proptest! {
        // Few tags and a small table, so that probes run into each other and around the end.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0..24u32, any::<bool>()), 0..200)) {
            let mut table = TagTable::new(24);
            let mut model = HashMap::new();
            for (n, (itt, enters)) in steps.into_iter().enumerate() {
                let itt = itt.wrapping_mul(0x0100_0001);
                if enters {
                    let tag = tag(itt, n as u32);
                    table.insert(tag);
                    model.insert(itt, tag);
                } else {
                    prop_assert_eq!(table.remove(itt), model.remove(&itt));
                }
                for itt in (0..24u32).map(|itt| itt.wrapping_mul(0x0100_0001)) {
                    prop_assert_eq!(table.get(itt), model.get(&itt));
                }
            }
        }
    }

    #[test]
    fn the_oldest_gives_way_and_answered_ones_first() {
        let mut table = TagTable::new(3);
        table.insert(tag(1, 1));
        table.insert(Tag { itt: 2, unsolicited: Unsolicited::Dropped, ..Tag::default() });
        table.insert(tag(3, 3));
        table.insert(tag(4, 4));
        assert_eq!((table.get(1).is_some(), table.get(2)), (true, None));
        table.insert(tag(5, 5));
        assert_eq!((table.get(1), table.get(3).is_some(), table.get(5).is_some()), (None, true, true));
    }
}
