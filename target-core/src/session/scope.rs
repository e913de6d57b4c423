//! Which tasks of its own session a task management function is about.

use alloc::sync::Arc;
use alloc::vec::Vec;

use scsi_proto::Lun;

use super::session::Session;
use super::task_table::{Flags, Task};
use crate::lu::{LogicalUnit, MappedLun};
use crate::task::TaskExecutor;

/// The tasks of its own session that a function is about.
#[derive(Debug)]
pub(super) enum Scope {
    All,
    /// Those of a logical unit, whichever of its LUNs they came by.
    Unit {
        luns: Vec<u16>,
        /// None when the LUN that was asked for names none any more.
        unit: Option<Arc<LogicalUnit>>,
    },
}

impl Scope {
    pub(super) fn covers(&self, task: &Task) -> bool {
        match self {
            Self::All => true,
            Self::Unit { luns, .. } => lun_number(task.lun).is_some_and(|number| luns.contains(&number)),
        }
    }

    /// The unit, if it is about one.
    pub(super) fn units(&self) -> &[Arc<LogicalUnit>] {
        match self {
            Self::Unit { unit: Some(unit), .. } => core::slice::from_ref(unit),
            _ => &[],
        }
    }

    /// Whether operations of aborted tasks are still under way, of those up to the [last
    /// one](TaskExecutor::last_operation) of the time of the abort.
    pub(super) fn is_busy(&self, executor: &TaskExecutor, last: u64) -> bool {
        match self {
            Self::All => executor.busy_since(None, last) != 0,
            Self::Unit { luns, .. } => {
                executor.busy_on(Some(self.units()), last) != 0
                    || luns.iter().any(|number| executor.busy_since(Some(lun_field(*number)), last) != 0)
            }
        }
    }
}

/// The number of a LUN field, whichever way it is written; none when it cannot name a logical unit.
pub(super) fn lun_number(field: u64) -> Option<u16> {
    Lun::parse(field.to_be_bytes()).ok()?.number()
}

/// The LUN field that names `number`.
pub(super) fn lun_field(number: u16) -> u64 {
    u64::from_be_bytes(Lun::new(number).unwrap_or(Lun::ZERO).to_bytes())
}

/// Whether both fields name the same logical unit.
pub(super) fn same_lun(a: u64, b: u64) -> bool {
    a == b || (lun_number(a).is_some() && lun_number(a) == lun_number(b))
}

impl Session {
    /// The unit that a LUN field names.
    pub(super) fn unit(&self, lun: u64) -> Option<Arc<LogicalUnit>> {
        let (_, _, luns) = self.entry.session.normal.as_ref()?;
        luns.get(lun_number(lun)?).map(|mapped| mapped.unit)
    }

    /// What a function on that LUN is about.
    pub(super) fn scope(&self, lun: u64) -> Scope {
        let (unit, number) = (self.unit(lun), lun_number(lun));
        let mapped = self.entry.session.normal.iter().flat_map(|(_, _, luns)| luns.iter());
        let names = |lun: &MappedLun| unit.as_ref().is_some_and(|unit| Arc::ptr_eq(unit, &lun.unit));
        let others = mapped.filter(|lun| Some(lun.number) != number && names(lun)).map(|lun| lun.number);
        let luns = number.into_iter().chain(others).collect();
        Scope::Unit { luns, unit }
    }

    /// The same with the LUNs that the node has no more by which tasks of its unit have come, or tasks that were aborted
    /// and are owed data, which may be for any unit. They may come back meanwhile: the function is about their tasks.
    pub(super) fn with_strays(&mut self, mut scope: Scope) -> Scope {
        let Scope::Unit { luns, unit } = &mut scope else { return scope };
        let named = |other: &Arc<LogicalUnit>| unit.as_ref().is_some_and(|unit| Arc::ptr_eq(unit, other));
        let begun: Vec<_> = self.executor.iter().flat_map(|executor| executor.tasks_where(named)).collect();
        let begun = begun.into_iter().filter_map(|task| Some(self.commands.tasks.get_mut(task)?.lun));
        let mut strays: Vec<u64> = begun.collect();
        let mut from = 0;
        while let Some(handle) = self.commands.tasks.search(from, |task| task.flags.has(Flags::ABORTED)) {
            from = handle.slot + 1;
            strays.extend(self.commands.tasks.get_mut(handle).map(|task| task.lun));
        }
        let mapped = self.entry.session.normal.as_ref().map(|(_, _, luns)| luns);
        let is_gone = |number: &u16| mapped.is_some_and(|luns| luns.get(*number).is_none());
        luns.extend(strays.into_iter().filter_map(lun_number).filter(is_gone));
        scope
    }
}
