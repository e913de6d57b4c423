//! The tasks of a session: slots sized at login, found by handle in one step and by Initiator Task Tag through short
//! chains. Nothing allocates.

use alloc::boxed::Box;
use alloc::vec;

use iscsi_proto::datamover::TaskHandle;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

/// No slot.
const NIL: u16 = u16::MAX;

/// What the session knows of a task; the rest is the executor's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub(super) lun: u64,
    pub(super) itt: u32,
    pub(super) cmd_sn: Serial,
    pub(super) flags: Flags,
    /// Bytes that the task fetched from the initiator.
    pub(super) fetched: u32,
    /// How far its data had come when somebody looked last.
    pub(super) progress: Option<Progress>,
    generation: u16,
    /// Next of the chain of tags, or of the free slots.
    next: u16,
}

/// How far the data of a command have come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Bytes that had come.
    pub(super) fetched: u32,
    /// Since when it is so many.
    pub(super) since: Instant,
    /// How many bytes must have been sent until what asks for the next ones has left.
    pub(super) asked: u64,
}

/// Facts of a task, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags(u8);

impl Flags {
    /// The slot is in use.
    pub(super) const LIVE: Self = Self(1);
    /// It came for immediate delivery: it holds no place in the command window.
    pub(super) const IMMEDIATE: Self = Self(2);
    /// Its data are being fetched.
    pub(super) const FETCHING: Self = Self(4);
    /// A task management function has aborted it; only its data phase is still to end.
    pub(super) const ABORTED: Self = Self(8);

    #[inline]
    pub(super) const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    #[inline]
    pub(super) const fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    #[inline]
    pub(super) const fn without(self, flag: Self) -> Self {
        Self(self.0 & !flag.0)
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct TaskTable {
    slots: Box<[Task]>,
    /// First slot of each chain; a power of two of them.
    chains: Box<[u16]>,
    free: u16,
    live: u16,
}

/// Why a task could not be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The tag names a task that is still here.
    TagInUse,
    /// Every slot is taken.
    Full,
}

impl TaskTable {
    /// A table of `slots` slots, at most 65534.
    pub(super) fn new(slots: u16) -> Self {
        let slots = slots.min(NIL - 1);
        let empty = |at: u16| Task {
            lun: 0,
            itt: 0,
            cmd_sn: Serial(0),
            flags: Flags::default(),
            fetched: 0,
            progress: None,
            generation: 0,
            next: if at + 1 < slots { at + 1 } else { NIL },
        };
        Self {
            slots: (0..slots).map(empty).collect(),
            chains: vec![NIL; (usize::from(slots) * 2).next_power_of_two()].into_boxed_slice(),
            free: if slots == 0 { NIL } else { 0 },
            live: 0,
        }
    }

    /// Tasks in the table.
    #[inline]
    pub(super) fn live(&self) -> u16 {
        self.live
    }

    /// Fibonacci hashing: consecutive tags, and tags that differ in high bits only, spread alike.
    #[inline]
    fn chain(&self, itt: u32) -> usize {
        (itt.wrapping_mul(0x9e37_79b9) >> 12) as usize & (self.chains.len() - 1)
    }

    fn slot(&self, slot: u16) -> Option<&Task> {
        self.slots.get(usize::from(slot))
    }

    /// The task of a tag.
    pub(super) fn find(&self, itt: u32) -> Option<TaskHandle> {
        let mut at = *self.chains.get(self.chain(itt))?;
        while let Some(task) = self.slot(at) {
            if task.itt == itt {
                return Some(TaskHandle { slot: at, generation: task.generation });
            }
            at = task.next;
        }
        None
    }

    /// The handle of the task that [`add`](Self::add) would add with this tag.
    #[inline]
    pub(super) fn vacant(&self, itt: u32) -> Result<TaskHandle, Refused> {
        if self.find(itt).is_some() {
            return Err(Refused::TagInUse);
        }
        let task = self.slot(self.free).ok_or(Refused::Full)?;
        Ok(TaskHandle { slot: self.free, generation: task.generation })
    }

