//! SendTargets discovery (RFC 7143 appendix C).

use std::sync::Arc;
use std::task::Waker;

use iscsi_proto::login::Offer;
use iscsi_proto::parameters::SessionType;
use iscsi_proto::serial::Serial;
use iscsi_proto::text::TextWriter;
use iscsi_proto::text::targets::{TargetAddress, TargetList, TargetRecord};
use iscsi_proto::time::Instant;

use super::connector::{self, System};
use super::info::{Discovered, DiscoveredPortal, DiscoveredTarget};
use super::runner::{Plan, run};
use super::session::declined;
use crate::application::{Application, Control, ControlAnswer};
use crate::command::{Command, Completion};
use crate::config::{DiscoveryConfig, ReconnectPolicy};
use crate::engine::Engine;
use crate::error::Error;
use crate::login::LoginConfig;
use crate::own_name::default_initiator_name;
use crate::url::Portal;

/// An application that asks one question and logs out.
#[derive(Debug)]
struct Question {
    text: Option<Vec<u8>>,
    asked: bool,
    answer: Option<ControlAnswer>,
}

impl Application for Question {
    fn register(&mut self, _waker: &Waker) {}

    fn next_command(&mut self, _now: Instant) -> Option<Command> {
        None
    }

    fn next_control(&mut self) -> Option<Control> {
        if let Some(text) = self.text.take() {
            return Some(Control::Text { id: 0, text });
        }
        if self.answer.is_some() && !std::mem::replace(&mut self.asked, true) {
            return Some(Control::Logout);
        }
        None
    }

    fn complete(&mut self, _completion: Completion, _now: Instant) {}

    fn control_complete(&mut self, _id: u32, answer: ControlAnswer) {
        self.answer = Some(answer);
    }
}

/// Asks a portal for its targets: a discovery session with SendTargets=All.
///
/// ```no_run
/// # async fn example() -> Result<(), initiator_core::Error> {
/// use initiator_core::{DiscoveryConfig, discover};
/// for target in discover(&"127.0.0.1".parse()?, &DiscoveryConfig::default()).await?.targets {
///     println!("{}", target.name);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Connection, login and protocol errors of [`Error`]; nothing is repeated.
pub async fn discover(portal: &Portal, config: &DiscoveryConfig) -> Result<Discovered, Error> {
    let [a, b, c, d, e] = connector::random(&System)?;
    let plan = Plan {
        portal: portal.clone(),
        portals: Vec::new(),
        login: LoginConfig {
            initiator_name: config.initiator_name.clone().map_or_else(default_initiator_name, Ok)?,
            initiator_alias: None,
            target_name: None,
            session_type: SessionType::Discovery,
            isid: [0x80, a, b, c, d, e],
            credentials: config.credentials.clone(),
            target_credentials: config.target_credentials.clone(),
            offer: Offer { max_recv_data_segment_length: 32 << 10, ..Offer::default() },
            auth: None,
            md5_only: false,
            cmd_sn: Serial(1),
            // The runner draws those of each login.
            random: [0; 64],
        },
        timeouts: config.timeouts,
        reconnect: ReconnectPolicy { deadline: std::time::Duration::ZERO, ..ReconnectPolicy::default() },
        commands: 1,
        transport: config.transport,
        iser: config.iser,
        seed: u64::from_ne_bytes(connector::random(&System)?),
    };
    plan.login.check()?;
    let limits = crate::config::Limits { commands: 1, ..config.limits };
    let question = Question { text: Some(question("All")), asked: false, answer: None };
    let engine = Engine::new(question, config.timeouts, limits, plan.seed);
    let (mut engine, result) = run(&plan, &System, engine, None, |_, _| ()).await;
    match engine.app().answer.take() {
        Some(ControlAnswer::Text(answer)) => parse(&answer, portal, None),
        other => {
            result?;
            Err(other.map_or(Error::LoggedOut, |answer| declined("SendTargets", &answer)))
        }
    }
}

pub(super) fn question(value: &str) -> Vec<u8> {
    let mut text = TextWriter::new();
    text.push("SendTargets", value);
    text.as_bytes().to_vec()
}

/// Reads an answer of the portal `asked`.
pub(super) fn parse(answer: &[u8], asked: &Portal, group: Option<u16>) -> Result<Discovered, Error> {
    let list = TargetList::read(answer);
    if list.records.is_empty()
        && let Some(odd) = list.odd.first()
    {
        return Err(Error::BadAnswer { command: "SendTargets", source: Arc::new(odd.clone()) });
    }
    let portal = |address: TargetAddress| DiscoveredPortal {
        addr: address.host,
        port: address.port,
        tpgt: address.group_tag.unwrap_or(0),
    };
    let targets = list.records.into_iter().map(|TargetRecord { name, addresses }| {
        let mut portals: Vec<_> = addresses.into_iter().map(portal).collect();
        if portals.is_empty() {
            portals.push(DiscoveredPortal { addr: asked.host.clone(), port: asked.port, tpgt: group.unwrap_or(1) });
        }
        DiscoveredTarget { name, portals }
    });
    Ok(Discovered { targets: targets.collect(), odd: list.odd.iter().map(ToString::to_string).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_an_address_is_at_the_portal_that_was_asked() {
        let asked = Portal { host: "10.0.0.1".into(), port: 3261 };
        let found = parse(b"TargetName=iqn.2004-10.com.example:a\0", &asked, None).unwrap();
        assert_eq!(found.targets[0].portals, [DiscoveredPortal { addr: "10.0.0.1".into(), port: 3261, tpgt: 1 }]);
        assert!(found.odd.is_empty());
    }

    #[test]
    fn an_odd_record_costs_that_record() {
        let asked = Portal { host: "10.0.0.1".into(), port: 3261 };
        let answer = b"TargetName=iqn.2004-10.com.example:a\0TargetAddress=[::1\0TargetAddress=[::1]:3260,1\0X-odd=1\0";
        let found = parse(answer, &asked, None).unwrap();
        assert_eq!((found.targets.len(), found.targets[0].portals.len(), found.odd.len()), (1, 1, 2));
        assert!(matches!(parse(b"SendTargets=Reject\0", &asked, None), Err(Error::BadAnswer { .. })));
    }
}
