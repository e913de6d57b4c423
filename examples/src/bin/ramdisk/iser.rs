//! What carries iSER on the portals that have it, and what of it this machine can.

use std::net::SocketAddr;

use examples::ending::{Ending, failed};
use examples::layout::{Layout, RdmaChoice};
use iser_transport::verbs::{Verbs, VerbsConfig, VerbsError, VerbsListener};
use target_core::node::{Portal, Service, TargetConfig};
use target_core::server::IserConfig;

/// What iSER runs over here.
#[derive(Debug)]
pub(crate) struct Provision {
    config: IserConfig,
    /// Why RDMA devices are not used, if nobody forbade them.
    no_verbs: Option<String>,
}

impl Provision {
    /// What is asked for, at the portals of `config`; `None` if none of them has iSER.
    pub(crate) fn of(layout: &Layout, config: &TargetConfig) -> Result<Option<Self>, Ending> {
        if !layout.iser() {
            return Ok(None);
        }
        let mut wanted = IserConfig {
            iwarp: layout.rdma != Some(RdmaChoice::Verbs),
            verbs: layout.rdma != Some(RdmaChoice::Iwarp),
            ..IserConfig::default()
        };
        if let Some(bytes) = layout.registered_memory {
            wanted.registered_memory = bytes;
        }
        let mut no_verbs = None;
        let addresses = config.portals().filter(|portal| portal.iser()).map(Portal::address);
        if let (true, Err(why)) = (wanted.verbs, listen_by_verbs(addresses)) {
            if layout.rdma.is_some() {
                return Err(failed(format!(
                    "iSER over RDMA devices cannot be: {why}; or use --rdma iwarp, which needs nothing"
                )));
            }
            wanted.verbs = false;
            no_verbs = Some(why);
        }
        Ok(Some(Self { config: wanted, no_verbs }))
    }

    /// What the server is told.
    pub(crate) fn config(&self) -> IserConfig {
        self.config
    }

    /// What iSER runs over at the portals of a server that listens, in a sentence or two.
    pub(crate) fn told(&self, config: &TargetConfig) -> String {
        let served = |by: fn(Service) -> bool| config.portals().filter_map(Portal::service).any(by);
        let iwarp = "iwarp, in user space, on the portals' own TCP ports";
        let verbs = "verbs, on this machine's RDMA devices";
        let by_verbs = served(|service| service.verbs);
        let over = match (served(|service| service.iwarp), by_verbs) {
            (true, true) => format!("iSER over {iwarp}, and over {verbs}."),
            (true, false) => format!("iSER over {iwarp}."),
            (false, _) => format!("iSER over {verbs}."),
        };
        match &self.no_verbs {
            Some(why) => format!("{over} Not over verbs: {why}."),
            None if self.config.verbs && !by_verbs => format!(
                "{over} Not over verbs: the RDMA device speaks iWARP and shares the TCP ports, where user space serves \
                 the same peers."
            ),
            None => over,
        }
    }
}

/// Whether RDMA devices can be listened on at these addresses; if not, why.
fn listen_by_verbs(addresses: impl Iterator<Item = SocketAddr>) -> Result<(), String> {
    let why = |error: VerbsError| error.to_string();
    let verbs = Verbs::open(VerbsConfig::default()).map_err(why)?;
    // At an unspecified address one may listen without any device, for one that comes later.
    if std::fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count) == 0 {
        return Err("this machine has no RDMA device: `rdma link` shows them".into());
    }
    for address in addresses {
        VerbsListener::bind(verbs.clone(), address).map_err(why)?;
    }
    Ok(())
}
