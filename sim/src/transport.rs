//! What sessions run over, and how a seed makes it: the movers of both roles and the queue pairs below them.

use std::time::Duration;

use iscsi_proto::login::Offer;
use iscsi_proto::tcp::Role;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::loopback::{EndConfig, Fabric, Faults, LoopbackConfig, LoopbackQueue, pair};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::QueueLimits;
use iser_transport::verbs::simulated::{self, Device, Make, SimulatedFabric, SimulatedQueue};

use crate::fabric::FabricPlan;
use crate::parting::{Parting, PartingQueue};
use crate::rng::Rng;
use crate::scenario::Weather;

/// The private data of an end that neither invalidates from afar nor counts from zero, as verbs do.
const NOTHING_MORE: [u8; 4] = PrivateData { zero_based: false, send_with_invalidate: false }.emit();

/// What carries the sessions of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// iSCSI over TCP.
    #[default]
    Tcp,
    /// iSER over iWARP in user space, over a byte stream.
    Iwarp,
    /// iSER over loopback queue pairs.
    Loopback,
    /// iSER over queue pairs of verbs, whose devices are simulated.
    Verbs,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Iwarp, Self::Loopback, Self::Verbs];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Iwarp => "iwarp",
            Self::Loopback => "loopback",
            Self::Verbs => "verbs",
        }
    }
}

/// What login offers for iSER.
#[derive(Debug, Clone, Copy)]
pub struct IserOffer {
    /// InitiatorRecvDataSegmentLength and TargetRecvDataSegmentLength.
    pub segments: [u32; 2],
    /// iSERHelloRequired.
    pub hello: bool,
    /// MaxOutstandingUnexpectedPDUs.
    pub unexpected: u32,
}

impl IserOffer {
    /// An offer with this in it.
    #[must_use]
    pub fn put_in(self, offer: Offer) -> Offer {
        Offer {
            initiator_recv_data_segment_length: self.segments[0],
            target_recv_data_segment_length: self.segments[1],
            iser_hello_required: self.hello,
            max_outstanding_unexpected_pdus: self.unexpected,
            ..offer
        }
    }
}

/// One end's part in iSER.
#[derive(Debug, Clone)]
pub struct IserEnd {
    /// The mover.
    pub mover: IserMoverConfig,
    /// What its login offers.
    pub offer: IserOffer,
    /// Its private data.
    pub private: PrivateData,
    /// Work requests that its queue pair has room for.
    pub work: usize,
    /// The longest transfer of its queue pair.
    pub transfer: usize,
    /// Whether it wants the CRC of iWARP.
    pub crc: bool,
    /// TCP's segment size, for iWARP.
    pub emss: u32,
    /// iWARP's receive buffer.
    pub staging_size: usize,
    /// Whether it knows revision 2 of MPA.
    pub revision_two: bool,
    /// Its device, for verbs.
    pub device: Make,
}

impl IserEnd {
    /// An end of any kind.
    pub fn any(rng: &mut Rng, role: Role) -> Self {
        let revision_two = rng.permille(800);
        let receive_slack = rng.between(24, 64) as u16;
        let offer = IserOffer {
            segments: [rng.magnitude(512, 32 << 10) as u32, rng.magnitude(512, 32 << 10) as u32],
            hello: rng.permille(200),
            unexpected: if rng.permille(300) { rng.between(2, receive_slack.into()) as u32 } else { 0 },
        };
        // A target that says how much may come unexpectedly has receives for that, and for the answer to its own NOP-In (RFC 7145 8.1.1).
        let receive_slack = match (role, offer.unexpected) {
            (Role::Target, 1..) => offer.unexpected as u16 + 1,
            _ => receive_slack,
        };
        let mover = IserMoverConfig {
            receive_slack,
            immediate_limit: rng.pick(&[0, 512, 4096, 8192, 8192, 65536]),
            response_data_limit: rng.pick(&[128, 128, 128, 512]),
            send_memory: rng.magnitude(64 << 10, 4 << 20) as usize,
            send_high_water: rng.magnitude(4 << 10, 4 << 20) as usize,
            // Revision 1 of MPA has no way to agree on less than the peer asks for.
            read_depth: if revision_two { rng.magnitude(1, 64) as u16 } else { 64 },
            ..IserMoverConfig::new(role)
        };
        Self {
            mover,
            offer,
            private: PrivateData { zero_based: rng.permille(300), send_with_invalidate: rng.permille(500) },
            work: rng.magnitude(8, 512) as usize,
            transfer: rng.magnitude(4096, 4 << 20) as usize,
            crc: rng.permille(300),
            emss: rng.pick(&[536, 1448, 1460, 8960, 65483]),
            staging_size: rng.magnitude(4096, 128 << 10) as usize,
            revision_two,
            device: make(rng),
        }
    }

