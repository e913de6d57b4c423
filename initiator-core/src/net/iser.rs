//! Movers for sessions over iSER.

#[cfg(all(feature = "verbs", target_os = "linux"))]
use std::sync::Arc;

#[cfg(all(feature = "verbs", target_os = "linux"))]
use iscsi_memory::RegistrationBudget;
use iscsi_proto::tcp::Role;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::QueueLimits;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use iser_transport::verbs::{Verbs, VerbsConfig, VerbsError, VerbsQueue};

use super::connector::{self, Connector};
use super::transport::Attempt;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use super::transport::{self, Carrier};
use crate::error::Error;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use crate::error::words;

/// Buffers that a session advertises at a time: two for each command that goes both ways, and the queue's slots are 16
/// bits.
const MOST_ADVERTISED: u16 = 16384;

/// The mover's sizes.
fn mover(attempt: &Attempt<'_>) -> IserMoverConfig {
    let plan = attempt.plan;
    let segment = plan.login.offer.initiator_recv_data_segment_length;
    let mut mover = IserMoverConfig {
        max_tasks: plan.commands.clamp(1, 4096),
        immediate_limit: plan.iser.immediate_limit,
        read_depth: plan.iser.read_depth.clamp(1, 255),
        ..IserMoverConfig::new(Role::Initiator)
    };
    // A receive for each response that may come: the commands under way bound them.
    mover.receive_memory = mover.receives() * (segment.max(8192) as usize + 2048);
    mover
}

/// A mover over iWARP in user space.
pub(super) fn over_iwarp(
    attempt: &Attempt<'_>,
    connector: &impl Connector,
    segment_size: Option<u32>,
) -> Result<IserMover<IwarpQueue>, Error> {
    let mover = mover(attempt);
    let defaults = IwarpConfig::default();
    let queue = IwarpQueue::connect(IwarpConfig {
        private_data: PrivateData { zero_based: false, send_with_invalidate: true }.emit().to_vec(),
        crc: attempt.plan.iser.crc,
        revision_two: attempt.revision_two,
        ird: mover.read_depth,
        emss: segment_size.unwrap_or(defaults.emss),
        limits: QueueLimits { work: mover.work(), receives: mover.receives(), ..defaults.limits },
        advertisements: mover.max_tasks.saturating_mul(2).min(MOST_ADVERTISED),
        seed: u64::from_ne_bytes(connector::random(connector)?),
        ..defaults
    });
    Ok(IserMover::new(queue, mover))
}

/// A queue pair of the RDMA device that leads to the portal. The peer has not been asked yet.
#[cfg(all(feature = "verbs", target_os = "linux"))]
pub(super) async fn verbs_queue(attempt: &Attempt<'_>) -> Result<(Arc<Verbs>, VerbsQueue, Carrier), Error> {
    let mover = mover(attempt);
    let no_iser = |error: VerbsError| {
        let portal = attempt.portal.clone();
        match error {
            VerbsError::Library(_) | VerbsError::NoRdma(_) | VerbsError::NoDevice(_) => {
                Error::NoRdma { portal, source: Arc::new(error) }
            }
            VerbsError::Register(_) | VerbsError::Refused(..) => {
                Error::RdmaUnusable { portal, source: Arc::new(error) }
            }
            error => Error::NoIser { portal, source: Arc::new(error) },
        }
    };
    let verbs = Verbs::open(VerbsConfig {
        work: mover.work(),
        receives: mover.receives(),
        read_depth: mover.read_depth as u8,
        advertisements: usize::from(mover.max_tasks) * 2,
        budget: RegistrationBudget::new(attempt.plan.iser.registered_memory),
        ..VerbsConfig::default()
    })
    .map_err(no_iser)?;
    let within = attempt.patience().min(attempt.plan.timeouts.connect).min(attempt.within);
    let mut last = None;
    for address in transport::resolve(attempt.portal, within).await? {
        let queue = match verbs.connect(address, within).await {
            Ok(queue) => queue,
            Err(error) => {
                last = Some(no_iser(error));
                continue;
            }
        };
        let (Some(local), Some(peer)) = (queue.local_address(), queue.peer_address()) else { continue };
        let device = Some(queue.device().name.clone());
        return Ok((verbs, queue, Carrier { local, peer, transport: "iser", provider: "verbs", device }));
    }
    Err(last.unwrap_or(Error::Resolve { host: attempt.portal.host.clone(), source: words("no address") }))
}

/// A mover over an RDMA device.
#[cfg(all(feature = "verbs", target_os = "linux"))]
pub(super) fn over_verbs(attempt: &Attempt<'_>, queue: VerbsQueue) -> IserMover<VerbsQueue> {
    IserMover::new(queue, mover(attempt))
}
