//! Movers for sessions over iSER.

use iscsi_proto::tcp::Role;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::QueueLimits;
use tokio::net::TcpStream;

use super::runner::random;
use super::transport::Attempt;
use crate::error::Error;

/// Buffers that a session advertises at a time: two for each command that goes both ways, and the queue's slots are 16 bits.
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
pub(super) fn over_iwarp(attempt: &Attempt<'_>, stream: &TcpStream) -> Result<IserMover<IwarpQueue>, Error> {
    let mover = mover(attempt);
    let defaults = IwarpConfig::default();
    let [a, b, c, d, e, f, g, h, ..] = random()?;
    let queue = IwarpQueue::connect(IwarpConfig {
        private_data: PrivateData { zero_based: false, send_with_invalidate: true }.emit().to_vec(),
        crc: attempt.plan.iser.crc,
        revision_two: attempt.revision_two,
        ird: mover.read_depth,
        emss: iscsi_memory::socket::segment_size(stream).unwrap_or(defaults.emss),
        limits: QueueLimits { work: mover.work(), receives: mover.receives(), ..defaults.limits },
        advertisements: mover.max_tasks.saturating_mul(2).min(MOST_ADVERTISED),
        seed: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        ..defaults
    });
    Ok(IserMover::new(queue, mover))
}
