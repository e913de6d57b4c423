//! The writes of careless initiators to a disk, and what may not land of them.

use std::cell::RefCell;

use iscsi_proto::time::Instant;

use crate::disk::SharedDisk;
use crate::model::{Value, session_of};

/// Writes that are remembered when they have ended.
const REMEMBERED: usize = 64;

/// A write that was ended before its data were there: they do not land any more.
#[derive(Debug)]
struct Ended {
    lba: u64,
    values: Vec<Value>,
}

/// The writes of all careless initiators to one disk.
#[derive(Debug, Default)]
pub struct CarelessWrites(RefCell<Vec<(Instant, u64, Vec<Value>)>>, RefCell<Vec<Ended>>);

impl CarelessWrites {
    pub(super) fn begin(&self, now: Instant, lba: u64, values: Vec<Value>) {
        self.0.borrow_mut().push((now, lba, values));
    }

    /// What came before `since` is ended, of a session or of anybody: of its blocks only those are written that are so
    /// now.
    pub fn end(&self, disk: &SharedDisk, session: Option<u64>, since: Instant) {
        let is_older = |(at, _, values): &mut (Instant, u64, Vec<Value>)| {
            let of = values.first().copied().and_then(session_of);
            *at < since && session.is_none_or(|session| of == Some(session))
        };
        for (_, lba, values) in self.0.borrow_mut().extract_if(.., is_older) {
            self.end_one(disk, lba, &values);
        }
    }

    pub(super) fn end_one(&self, disk: &SharedDisk, lba: u64, values: &[Value]) {
        let mut ended = self.1.borrow_mut();
        for (lba, value) in (lba..).zip(values) {
            if !disk.holds(lba, *value) {
                if ended.len() == REMEMBERED {
                    ended.remove(0);
                }
                ended.push(Ended { lba, values: vec![*value] });
            }
        }
    }

    /// The write of these values was answered: it counts no more.
    pub(super) fn answered(&self, value: Value) {
        self.0.borrow_mut().retain(|(.., values)| values.first() != Some(&value));
    }

    /// Data that landed though their write was ended.
    #[must_use]
    pub fn landed(&self, disk: &SharedDisk) -> Option<String> {
        let ended = self.1.borrow();
        let landed = ended.iter().find(|ended| ended.values.iter().any(|value| disk.holds(ended.lba, *value)))?;
        Some(format!("{:#x} landed in block {} after it was ended", landed.values[0], landed.lba))
    }
}
