//! What a session is asked to be: names, secrets, wishes for the negotiation, times and limits.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use iscsi_proto::chap::Algorithm;
use iscsi_proto::login::Offer;

use crate::url::{Credentials, Portal, Rdma, Transport, Url};

/// How long the initiator waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a TCP connection to stand. Default 10 s.
    pub connect: Duration,
    /// For the whole login, from the first request on. Default 15 s.
    pub login: Duration,
    /// For a command, from its sending on; then it is aborted. One whose data, or those of commands sent before it, are
    /// on the move then has the same time once more, and so on up to nine times: a slow link is no dead target. (Over
    /// iSER the transport does not tell of data, and of commands before it those count that were answered of late.)
    /// Default 60 s.
    pub command: Duration,
    /// For a command or another request that waits to be sent: for the target's command window, for a place in the
    /// session's tables, for the transport to take more. So long may a session that is connected stand still, nothing
    /// being sent, under way or ended in it; then what waits fails with [`Failure::NotSent`]. Between connections
    /// [`ReconnectPolicy::deadline`] bounds the wait instead. Default 60 s; zero waits for ever.
    ///
    /// [`Failure::NotSent`]: crate::command::Failure::NotSent
    pub standstill: Duration,
    /// For the answer to a task management function; then the next harder one is tried: ABORT TASK, LOGICAL UNIT RESET,
    /// a new connection. Where nothing harder is tried, an answer that comes later still ends what it speaks of. Default
    /// 10 s.
    pub task_management: Duration,
    /// Silence on the connection after which a NOP-Out asks whether the target is there. Default 5 s; zero asks never.
    pub keepalive_interval: Duration,
    /// For the answer to that NOP-Out; then the connection counts as dead. Default 5 s.
    pub keepalive: Duration,
    /// For the answer to a logout. Default 5 s.
    pub logout: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            login: Duration::from_secs(15),
            command: Duration::from_secs(60),
            standstill: Duration::from_secs(60),
            task_management: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            logout: Duration::from_secs(5),
        }
    }
}

/// How a lost connection is built anew.
///
/// The first attempt comes after the Time2Wait that the target asked for, or at once when none was agreed on for this
/// kind of end; each further one after twice the time of the one before, with jitter, from `first_delay` up to
/// `longest_delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// How long attempts go on, without a command that is answered between them, before the session ends with an error.
    /// Default 120 s; zero never reconnects.
    pub deadline: Duration,
    /// Delay before the second attempt. Default 100 ms.
    pub first_delay: Duration,
    /// Longest delay between attempts. Default 5 s.
    pub longest_delay: Duration,
    /// Whether the DefaultTime2Wait of the negotiation holds before the first attempt (RFC 7143 13.15). Default true.
    pub honour_time2wait: bool,
    /// Seed of the jitter; `None` takes one from the clock.
    pub seed: Option<u64>,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(120),
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(5),
            honour_time2wait: true,
            seed: None,
        }
    }
}

/// Bounds of a session's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Commands under way at a time, 1 to 4096; the target's command window may allow fewer. Default 256.
    pub commands: u16,
    /// Idle bytes that the session's buffer pool keeps. Default 16 MiB.
    pub pool_bytes: usize,
    /// Bytes of one answer to a Text Request, such as SendTargets. Default 1 MiB.
    pub text_bytes: usize,
    /// How often a command is sent anew after BUSY, TASK SET FULL, a unit attention or ABORTED COMMAND. Default 32.
    pub retries: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self { commands: 256, pool_bytes: 16 << 20, text_bytes: 1 << 20, retries: 32 }
    }
}

/// How a session uses iSER, where [`SessionConfig::transport`] lets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IserConfig {
    /// What carries it.
    pub rdma: Rdma,
    /// iWARP in user space: whether the CRC of MPA is asked for (RFC 5044 4.4). TCP has a checksum of its own. Default
    /// false; a target that wants it gets it.
    pub crc: bool,
    /// RDMA Reads that the target may have in flight, 1 to 255; default 32.
    pub read_depth: u16,
    /// Writes of at most so many bytes travel whole with their command and are copied; the target fetches larger ones.
    /// Default 8192, as far as the target takes immediate data.
    pub immediate_limit: u32,
    /// Verbs: bytes of memory that may be registered with RDMA devices at a time; default 256 MiB. `ulimit -l` bounds
    /// it too.
    pub registered_memory: u64,
    /// How long [`Transport::Auto`] waits for an answer to an RDMA connection before it takes TCP. Default 600 ms.
    pub probe: Duration,
}

