//! Portal groups and portals (RFC 7143 4.2.5.1).

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};

/// By what a portal is served, once a server listens there.
///
/// ```
/// use target_core::node::Service;
/// assert_eq!(Service { tcp: true, ..Service::default() }.to_string(), "tcp");
/// assert_eq!(Service { tcp: true, iwarp: true, verbs: false }.to_string(), "tcp, iser over iwarp");
/// assert_eq!(Service { tcp: false, iwarp: false, verbs: true }.to_string(), "iser over verbs");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Service {
    /// Plain iSCSI.
    pub tcp: bool,
    /// iSER over iWARP in user space, on the TCP port of plain iSCSI.
    pub iwarp: bool,
    /// iSER over RDMA devices, at the same address and port in their own space.
    pub verbs: bool,
}

impl Service {
    fn to_bits(self) -> u8 {
        u8::from(self.tcp) | u8::from(self.iwarp) << 1 | u8::from(self.verbs) << 2
    }

    fn from_bits(bits: u8) -> Self {
        Self { tcp: bits & 1 != 0, iwarp: bits & 2 != 0, verbs: bits & 4 != 0 }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iser = match (self.iwarp, self.verbs) {
            (true, true) => "iser over iwarp and verbs",
            (true, false) => "iser over iwarp",
            (false, true) => "iser over verbs",
            (false, false) => "",
        };
        f.write_str(match (self.tcp, iser.is_empty()) {
            (true, true) => "tcp",
            (true, false) => "tcp, ",
            (false, true) => "nothing",
            (false, false) => "",
        })?;
        f.write_str(iser)
    }
}

/// Set in [`Portal::service`]'s bits once they mean something.
const SERVED: u8 = 0x80;

/// An address that connections come in on.
///
/// Target nodes may share a portal: equal addresses in different nodes are one portal. Port 0 asks the system for a
/// free port, one for each distinct IP address.
#[derive(Debug)]
pub struct Portal {
    address: SocketAddr,
    iser: bool,
    bound_port: AtomicU16,
    service: AtomicU8,
}

impl Portal {
    /// A TCP portal.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, iser: false, bound_port: AtomicU16::new(0), service: AtomicU8::new(0) }
    }

    /// Offers iSER at this address too, beside plain iSCSI; how is the server's business.
    #[must_use]
    pub const fn with_iser(mut self) -> Self {
        self.iser = true;
        self
    }

    /// The address as configured.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether iSER is to be offered; [`service`](Self::service) tells over what it is.
    #[must_use]
    pub const fn iser(&self) -> bool {
        self.iser
    }

    /// Tells the port that an ephemeral portal was bound to.
    pub fn set_bound_port(&self, port: u16) {
        self.bound_port.store(port, Relaxed);
    }

    /// Tells by what the portal is served.
    pub fn set_service(&self, service: Service) {
        self.service.store(SERVED | service.to_bits(), Relaxed);
    }

    /// By what the portal is served; `None` as long as no server listens there.
    #[must_use]
    pub fn service(&self) -> Option<Service> {
        let bits = self.service.load(Relaxed);
        (bits & SERVED != 0).then(|| Service::from_bits(bits))
    }

    /// The address with the port that it is bound to.
    #[must_use]
    pub fn bound_address(&self) -> SocketAddr {
        let mut address = self.address;
        if let port @ 1.. = self.bound_port.load(Relaxed) {
            address.set_port(port);
        }
        address
    }

    /// The address as an initiator that reached us at `local` can use it: an unspecified address (0.0.0.0, \[::\])
    /// gives way to the connection's own.
    #[must_use]
    pub fn address_for(&self, local: SocketAddr) -> SocketAddr {
        let bound = self.bound_address();
        if bound.ip().is_unspecified() { SocketAddr::new(unmapped(local.ip()), bound.port()) } else { bound }
    }

    /// Whether a connection to the local address `local` came in here.
    #[must_use]
    pub fn accepts(&self, local: SocketAddr) -> bool {
        let bound = self.bound_address();
        if bound.port() != local.port() {
            return false;
        }
        match bound.ip() {
            // A dual-stack [::] listener takes IPv4 connections as well.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => unmapped(local.ip()).is_ipv4(),
            ip => ip == unmapped(local.ip()),
        }
    }
}

/// An IPv4 address that a dual-stack socket reports as ::ffff:a.b.c.d, as itself.
fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// A portal group: the portals of one target node over which a session's connections may spread, with the tag that
/// SendTargets and login tell (RFC 7143 4.4).
#[derive(Debug)]
pub struct PortalGroup {
    tag: u16,
    relative_port: Option<u16>,
    target_port_group: u16,
    portals: Vec<Portal>,
}

impl PortalGroup {
    /// An empty group with its Target Portal Group Tag.
    #[must_use]
    pub const fn new(tag: u16) -> Self {
        Self { tag, relative_port: None, target_port_group: 1, portals: Vec::new() }
    }

    /// Adds a portal.
    #[must_use]
    pub fn portal(mut self, portal: Portal) -> Self {
        self.portals.push(portal);
        self
    }

    /// Gives the SCSI target port that the group is (RFC 7143 4.4.1) another RELATIVE TARGET PORT IDENTIFIER (SPC-5
    /// 7.7.6.7) than its tag: 1 to 65535, and another one for each group of the node.
    #[must_use]
    pub const fn with_relative_port(mut self, identifier: u16) -> Self {
        self.relative_port = Some(identifier);
        self
    }

    /// Puts the SCSI target port into a target port group (SPC-5 5.17.2) other than 1. Groups with the same number are
    /// told as one.
    #[must_use]
    pub const fn with_target_port_group(mut self, group: u16) -> Self {
        self.target_port_group = group;
        self
    }

    /// The tag.
    #[must_use]
    pub const fn tag(&self) -> u16 {
        self.tag
    }

    /// RELATIVE TARGET PORT IDENTIFIER: unless told otherwise the tag, and 65535 for the tag 0, which is no identifier.
    #[must_use]
    pub const fn relative_port(&self) -> u16 {
        match (self.relative_port, self.tag) {
            (Some(identifier), _) => identifier,
            (None, 0) => u16::MAX,
            (None, tag) => tag,
        }
    }

    /// The target port group of its SCSI target port; 1 unless told otherwise.
    #[must_use]
    pub const fn target_port_group(&self) -> u16 {
        self.target_port_group
    }

    /// Its portals.
    #[must_use]
    pub fn portals(&self) -> &[Portal] {
        &self.portals
    }

    pub(super) fn push(&mut self, portal: Portal) {
        self.portals.push(portal);
    }
}