    /// Adds a task, whose tag is [`vacant`](Self::vacant).
    #[inline]
    pub(super) fn add(&mut self, itt: u32, lun: u64, cmd_sn: Serial, flags: Flags) -> Result<TaskHandle, Refused> {
        let at = self.free;
        let chain = self.chain(itt);
        let (Some(task), Some(head)) = (self.slots.get_mut(usize::from(at)), self.chains.get_mut(chain)) else {
            return Err(Refused::Full);
        };
        self.free = task.next;
        task.itt = itt;
        task.lun = lun;
        task.cmd_sn = cmd_sn;
        task.flags = flags.with(Flags::LIVE);
        task.fetched = 0;
        task.progress = None;
        task.next = *head;
        *head = at;
        self.live += 1;
        Ok(TaskHandle { slot: at, generation: task.generation })
    }

    /// The task behind a handle, unless the handle is stale.
    #[inline]
    pub(super) fn get_mut(&mut self, handle: TaskHandle) -> Option<&mut Task> {
        let task = self.slots.get_mut(usize::from(handle.slot))?;
        (task.generation == handle.generation && task.flags.has(Flags::LIVE)).then_some(task)
    }

    /// Takes a task out.
    #[inline]
    pub(super) fn remove(&mut self, handle: TaskHandle) -> Option<Task> {
        let task = *self.get_mut(handle)?;
        let chain = self.chain(task.itt);
        let head = self.chains.get_mut(chain)?;
        if *head == handle.slot {
            *head = task.next;
        } else {
            let mut at = *head;
            while let Some(before) = self.slots.get_mut(usize::from(at)) {
                if before.next == handle.slot {
                    before.next = task.next;
                    break;
                }
                at = before.next;
            }
        }
        let slot = self.slots.get_mut(usize::from(handle.slot))?;
        slot.flags = Flags::default();
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = self.free;
        self.free = handle.slot;
        self.live -= 1;
        Some(task)
    }

    /// The handle of the first task from slot `from` on that `wanted` likes; the next search goes on behind it.
    pub(super) fn search(&self, from: u16, wanted: impl Fn(&Task) -> bool) -> Option<TaskHandle> {
        let mut slots = self.slots.iter().enumerate().skip(usize::from(from));
        slots
            .find(|(_, task)| task.flags.has(Flags::LIVE) && wanted(task))
            .map(|(at, task)| TaskHandle { slot: at as u16, generation: task.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    impl TaskTable {
        fn insert(&mut self, itt: u32, lun: u64, cmd_sn: Serial, flags: Flags) -> Result<TaskHandle, Refused> {
            let handle = self.vacant(itt)?;
            assert_eq!(self.add(itt, lun, cmd_sn, flags), Ok(handle));
            Ok(handle)
        }
    }

    #[test]
    fn tags_are_unique_and_slots_bounded() {
        let mut table = TaskTable::new(2);
        let first = table.insert(7, 0, Serial(1), Flags::default()).unwrap();
        assert_eq!(table.insert(7, 0, Serial(2), Flags::default()), Err(Refused::TagInUse));
        table.insert(8, 0, Serial(2), Flags::IMMEDIATE).unwrap();
        assert_eq!(table.insert(9, 0, Serial(3), Flags::default()), Err(Refused::Full));
        assert_eq!(table.remove(first).unwrap().itt, 7);
        assert!(table.remove(first).is_none(), "the handle is stale");
        assert!(table.get_mut(first).is_none());
        let again = table.insert(9, 0, Serial(3), Flags::default()).unwrap();
        assert_eq!(again.slot, first.slot);
        assert_ne!(again, first);
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in proptest::collection::vec((0u32..40, any::<bool>()), 0..400)) {
            let mut table = TaskTable::new(16);
            let mut model = BTreeMap::new();
            for (tag, add) in steps {
                // Tags that differ in their high half only, as generations make them.
                let itt = (tag % 4) | ((tag / 4) << 16);
                if add {
                    match table.insert(itt, tag.into(), Serial(tag), Flags::default()) {
                        Ok(handle) => prop_assert!(model.insert(itt, handle).is_none()),
                        Err(Refused::TagInUse) => prop_assert!(model.contains_key(&itt)),
                        Err(Refused::Full) => prop_assert_eq!(model.len(), 16),
                    }
                } else {
                    let handle = model.remove(&itt);
                    prop_assert_eq!(table.find(itt), handle);
                    if let Some(handle) = handle {
                        prop_assert_eq!(table.remove(handle).map(|task| task.lun), Some(tag.into()));
                    }
                }
                prop_assert_eq!(usize::from(table.live()), model.len());
            }
        }
    }
}
