//! `iscsi discover`: the targets of a portal.

use examples::ending::{Ending, failed, usage};
use initiator_core::{Credentials, DiscoveryConfig, Portal, discover};
use iscsi_proto::chap::ChapSecret;
use serde_json::json;

use crate::args::Cli;
use crate::attach::{ending, timeouts};

/// The portal and the credentials of `HOST[:PORT]` or `iscsi://[user%secret@]host[:port]`.
fn parse(address: &str) -> Result<(Portal, Option<Credentials>), Ending> {
    if let Some(rest) = address.strip_prefix("iser://") {
        return Err(usage(format!("discovery is by TCP, for targets with iSER too: write iscsi://{rest}")));
    }
    let rest = address.strip_prefix("iscsi://").unwrap_or(address);
    let (credentials, host) = match rest.rsplit_once('@') {
        None => (None, rest),
        Some((account, host)) => {
            let Some((user, secret)) = account.split_once('%') else {
                return Err(usage(format!("{address}: the account lacks its secret: write user%secret@host")));
            };
            (Some(Credentials { user: user.to_owned(), secret: ChapSecret::new(secret) }), host)
        }
    };
    let portal = host.trim_end_matches('/').parse().map_err(usage)?;
    Ok((portal, credentials))
}

pub(crate) async fn run(cli: &Cli, address: &str) -> Result<(), Ending> {
    let (portal, credentials) = parse(address)?;
    let mut config = DiscoveryConfig { credentials, timeouts: timeouts(cli), ..DiscoveryConfig::default() };
    if let Some(initiator) = &cli.initiator {
        config.initiator_name.clone_from(initiator);
    }
    let targets = discover(&portal, &config).await.map_err(ending)?;
    if cli.json {
        let list: Vec<_> = targets
            .iter()
            .map(|target| {
                let portals: Vec<_> = target
                    .portals
                    .iter()
                    .map(|portal| json!({ "address": portal.addr, "port": portal.port, "portal_group": portal.tpgt }))
                    .collect();
                json!({ "name": target.name, "portals": portals })
            })
            .collect();
        println!("{:#}", json!({ "targets": list }));
        return Ok(());
    }
    if targets.is_empty() {
        return Err(failed(format!("{portal} shows no targets to {}: check the target's ACLs", config.initiator_name)));
    }
    for target in &targets {
        for portal in &target.portals {
            let host = if portal.addr.contains(':') { format!("[{}]", portal.addr) } else { portal.addr.clone() };
            // open-iscsi's own form, so that scripts for iscsiadm read it.
            println!("{host}:{},{} {}", portal.port, portal.tpgt, target.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_may_be_bare_or_a_url_with_an_account() {
        assert_eq!(parse("storage").unwrap().0, Portal { host: "storage".into(), port: 3260 });
        let (portal, credentials) = parse("iscsi://alice%secret-secret@[::1]:3261/").unwrap();
        assert_eq!(portal, Portal { host: "::1".into(), port: 3261 });
        assert_eq!(credentials.unwrap().user, "alice");
        assert!(parse("iser://storage").unwrap_err().to_string().contains("write iscsi://storage"));
        assert!(parse("alice@storage").unwrap_err().to_string().contains("user%secret@host"));
    }
}
