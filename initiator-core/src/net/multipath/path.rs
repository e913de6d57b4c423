//! One path of a multipath disk: its session, how the target's ports stand, and what brings it back.

use std::sync::Arc;
use std::time::Duration;

use scsi_proto::command::{Inquiry, ReportTargetPortGroups};
use scsi_proto::vpd::{self, Association, DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, report};
use tokio::time::sleep;

use super::super::{Disk, Events, Session, SessionEvent};
use super::Core;
use crate::command::Command;
use crate::error::Error;

/// ASYMMETRIC ACCESS STATE of the target port group that a path leads through (SPC-5 5.15.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Active/optimized, or a target that tells no states.
    Optimized,
    /// Active/non-optimized: used while no optimized path is up.
    NonOptimized,
    /// In transition to another state: waited for.
    Transitioning,
    /// Standby: not used.
    Standby,
    /// Unavailable or offline: not used.
    Unavailable,
}

impl Access {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Optimized,
            1 => Self::NonOptimized,
            2 => Self::Standby,
            0x0f => Self::Transitioning,
            _ => Self::Unavailable,
        }
    }

    /// Whether commands that read and write are carried out.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }

    /// What the sense data of a refused command tell of the state.
    pub(super) fn of_sense(code: AdditionalSense) -> Option<Self> {
        match code {
            AdditionalSense::ASYMMETRIC_ACCESS_TRANSITION => Some(Self::Transitioning),
            AdditionalSense::TARGET_PORT_IN_STANDBY => Some(Self::Standby),
            AdditionalSense::TARGET_PORT_UNAVAILABLE => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// Asks for the access state of the group of the port that the session is on. A target that has no groups, or does not
/// tell which one this is, gives the same answer by all paths.
async fn ask_access(disk: &Disk) -> Result<Access, Error> {
    let session = disk.session();
    let query = |cdb, room| session.query_with(Command { retry: true, ..Command::new(0, disk.wire_lun(), cdb) }, room);
    let refused = |error: &Error| error.sense().is_some();
    let page = Inquiry { page: Some(vpd::DEVICE_IDENTIFICATION), allocation_length: 1024 }.to_cdb();
    let page = match query(page, 1024).await {
        Ok(answer) => VpdPage::parse(&answer).ok(),
        Err(error) if refused(&error) => None,
        Err(error) => return Err(error),
    };
    let Some(VpdPage::DeviceIdentification(designators)) = page else { return Ok(Access::Optimized) };
    let of_port = designators.iter().filter(|designator| designator.association == Association::TargetPort);
    let mut group = of_port.filter_map(|designator| match designator.id {
        DesignatorId::TargetPortGroup(group) => Some(group),
        _ => None,
    });
    let Some(group) = group.next_back() else { return Ok(Access::Optimized) };
    let cdb = ReportTargetPortGroups { extended: false, allocation_length: 4096 }.to_cdb();
    let answer = match query(cdb, 4096).await {
        Ok(answer) => answer,
        Err(error) if refused(&error) => return Ok(Access::Optimized),
        Err(error) => return Err(error),
    };
    let groups = report::parse_target_port_groups(&answer, false).unwrap_or_default();
    Ok(groups.iter().find(|other| other.group == group).map_or(Access::Optimized, |own| Access::from_code(own.state)))
}

/// A path that is up.
pub(super) struct Up {
    pub(super) disk: Disk,
    pub(super) access: Access,
    pub(super) events: Events,
}

/// Connects a path, and sees whether it leads to the disk.
pub(super) async fn connect(core: &Core, number: usize) -> Result<Up, Error> {
    let (config, lun) = core.way(number);
    let session = Session::connect(config.clone()).await?;
    let events = session.events();
    let disk = session.disk(*lun).await?;
    core.is_the_same(&disk)?;
    let access = ask_access(&disk).await?;
    Ok(Up { disk, access, events })
}

/// Keeps a path up, until the task is ended.
pub(super) async fn keep(core: Arc<Core>, number: usize, mut first: Option<Up>) {
    // What a target tells of a power-on at the first login of a nexus is a greeting (SAM-5 5.14).
    let mut greeted = false;
    let mut resets = false;
    loop {
        let up = match first.take() {
            Some(up) => Ok(up),
            None => connect(&core, number).await,
        };
        let Up { disk, access, mut events } = match up {
            Ok(up) => up,
            Err(error) => {
                core.not_up(number, error);
                sleep(core.config.retry).await;
                continue;
            }
        };
        // Before it is used: what was told while the disk was opened waits in the queue.
        let mut told = Vec::new();
        while let Some(event) = events.at_hand() {
            told.push(event);
        }
        let is_power = |event: &SessionEvent| match event {
            SessionEvent::UnitAttention { code, .. } => *code == AdditionalSense::POWER_ON_OCCURRED,
            _ => false,
        };
        let is_reset = |event: &SessionEvent| match event {
            SessionEvent::UnitAttention { code, .. } => {
                *code == AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
            }
            _ => false,
        };
        let (power, reset) = (told.iter().any(is_power), told.iter().any(is_reset));
        let power_was_off = greeted && (power || reset && !resets);
        resets |= !greeted && reset;
        greeted = true;
        core.up(number, &disk, access, power_was_off);
        let reason = watch(&core, number, &disk, &mut events).await;
        core.down(number, reason);
        drop(disk);
        // A target that ends each connection at once is not asked without a pause.
        sleep(core.config.retry.min(Duration::from_millis(100))).await;
    }
}

/// Follows a path that is up to its end.
async fn watch(core: &Core, number: usize, disk: &Disk, events: &mut Events) -> Error {
    loop {
        let event = if core.is_active(number) {
            events.next().await
        } else {
            // A port that is to become active need not say so.
            tokio::select! {
                event = events.next() => event,
                () = sleep(core.config.retry) => Some(SessionEvent::Missed(0)),
            }
        };
        let Some(event) = event else { return Error::LoggedOut };
        match event {
            SessionEvent::Ended(reason) => return reason,
            SessionEvent::UnitAttention { code: AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED, .. }
            | SessionEvent::Missed(_) => {
                if let Ok(access) = ask_access(disk).await {
                    core.set_access(number, access);
                }
            }
            SessionEvent::LostWrites { .. } => {
                // The path's own list says less than the one of all paths.
                let _ = disk.take_lost_writes().await;
                core.power_was_off();
            }
            SessionEvent::OtherDisk { lun, difference } => {
                let lun = lun.number().unwrap_or_default();
                let _ = disk.session().logout().await;
                return Error::OtherDisk { lun, difference };
            }
            _ => {}
        }
    }
}
