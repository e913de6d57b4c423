//! One path of a multipath disk: its session, how the target's ports stand, and what brings it back.

use std::sync::Arc;

use scsi_proto::command::{Inquiry, ReportTargetPortGroups, test_unit_ready};
use scsi_proto::vpd::{self, Association, DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, report};

use super::super::{Disk, Events, Session, SessionEvent};
use super::core::Core;
use crate::command::{Command, Failure};
use crate::config::SessionConfig;
use crate::error::Error;
use crate::multipath::{Access, Found, Power};

/// Asks for the access state of the group of the port that the session is on, and where that is active, whether the
/// unit is ready by it: a port may be offline, whatever its group. A target that has no groups, or does not tell which
/// one this is, gives the same answer by all paths.
pub(super) async fn ask_access(disk: &Disk) -> Result<Access, Error> {
    let told = match ask_group(disk).await {
        Ok(access) if access.is_active() => {
            let ready = Command::new(0, disk.wire_lun(), test_unit_ready());
            disk.session().query_with(ready, 0).await.map(|_| access)
        }
        told => told,
    };
    match told {
        // What else a unit refuses is for those to hear who use it.
        Err(error) => match error.sense() {
            Some(sense) => Ok(Access::of_sense(sense.code).unwrap_or(Access::Optimized)),
            None => Err(error),
        },
        told => told,
    }
}

async fn ask_group(disk: &Disk) -> Result<Access, Error> {
    let session = disk.session();
    let query = |cdb, room| session.query_with(Command::new(0, disk.wire_lun(), cdb), room);
    let page = Inquiry { page: Some(vpd::DEVICE_IDENTIFICATION), allocation_length: 1024 }.to_cdb();
    let page = VpdPage::parse(&query(page, 1024).await?).ok();
    let Some(VpdPage::DeviceIdentification(designators)) = page else { return Ok(Access::Optimized) };
    let of_port = designators.iter().filter(|designator| designator.association == Association::TargetPort);
    let mut group = of_port.filter_map(|designator| match designator.id {
        DesignatorId::TargetPortGroup(group) => Some(group),
        _ => None,
    });
    let Some(group) = group.next_back() else { return Ok(Access::Optimized) };
    let cdb = ReportTargetPortGroups { extended: false, allocation_length: 4096 }.to_cdb();
    let groups = report::parse_target_port_groups(&query(cdb, 4096).await?, false).unwrap_or_default();
    Ok(groups.iter().find(|other| other.group == group).map_or(Access::Optimized, |own| Access::from_code(own.state)))
}

/// A path that answers.
pub(super) struct Up {
    pub(super) disk: Disk,
    access: Access,
    events: Events,
}

/// An attempt that came to nothing, and what its session has told of the target's power.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) power: Power,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, power: Power::On }
    }
}

/// What was told of the target's power, and whether access states have changed.
fn at_hand(events: &Events) -> (Power, bool) {
    let (mut power, mut changed) = (Power::On, false);
    while let Some(event) = events.at_hand() {
        if let SessionEvent::UnitAttention { code, .. } = event {
            power = power.max(Power::of(code));
            changed |= code == AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED;
        }
    }
    (power, changed)
}

/// Connects a path, and asks what is at its end.
pub(super) async fn connect((config, lun): &(SessionConfig, u16)) -> Result<Up, Failed> {
    let session = Session::connect(config.clone()).await?;
    let events = session.events();
    let ask = async {
        let disk = session.disk(*lun).await?;
        let access = ask_access(&disk).await?;
        Ok((disk, access))
    };
    match ask.await {
        Ok((disk, access)) => Ok(Up { disk, access, events }),
        Err(error) => Err(Failed { error, power: at_hand(&events).0 }),
    }
}

/// Tells the paths what a connection has found. Whether the path is used: it is to be [followed](follow).
pub(super) fn begin(core: &Arc<Core>, path: usize, Up { disk, access, events }: &Up) -> bool {
    // What was told while the disk was opened waits in the queue.
    let (power, changed) = at_hand(events);
    let known = disk.known();
    let opened = core.with(|inner, now| {
        let group = inner.group(disk);
        let found = Found { identity: known.identity, access: *access, group, power, volatile: known.volatile };
        let link = &mut inner.links[path];
        link.disk = Some(disk.clone());
        let opened = inner.paths.opened(path, found, now);
        if let Err(difference) = &opened {
            let link = &mut inner.links[path];
            link.disk = None;
            link.last_error = Some(Error::OtherDisk { lun: disk.lun(), difference: difference.clone() });
        } else if changed {
            inner.paths.attention(path, AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED, now);
        }
        opened
    });
    opened.is_ok()
}

