//! The login phase: `iscsi_proto`'s machine does the protocol, and here is who decides: configuration and registry.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::Waker;

use iscsi_proto::datamover::{Caps, Datamover, MalformedPdu, Notification};
use iscsi_proto::login::{
    Admission, Authority, Identity, LoginError, LoginOutcome, LoginReply, Refusal, TargetGrant, TargetLogin,
    TargetLoginConfig,
};
use iscsi_proto::name::IscsiName;
use iscsi_proto::parameters::{Parameters, SessionType};
use iscsi_proto::pdu::{Bhs, LoginResponse, LoginStatus};
use iscsi_proto::text::TextLimits;
use iscsi_proto::time::Instant;

use super::connection::Connection;
use super::keepalive::Keepalive;
use super::session::{MAX_WINDOW, Session};
use super::{EndReason, Target};
use crate::node::{Portal, TargetNode};
use crate::registry::{Barrier, Carrier, Endpoints, Mailbox, NewSession, Registry, SessionEntry};

/// Bytes of one Login Request's text, over all its PDUs. RFC 7143 6.1 asks for 8192, and for more only with
/// authentication methods that have long items, which CHAP is not: who has proved nothing costs little.
const LOGIN_TEXT: usize = 8192;

/// A connection that is logging in.
pub(super) struct LoginPhase {
    pub(super) deadline: Instant,
    machine: TargetLogin,
    authority: LoginAuthority,
}

/// A login that is granted: what remains is to tell the initiator.
pub(super) struct LoggedIn {
    pub(super) entry: Arc<SessionEntry>,
    barrier: Arc<Barrier>,
    response: (Bhs, Vec<u8>),
    grant: Box<TargetGrant>,
}

impl LoginPhase {
    pub(super) fn new(
        target: &Arc<Target>,
        caps: Caps,
        endpoints: Endpoints,
        mailbox: Arc<Mailbox>,
        entropy: [u8; 64],
        now: Instant,
    ) -> Self {
        let limits = &target.limits;
        let config = TargetLoginConfig {
            command_window: limits.command_window.clamp(1, MAX_WINDOW).into(),
            chap: limits.chap.clone(),
            text: TextLimits { max_bytes: LOGIN_TEXT, ..TextLimits::default() },
            ..TargetLoginConfig::default()
        };
        let barrier = Barrier::new(mailbox.clone());
        Self {
            deadline: now + target.limits.login_timeout,
            machine: TargetLogin::new(config, entropy),
            authority: LoginAuthority {
                target: target.clone(),
                caps,
                endpoints,
                carrier: Carrier::default(),
                mailbox,
                barrier,
                access: RefCell::default(),
                entry: RefCell::default(),
            },
        }
    }
}

impl LoginPhase {
    pub(super) fn set_carrier(&mut self, carrier: Carrier) {
        self.authority.carrier = carrier;
    }
}

/// A node, the tag of the portal group, and what the initiator is granted there.
type Granted = (Arc<TargetNode>, u16, crate::node::Access);

/// Decides on one connection's login.
struct LoginAuthority {
    target: Arc<Target>,
    caps: Caps,
    endpoints: Endpoints,
    carrier: Carrier,
    mailbox: Arc<Mailbox>,
    barrier: Arc<Barrier>,
    access: RefCell<Option<Granted>>,
    entry: RefCell<Option<Arc<SessionEntry>>>,
}

impl LoginAuthority {
    fn name(text: &str) -> Result<IscsiName, LoginStatus> {
        IscsiName::new(text).map_err(|_| LoginStatus::INITIATOR_ERROR)
    }

