//! Which tasks of its own session a task management function is about.

use alloc::sync::Arc;
use alloc::vec::Vec;

use scsi_proto::Lun;

use super::session::Session;
use super::task_table::Task;
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

    /// Whether operations of aborted tasks are still under way.
    pub(super) fn is_busy(&self, executor: &TaskExecutor) -> bool {
        match self {
            Self::All => executor.busy(None) != 0,
            Self::Unit { luns, .. } => {
                executor.busy_on(Some(self.units())) != 0
                    || luns.iter().any(|number| executor.busy(Some(lun_field(*number))) != 0)
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
}