/// Follows a path that is used to its end, and lets go of one that is not.
pub(super) async fn follow(core: Arc<Core>, path: usize, Up { disk, mut events, .. }: Up, used: bool) {
    if !used {
        // It is not ours.
        let _ = disk.session().logout().await;
        return;
    }
    let prove = core.look(|inner| inner.links[path].prove.clone());
    let reason = watch(&core, path, &disk, &mut events, &prove).await;
    core.with(|inner, now| {
        // An operation may have found it lost before, and the path be up anew.
        if inner.is_still(path, &disk) {
            let link = &mut inner.links[path];
            link.last_error = Some(reason);
            link.disk = None;
            inner.paths.lost(path, now);
        }
    });
}

/// Brings a path up, and follows it.
pub(super) async fn keep(core: Arc<Core>, path: usize) {
    let way = core.look(|inner| inner.links[path].way.clone());
    match connect(&way).await {
        Ok(up) => {
            let used = begin(&core, path, &up);
            follow(core, path, up, used).await;
        }
        Err(Failed { error, power }) => core.with(|inner, now| {
            inner.links[path].last_error = Some(error);
            inner.paths.not_opened(path, power, now);
        }),
    }
}

/// Follows a path that is up to its end.
async fn watch(core: &Arc<Core>, path: usize, disk: &Disk, events: &mut Events, prove: &tokio::sync::Notify) -> Error {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = prove.notified() => {
                let answer = disk.session().query_with(Command::new(0, disk.wire_lun(), test_unit_ready()), 0).await;
                let answered = match answer {
                    Ok(_) | Err(Error::Scsi { .. }) => true,
                    // The target has answered its ABORT TASK.
                    Err(Error::Command { failure: Failure::TimedOut, .. }) => !disk.session().has_ended(),
                    Err(_) => false,
                };
                // What was told before the answer counts before it.
                while let Some(event) = events.at_hand() {
                    if let Some(reason) = heed(core, path, disk, event).await {
                        return reason;
                    }
                }
                if answered {
                    core.with(|inner, now| inner.paths.proved(path, now));
                    continue;
                }
                // It does not answer: it is not to be waited for any longer than a login takes.
                let _ = disk.session().logout().await;
                events.next().await
            }
        };
        let Some(event) = event else { return Error::LoggedOut };
        if let Some(reason) = heed(core, path, disk, event).await {
            return reason;
        }
    }
}

/// What an event means; the reason, where it is the session's end.
async fn heed(core: &Arc<Core>, path: usize, disk: &Disk, event: SessionEvent) -> Option<Error> {
    match event {
        SessionEvent::Ended(reason) => return Some(reason),
        SessionEvent::UnitAttention { lun, code } if lun == disk.wire_lun() => {
            core.with(|inner, now| inner.paths.attention(path, code, now));
        }
        SessionEvent::Missed(_) => core.with(|inner, now| {
            inner.paths.attention(path, AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED, now);
        }),
        SessionEvent::Resized { lun, blocks, .. } if lun == disk.wire_lun() => {
            // The disk follows by itself.
            let _ = disk.size();
            core.with(|inner, now| inner.paths.resized(path, blocks, now));
        }
        SessionEvent::OtherDisk { lun, difference } => {
            let lun = lun.number().unwrap_or_default();
            let _ = disk.session().logout().await;
            return Some(Error::OtherDisk { lun, difference });
        }
        _ => {}
    }
    None
}

/// Logs in with the ISID of a path at the portal of another, and out. Whether that has ended the path's old session: it
/// has where it was the same portal group.
pub(super) async fn reinstate(core: &Core, path: usize, over: usize) -> bool {
    let (mut config, target, group) = core.look(|inner| {
        let own = &inner.links[path].way.0;
        let by = &inner.links[over];
        let group = by.disk.as_ref().map(|disk| disk.session().info());
        let config = SessionConfig {
            portal: by.way.0.portal.clone(),
            portals: Vec::new(),
            transport: by.way.0.transport,
            iser: by.way.0.iser,
            ..own.clone()
        };
        let (target, group) = group.map(|info| (info.target_name, info.tpgt)).unwrap_or_default();
        (config, target, group)
    });
    config.target_name.clone_from(&target);
    let Ok(session) = Session::connect(config).await else { return false };
    let done = group.is_some() && session.info().tpgt == group;
    // It was for its login only.
    let _ = session.logout().await;
    done
}