    /// The mover's configuration for so many commands in flight.
    #[must_use]
    pub const fn mover(&self, max_tasks: u16) -> IserMoverConfig {
        IserMoverConfig { max_tasks, ..self.mover }
    }

    fn limits(&self, mover: &IserMoverConfig) -> QueueLimits {
        QueueLimits { work: self.work, receives: mover.receives(), transfer: self.transfer }
    }

    fn iwarp(&self, mover: &IserMoverConfig, seed: u64) -> IwarpConfig {
        IwarpConfig {
            private_data: self.private.emit().to_vec(),
            crc: self.crc,
            revision_two: self.revision_two,
            ird: mover.read_depth,
            ord: mover.read_depth,
            emss: self.emss,
            limits: self.limits(mover),
            advertisements: mover.max_tasks.saturating_mul(2),
            staging_size: self.staging_size,
            seed,
            ..IwarpConfig::default()
        }
    }

    /// A mover over one end of a byte stream.
    #[must_use]
    pub fn over_iwarp(&self, max_tasks: u16, seed: u64) -> IserMover<IwarpQueue> {
        let mover = self.mover(max_tasks);
        let config = self.iwarp(&mover, seed);
        let queue = match mover.role {
            Role::Initiator => IwarpQueue::connect(config),
            Role::Target => IwarpQueue::accept(config),
        };
        IserMover::new(queue, mover)
    }
}

/// A device of any make.
fn make(rng: &mut Rng) -> Make {
    Make {
        pieces: rng.pick(&[1, 4, 4, 16]),
        read_pieces: rng.pick(&[1, 1, 4]),
        inline: rng.pick(&[0, 64, 96]),
        read_sink_is_remote: rng.permille(200),
        lends_unsignaled: rng.pick(&[4096, usize::MAX]),
        refusals: rng.pick(&[0, 0, 0, 100, 500]),
        bounce_bytes: rng.magnitude(16 << 10, 64 << 10) as usize,
        linger: Duration::from_millis(rng.magnitude(1, 1000)),
        is_concurrent: rng.permille(400),
        seed: rng.u64(),
        ..Make::default()
    }
}

/// What iSER's networks are like.
#[derive(Debug, Clone)]
pub struct IserPlan {
    /// The target's end.
    pub target: IserEnd,
    /// What the loopback does; its ends are made for each connection.
    pub loopback: LoopbackConfig,
}

impl IserPlan {
    /// Any.
    pub fn any(rng: &mut Rng, faulty: bool) -> Self {
        let mut loopback = LoopbackConfig::hostile(rng.u64());
        if !faulty {
            loopback.faults = Faults::default();
        }
        Self { target: IserEnd::any(rng, Role::Target), loopback }
    }

    /// An end that anybody may use, and the target's mover over the other one.
    #[must_use]
    pub fn toward_target(&self, target_tasks: u16, seed: u64) -> (LoopbackQueue, IserMover<LoopbackQueue>, Fabric) {
        let mover = self.target.mover(target_tasks);
        let mut config = LoopbackConfig { faults: Faults::default(), ..self.loopback.clone() };
        config.active = EndConfig { private: self.target.private.emit().to_vec(), ..EndConfig::default() };
        config.passive.private = self.target.private.emit().to_vec();
        config.passive.limits = self.target.limits(&mover);
        let (active, passive, fabric) = pair(config, seed);
        (active, IserMover::new(passive, mover), fabric)
    }