impl Default for IserConfig {
    fn default() -> Self {
        Self {
            rdma: Rdma::Auto,
            crc: false,
            read_depth: 32,
            immediate_limit: 8192,
            registered_memory: 256 << 20,
            probe: Duration::from_millis(600),
        }
    }
}

/// A normal session to one target.
///
/// ```
/// use initiator_core::{SessionConfig, Url};
/// let url: Url = "iscsi://127.0.0.1/iqn.2004-10.com.example:disk/0".parse().unwrap();
/// let mut config = SessionConfig::from_url(&url);
/// config.timeouts.command = std::time::Duration::from_secs(30);
/// assert_eq!(config.target_name, "iqn.2004-10.com.example:disk");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// Where to connect to.
    pub portal: Portal,
    /// Other portals of the target, which are tried in turn where that one is gone. They have to be of the same portal
    /// group: what the old connection left behind is ended by a login to that one only (RFC 7143 6.3.5). Default none;
    /// `SessionConfig::of_target` takes them from a discovery.
    pub portals: Vec<Portal>,
    /// The target's name.
    pub target_name: String,
    /// Our name. `None`, the default, takes that of the machine: `default_initiator_name` of this crate tells it.
    pub initiator_name: Option<String>,
    /// Our alias.
    pub initiator_alias: Option<String>,
    /// ISID; `None` makes one up of random bytes. Two sessions of one initiator name to one target portal group need
    /// different ones (RFC 7143 4.4.2).
    pub isid: Option<[u8; 6]>,
    /// Who we are (CHAP).
    pub credentials: Option<Credentials>,
    /// Who the target has to prove to be (mutual CHAP).
    pub target_credentials: Option<Credentials>,
    /// The only algorithm of CHAP that we offer; `None` offers all.
    pub auth: Option<Algorithm>,
    /// What we offer in the negotiation.
    pub offer: Offer,
    /// Times.
    pub timeouts: Timeouts,
    /// Reconnection.
    pub reconnect: ReconnectPolicy,
    /// Bounds.
    pub limits: Limits,
    /// The transport. Default TCP.
    pub transport: Transport,
    /// How iSER is used.
    pub iser: IserConfig,
}

impl SessionConfig {
    /// A session to a target at a portal, all else by default.
    #[must_use]
    pub fn new(portal: Portal, target_name: impl Into<String>) -> Self {
        Self {
            portal,
            portals: Vec::new(),
            target_name: target_name.into(),
            initiator_name: None,
            initiator_alias: None,
            isid: None,
            credentials: None,
            target_credentials: None,
            auth: None,
            offer: Offer {
                // The larger DefaultTime2Wait of both sides holds (RFC 7143 13.15); a new session in place of the old
                // needs none.
                default_time2wait: 0,
                // Over iSER every command has a receive of this size waiting for its response, and all that comes in
                // one is sense data or text.
                initiator_recv_data_segment_length: 8192,
                ..Offer::default()
            },
            timeouts: Timeouts::default(),
            reconnect: ReconnectPolicy::default(),
            limits: Limits::default(),
            transport: Transport::Tcp,
            iser: IserConfig::default(),
        }
    }

    /// The session that a URL describes; its LUN is the caller's business.
    #[must_use]
    pub fn from_url(url: &Url) -> Self {
        let mut config = Self::new(url.portal.clone(), url.target.clone());
        config.credentials = url.credentials.clone();
        config.target_credentials = url.target_credentials.clone();
        config.auth = url.auth;
        config.transport = url.transport;
        config.iser.rdma = url.rdma;
        if let Some(name) = &url.initiator {
            config.initiator_name = Some(name.clone());
        }
        if let Some(digests) = &url.header_digest {
            config.offer.header_digest.clone_from(digests);
        }
        if let Some(digests) = &url.data_digest {
            config.offer.data_digest.clone_from(digests);
        }
        config
    }
}

/// A discovery session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Our name. `None`, the default, takes that of the machine: `default_initiator_name` of this crate tells it.
    pub initiator_name: Option<String>,
    /// Who we are (CHAP).
    pub credentials: Option<Credentials>,
    /// Who the target has to prove to be (mutual CHAP).
    pub target_credentials: Option<Credentials>,
    /// Times.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// The transport. Default TCP, on which targets tell all their portals.
    pub transport: Transport,
    /// How iSER is used.
    pub iser: IserConfig,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            initiator_name: None,
            credentials: None,
            target_credentials: None,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            transport: Transport::Tcp,
            iser: IserConfig::default(),
        }
    }
}