    /// A connection with a TSIH means to join a session, or to take the place of one of its connections (RFC 7143
    /// 6.3.4). Sessions here have one connection, so neither can be.
    fn check_tsih(&self, identity: &Identity, initiator: &IscsiName) -> Result<(), LoginStatus> {
        if identity.tsih == 0 {
            return Ok(());
        }
        let session = self
            .target
            .registry
            .by_tsih(identity.tsih)
            .filter(|entry| entry.session.initiator == *initiator && entry.session.isid == identity.isid);
        Err(match session {
            None => LoginStatus::SESSION_DOES_NOT_EXIST,
            Some(entry) if entry.session.cid == identity.cid => LoginStatus::CANNOT_INCLUDE_IN_SESSION,
            Some(_) => LoginStatus::TOO_MANY_CONNECTIONS,
        })
    }
}

impl Authority for LoginAuthority {
    fn admit(&self, identity: &Identity) -> Result<Admission, Refusal> {
        let initiator = Self::name(&identity.initiator_name)?;
        self.check_tsih(identity, &initiator)?;
        let config = &self.target.config;
        let offer = self.target.limits.offer.clone().over(&self.caps);
        let target_name = match (identity.session_type, &identity.target_name) {
            (SessionType::Discovery, _) => {
                return Ok(Admission {
                    target_portal_group_tag: None,
                    target_alias: None,
                    accounts: config.discovery_accounts().to_vec(),
                    offer,
                    joins: None,
                });
            }
            (SessionType::Normal, None) => return Err(LoginStatus::MISSING_PARAMETER.into()),
            (SessionType::Normal, Some(name)) => Self::name(name)?,
        };
        let node = config.node(&target_name).ok_or(LoginStatus::NOT_FOUND)?;
        let group = node.group_at(self.endpoints.local).ok_or(LoginStatus::NOT_FOUND)?;
        // Nodes share addresses, and not each of them need offer iSER there.
        let offers = |portal: &Portal| portal.iser() && portal.accepts(self.endpoints.local);
        if self.caps.rdma_extensions && !group.portals().iter().any(offers) {
            return Err(LoginStatus::NOT_FOUND.into());
        }
        let access = node.access(&initiator).ok_or(LoginStatus::AUTHORIZATION_FAILURE)?;
        let admission = Admission {
            target_portal_group_tag: Some(group.tag()),
            target_alias: node.alias().map(Into::into),
            accounts: access.accounts.clone(),
            offer,
            joins: None,
        };
        *self.access.borrow_mut() = Some((node.clone(), group.tag(), access));
        Ok(admission)
    }

    fn establish(&self, identity: &Identity, parameters: &Parameters) -> Result<u16, Refusal> {
        let initiator = Self::name(&identity.initiator_name)?;
        let granted = self.access.borrow_mut().take();
        let nop_in = granted.as_ref().is_none_or(|(.., access)| access.nop_in);
        if let Some((node, _, access)) = &granted
            && access.dynamic
        {
            node.remember(&initiator);
        }
        let new = NewSession {
            initiator,
            initiator_alias: identity.initiator_alias.clone(),
            isid: identity.isid,
            cid: identity.cid,
            normal: granted.map(|(node, tag, access)| (node, tag, access.luns)),
            parameters: parameters.clone(),
            endpoints: self.endpoints,
            transport: self.caps.transport,
            carrier: self.carrier.clone(),
            nop_in,
            mailbox: self.mailbox.clone(),
        };
        let entry = self.target.registry.enter(new, &self.barrier)?;
        let tsih = entry.tsih;
        *self.entry.borrow_mut() = Some(entry);
        Ok(tsih)
    }
}

/// Decides on one connection's login, with what its mover has to say.
struct With<'a, M> {
    authority: &'a LoginAuthority,
    mover: &'a M,
}

impl<M: Datamover> Authority for With<'_, M> {
    fn admit(&self, identity: &Identity) -> Result<Admission, Refusal> {
        self.authority.admit(identity)
    }

    fn establish(&self, identity: &Identity, parameters: &Parameters) -> Result<u16, Refusal> {
        // RFC 7145 10.1.3.1. Before the session is entered, which may end another one.
        if !self.mover.has_resources_for(parameters) {
            return Err(LoginStatus::OUT_OF_RESOURCES.into());
        }
        self.authority.establish(identity, parameters)
    }
}