    /// The same over verbs, where the target's device has this place for it.
    ///
    /// # Panics
    /// If a device has no room for its buffers.
    #[must_use]
    pub fn toward_target_over_verbs(
        &self,
        device: &Device,
        target_tasks: u16,
        seed: u64,
    ) -> (SimulatedQueue, IserMover<SimulatedQueue>, SimulatedFabric) {
        let mover = self.target.mover(target_tasks);
        let mut config = LoopbackConfig { faults: Faults::default(), ..self.loopback.clone() };
        (config.active, config.passive) = (EndConfig::default(), EndConfig::default());
        config.passive.limits = self.target.limits(&mover);
        for end in [&mut config.active, &mut config.passive] {
            end.private = NOTHING_MORE.to_vec();
        }
        let own = Device::new(Make::default());
        let made = simulated::pair(&config, [&own, device], seed);
        let (active, passive, fabric) = made.expect("room for the buffers of a connection");
        (active, IserMover::new(passive, mover), fabric)
    }

    /// The network of two ends, the initiator's first.
    fn network(&self, initiator: &IserEnd, movers: &[IserMoverConfig; 2], faults: Faults) -> LoopbackConfig {
        let mut config = self.loopback.clone();
        for (end, plan, mover) in
            [(&mut config.active, initiator, &movers[0]), (&mut config.passive, &self.target, &movers[1])]
        {
            end.private = plan.private.emit().to_vec();
            end.read_depth = mover.read_depth;
            end.limits = plan.limits(mover);
            end.advertisements = usize::from(mover.max_tasks) * 2;
        }
        config.faults = faults;
        config
    }

    /// Movers over the two ends of a connection of verbs, the initiator's first.
    ///
    /// # Panics
    /// If a device has no room for its buffers.
    #[must_use]
    pub fn over_verbs(
        &self,
        initiator: (&IserEnd, u16),
        (device, target_tasks): (&Device, u16),
        (faults, parting): (Faults, &Parting),
        seed: u64,
    ) -> (IserMover<SimulatedQueue>, IserMover<PartingQueue<SimulatedQueue>>, SimulatedFabric) {
        let movers = [initiator.0.mover(initiator.1), self.target.mover(target_tasks)];
        let mut config = self.network(initiator.0, &movers, faults);
        for end in [&mut config.active, &mut config.passive] {
            end.private = NOTHING_MORE.to_vec();
        }
        let own = Device::new(initiator.0.device.clone());
        let made = simulated::pair(&config, [&own, device], seed);
        let (active, passive, fabric) = made.expect("room for the buffers of a connection");
        let [initiator, target] = movers;
        (IserMover::new(active, initiator), IserMover::new(PartingQueue::new(passive, parting.clone()), target), fabric)
    }

    /// Movers over the two ends of a loopback connection, the initiator's first.
    #[must_use]
    pub fn over_loopback(
        &self,
        initiator: (&IserEnd, u16),
        target_tasks: u16,
        (faults, parting): (Faults, &Parting),
        seed: u64,
    ) -> (IserMover<LoopbackQueue>, IserMover<PartingQueue<LoopbackQueue>>, Fabric) {
        let movers = [initiator.0.mover(initiator.1), self.target.mover(target_tasks)];
        let (active, passive, fabric) = pair(self.network(initiator.0, &movers, faults), seed);
        let [initiator, target] = movers;
        (IserMover::new(active, initiator), IserMover::new(PartingQueue::new(passive, parting.clone()), target), fabric)
    }
}

impl Weather {
    /// The plan of the next fabric.
    pub fn fabric(&self, rng: &mut Rng) -> FabricPlan {
        let cut = rng.permille(self.cuts);
        let mut notice = || !rng.permille(self.half_open);
        let notice = [notice(), notice()];
        FabricPlan {
            // The time of a hop is spent on several steps.
            pace: self.delay.mul_f64(rng.below(1000) as f64 / 1000.0) + Duration::from_nanos(1),
            burst: if self.delay < Duration::from_millis(1) {
                rng.pick(&[1, 4, 32, 500])
            } else {
                rng.pick(&[16, 200])
            },
            stalls: self.stalls,
            cut_after: cut.then(|| rng.magnitude(1, 10_000)),
            notice,
        }
    }
}
