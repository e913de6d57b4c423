//! What the registry knows of one session.

use alloc::string::{String, ToString};
use alloc::sync::Arc;

use iscsi_proto::datamover::MoverReport;
use iscsi_proto::name::IscsiName;
use iscsi_proto::parameters::Parameters;

use super::{Endpoints, Mailbox, Reach};
use crate::lu::{LunMap, NexusId};
use crate::node::TargetNode;
use crate::stats::{MoverGauge, SessionCounters, SessionStatistics};

/// What carries a connection, for people to read. Whoever accepts connections knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// `tcp`, `iwarp` (in user space), or `verbs`.
    pub provider: &'static str,
    /// The RDMA device, where there is one.
    pub device: Option<Arc<str>>,
}

impl Default for Carrier {
    fn default() -> Self {
        Self { provider: "tcp", device: None }
    }
}

/// A session that is about to be entered.
#[derive(Debug)]
pub(crate) struct NewSession {
    pub(crate) initiator: IscsiName,
    pub(crate) initiator_alias: Option<String>,
    pub(crate) isid: [u8; 6],
    pub(crate) cid: u16,
    /// Node, portal group tag and LUNs of a normal session.
    pub(crate) normal: Option<(Arc<TargetNode>, u16, Arc<LunMap>)>,
    pub(crate) parameters: Parameters,
    pub(crate) endpoints: Endpoints,
    pub(crate) transport: &'static str,
    pub(crate) carrier: Carrier,
    pub(crate) nop_in: bool,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// A session in the registry.
#[derive(Debug)]
pub struct SessionEntry {
    pub(crate) id: NexusId,
    pub(crate) tsih: u16,
    pub(crate) session: NewSession,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) counters: SessionCounters,
    pub(crate) mover: MoverGauge,
}

impl SessionEntry {
    pub(super) fn new(id: NexusId, tsih: u16, session: NewSession) -> Self {
        let mailbox = session.mailbox.clone();
        Self { id, tsih, session, mailbox, counters: SessionCounters::default(), mover: MoverGauge::default() }
    }

    /// Whether `new` is the same I_T nexus (RFC 7143 4.4.1): initiator name and ISID, target name and portal group tag.
    /// Discovery sessions are none, and several of one initiator may run side by side.
    pub(super) fn is_nexus_of(&self, new: &NewSession) -> bool {
        let (Some((node, tag, _)), Some((new_node, new_tag, _))) = (&self.session.normal, &new.normal) else {
            return false;
        };
        self.session.isid == new.isid
            && self.session.initiator == new.initiator
            && tag == new_tag
            && node.name() == new_node.name()
    }

    /// The registries that meet at its logical units.
    pub(crate) fn reach(&self) -> Reach {
        let luns = self.session.normal.iter().flat_map(|(_, _, luns)| luns.iter());
        Reach::of(luns.map(|lun| lun.unit).collect())
    }

    pub(super) fn target_name(&self) -> Option<&str> {
        self.session.normal.as_ref().map(|(node, ..)| node.name().as_str())
    }

    pub(super) fn info(&self) -> SessionInfo {
        SessionInfo {
            tsih: self.tsih,
            initiator_name: self.session.initiator.to_string(),
            initiator_alias: self.session.initiator_alias.clone(),
            isid: self.session.isid,
            target_name: self.target_name().map(ToString::to_string),
            portal_group_tag: self.session.normal.as_ref().map(|(_, tag, _)| *tag),
            endpoints: self.session.endpoints,
            transport: self.session.transport,
            carrier: self.session.carrier.clone(),
            mover: self.mover.read(),
            parameters: self.session.parameters.clone(),
            statistics: self.counters.snapshot(),
        }
    }
}

/// A session as a person may want to see it.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// TSIH, the session's number at this target.
    pub tsih: u16,
    /// InitiatorName.
    pub initiator_name: String,
    /// InitiatorAlias, if the initiator told one.
    pub initiator_alias: Option<String>,
    /// ISID.
    pub isid: [u8; 6],
    /// TargetName; `None` for a discovery session.
    pub target_name: Option<String>,
    /// TargetPortalGroupTag; `None` for a discovery session.
    pub portal_group_tag: Option<u16>,
    /// Both ends of its connection.
    pub endpoints: Endpoints,
    /// Its transport: `tcp` or `iser`.
    pub transport: &'static str,
    /// What provides the transport, and on which device.
    pub carrier: Carrier,
    /// What its mover has done, if it moves data by RDMA.
    pub mover: Option<MoverReport>,
    /// What login settled on.
    pub parameters: Parameters,
    /// What it did so far.
    pub statistics: SessionStatistics,
}
