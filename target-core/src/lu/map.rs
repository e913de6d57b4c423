//! Which logical unit a LUN names.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use portable_atomic::AtomicU64;

use super::LogicalUnit;
use super::users::Users;
use crate::registry::Registry;
use iscsi_memory::Lock;

/// One LUN of a [`LunMap`].
#[derive(Debug, Clone)]
pub struct MappedLun {
    /// The number, 0 to 16383.
    pub number: u16,
    /// The logical unit.
    pub unit: Arc<LogicalUnit>,
    /// Whether writes through this LUN are refused, whatever the unit itself allows.
    pub read_only: bool,
}

/// The logical units that an initiator sees, by LUN. May change while sessions use it: they hear REPORTED LUNS DATA HAS
/// CHANGED, commands under way end as they would have.
///
/// ```
/// use target_core::lu::LunMap;
/// let luns = LunMap::builder().build();
/// assert!(luns.get(0).is_none());
/// ```
#[derive(Debug, Default)]
pub struct LunMap {
    /// Sorted by number.
    luns: Lock<Arc<[MappedLun]>>,
    generation: AtomicU64,
    /// Whose sessions see it.
    users: Users,
}

/// The largest LUN of the flat space addressing method (SAM-5 4.7.7.4).
const MAX_LUN: u16 = 0x3fff;

/// Builds a [`LunMap`].
#[derive(Debug, Default)]
pub struct LunMapBuilder(Vec<MappedLun>);

impl LunMapBuilder {
    /// Gives `unit` the LUN `number`; an earlier unit of that LUN is replaced. A number above 16383 cannot be addressed
    /// and is left out.
    #[must_use]
    pub fn insert(mut self, number: u16, unit: Arc<LogicalUnit>, read_only: bool) -> Self {
        put(&mut self.0, MappedLun { number, unit, read_only });
        self
    }

    /// The map.
    #[must_use]
    pub fn build(self) -> LunMap {
        LunMap { luns: Lock::new(self.0.into()), ..LunMap::default() }
    }
}

fn put(luns: &mut Vec<MappedLun>, lun: MappedLun) {
    if lun.number > MAX_LUN {
        return;
    }
    match luns.binary_search_by_key(&lun.number, |lun| lun.number) {
        Ok(at) => luns[at] = lun,
        Err(at) => luns.insert(at, lun),
    }
}

impl LunMap {
    /// Builds a map.
    #[must_use]
    pub fn builder() -> LunMapBuilder {
        LunMapBuilder::default()
    }

    /// The LUN `number`.
    #[must_use]
    pub fn get(&self, number: u16) -> Option<MappedLun> {
        let luns = self.snapshot();
        luns.binary_search_by_key(&number, |lun| lun.number).ok().and_then(|at| luns.get(at).cloned())
    }

    /// All LUNs, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = MappedLun> + use<> {
        let luns = self.snapshot();
        (0..luns.len()).filter_map(move |at| luns.get(at).cloned())
    }

    /// Gives `unit` the LUN `number`, or another unit than before. A number above 16383 cannot be addressed and changes
    /// nothing.
    pub fn insert(&self, number: u16, unit: Arc<LogicalUnit>, read_only: bool) {
        self.change(|luns| put(luns, MappedLun { number, unit, read_only }));
    }

    /// Takes the LUN away.
    pub fn remove(&self, number: u16) {
        self.change(|luns| luns.retain(|lun| lun.number != number));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<MappedLun>)) {
        let mut luns = self.luns.lock();
        let mut changed = luns.to_vec();
        change(&mut changed);
        // Before anybody sees it.
        for user in self.users.present() {
            for lun in &changed {
                lun.unit.users().gather(&user);
            }
        }
        *luns = changed.into();
        let mapped = luns.clone();
        drop(luns);
        self.generation.fetch_add(1, Ordering::Release);
        if let Some(user) = self.users.present().first() {
            mapped.iter().for_each(|lun| user.inherit(&lun.unit));
        }
    }

    /// Sessions of `registry` see it from now on: resets of its units reach them, of those too that come later.
    pub(crate) fn join(&self, registry: &Arc<Registry>) {
        let luns = self.luns.lock();
        if !self.users.add(registry) {
            return;
        }
        for lun in luns.iter() {
            lun.unit.users().gather(registry);
        }
        let mapped = luns.clone();
        drop(luns);
        mapped.iter().for_each(|lun| registry.inherit(&lun.unit));
    }

    /// Grows with each change.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn snapshot(&self) -> Arc<[MappedLun]> {
        self.luns.lock().clone()
    }
}