impl LoginPhase {
    /// Works off what has come. `Some` when the initiator may come in.
    ///
    /// # Errors
    /// Why it may not; it has been told if it can be.
    pub(super) fn pump<M: Datamover>(&mut self, mover: &mut M) -> Result<Option<LoggedIn>, EndReason> {
        while let Some(notification) = mover.poll_notify() {
            let authority = With { authority: &self.authority, mover: &*mover };
            let reply = match notification {
                Notification::Control(bhs) => self.machine.handle_pdu(&bhs, mover.control_data(), &authority),
                Notification::Malformed { bhs, error: MalformedPdu::Protocol(why) } => {
                    Some(self.machine.refuse_pdu(&bhs, LoginError::Protocol(why)))
                }
                Notification::Malformed { bhs, .. } => self.machine.handle_pdu(&bhs, &[], &authority),
                Notification::Terminated(error) => return Err(EndReason::Transport(error)),
                // No task, no buffer before the Full Feature Phase.
                _ => continue,
            };
            let Some(LoginReply { response, data, outcome }) = reply else {
                return Err(EndReason::Login(LoginError::NotALogin));
            };
            let response = response.emit();
            match outcome {
                LoginOutcome::Continue => mover.send_control(response, &data),
                LoginOutcome::Established(grant) => {
                    let Some(entry) = self.authority.entry.take() else {
                        return Err(EndReason::Login(LoginError::Denied(LoginStatus::TARGET_ERROR.into())));
                    };
                    let barrier = self.authority.barrier.clone();
                    return Ok(Some(LoggedIn { entry, barrier, response: (response, data), grant }));
                }
                LoginOutcome::Refused(error) => {
                    mover.send_control(response, &data);
                    return Err(EndReason::Login(error));
                }
            }
        }
        Ok(None)
    }
}

impl LoggedIn {
    /// Whether no old session is in the way any more.
    pub(super) fn may_go_on(&self, registry: &Registry, waker: &Waker) -> bool {
        self.barrier.is_open() || {
            registry.poll_unfinished(waker);
            self.entry.reach().poll_unfinished(waker);
            self.barrier.is_open()
        }
    }

    /// Tells the initiator to come again: something of its old session is still under way (RFC 7143 6.3.5, 11.13.5).
    pub(super) fn refuse<M: Datamover>(&self, mover: &mut M) {
        if let Ok(granted) = LoginResponse::parse(&self.response.0) {
            let status = LoginStatus::SERVICE_UNAVAILABLE;
            mover.send_control(LoginResponse { status, nsg: None, tsih: 0, ..granted }.emit(), &[]);
        }
    }

    /// Tells the initiator, and opens the Full Feature Phase: the session, and its leading connection.
    pub(super) fn go_on<M: Datamover>(
        self,
        connection: &mut Connection<M>,
        target: &Arc<Target>,
        now: Instant,
    ) -> Box<Session> {
        let Self { entry, barrier: _, response: (bhs, data), grant } = self;
        let TargetGrant { parameters, exp_cmd_sn: cmd_sn, next_stat_sn: stat_sn, .. } = *grant;
        let mover = &mut connection.mover;
        mover.notice_key_values(&parameters);
        mover.send_control(bhs, &data);
        mover.enable_datamover();
        let (cid, keepalive) = (entry.session.cid, Keepalive::new(&target.limits, entry.session.nop_in, now));
        let buffers = mover.buffers().cloned().unwrap_or_else(|| target.pool.session());
        let session = Session::new(target.clone(), entry, cmd_sn, mover.asks_to_land(), buffers, &connection.waker);
        connection.open((cid, parameters, stat_sn), &session.commands.window, keepalive, now);
        Box::new(session)
    }
}
