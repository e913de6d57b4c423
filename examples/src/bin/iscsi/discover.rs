//! `iscsi discover`: the targets of a portal.

use examples::ending::{Ending, failed, usage};
use examples::report::plain;
use examples::say;
use examples::tell;
use initiator_core::{Discovered, DiscoveryConfig, Transport, Url, default_initiator_name, discover};
use serde_json::json;

use crate::args::Cli;
use crate::attach::{ending, timeouts};
use crate::secrets;

/// What `HOST[:PORT]` or `iscsi://[user%secret@]host[:port][?option=value&...]` asks, in the spelling of a URL for a
/// LUN.
fn parse(address: &str) -> Result<Url, Ending> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (rest, options) = rest.split_once('?').map_or((rest, ""), |(rest, options)| (rest, options));
    let portal = rest.trim_end_matches('/');
    let host = portal.rsplit_once('@').map_or(portal, |(_, host)| host);
    if let Some((host, _)) = host.split_once('/') {
        return Err(usage(format!("discovery asks a portal for all its targets: write {host}, without a target")));
    }
    let scheme = address.split_once("://").map_or("iscsi", |(scheme, _)| scheme);
    let url: Url = format!("{scheme}://{portal}/discovery?{options}").parse().map_err(usage)?;
    if url.transport != Transport::Tcp {
        return Err(usage(format!("discovery is by TCP, for targets with iSER too: write iscsi://{}", url.portal)));
    }
    Ok(url)
}

pub(crate) async fn run(cli: &Cli, address: &str) -> Result<(), Ending> {
    let Url { portal, credentials, target_credentials, initiator, .. } = parse(address)?;
    let (credentials, target_credentials) = secrets::complete(cli, true, credentials, target_credentials)?;
    let mut config =
        DiscoveryConfig { credentials, target_credentials, timeouts: timeouts(cli), ..DiscoveryConfig::default() };
    // Resolved here, for the sentence about a target that shows nothing.
    let own = cli.initiator.clone().or(initiator).map_or_else(default_initiator_name, Ok).map_err(ending)?;
    config.initiator_name = Some(own.clone());
    let Discovered { targets, odd } = discover(&portal, &config).await.map_err(ending)?;
    for odd in &odd {
        tell!("iscsi: {}", plain(odd));
    }
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
        say!("{:#}", json!({ "targets": list }))?;
        return Ok(());
    }
    if targets.is_empty() {
        return Err(failed(format!("{portal} shows no targets to {own}: check the target's ACLs")));
    }
    for target in &targets {
        for portal in &target.portals {
            let host = if portal.addr.contains(':') { format!("[{}]", portal.addr) } else { portal.addr.clone() };
            // open-iscsi's own form, so that scripts for iscsiadm read it.
            say!("{host}:{},{} {}", portal.port, portal.tpgt, plain(&target.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_may_be_bare_or_a_url_with_an_account() {
        let url = parse("storage").unwrap();
        assert_eq!((url.portal.to_string().as_str(), url.credentials), ("storage:3260", None));
        // Spelled as in the URL of a LUN.
        let url = parse("iscsi://alice%secret%40word@[::1]:3261/?target_user=t&target_password=u").unwrap();
        assert_eq!(url.portal.to_string(), "[::1]:3261");
        let credentials = url.credentials.unwrap();
        assert_eq!((credentials.user.as_str(), credentials.secret.as_bytes()), ("alice", &b"secret@word"[..]));
        assert_eq!(url.target_credentials.unwrap().user, "t");
        let told = |address| parse(address).unwrap_err().to_string();
        assert!(told("iser://storage").contains("write iscsi://storage"));
        assert!(told("iscsi://storage/iqn.2026-11.example:disk/0").contains("write storage, without a target"));
        assert!(told("http://storage").contains("is no iSCSI URL"));
    }
}
