//! What a connection logs in with: this session's names, secrets and wishes, for the login machine of `iscsi-proto`
//! (RFC 7143 6.3).

use alloc::string::String;

use iscsi_proto::chap::{Algorithm, ChapPolicy, TargetProof};
use iscsi_proto::datamover::{Caps, MoverReport};
use iscsi_proto::login::{ChapLogin, InitiatorGrant, InitiatorLogin, InitiatorLoginConfig, Offer};
use iscsi_proto::name::IscsiName;
use iscsi_proto::parameters::SessionType;
use iscsi_proto::serial::Serial;

use crate::connection::LoginSummary;
use crate::engine::StartNumbers;
use crate::error::ConfigError;
use crate::url::Credentials;

/// Who logs in to what, and with which wishes.
#[derive(Debug, Clone)]
pub struct LoginConfig {
    /// InitiatorName.
    pub initiator_name: String,
    /// InitiatorAlias.
    pub initiator_alias: Option<String>,
    /// TargetName; `None` for discovery.
    pub target_name: Option<String>,
    /// SessionType.
    pub session_type: SessionType,
    /// ISID; the same one again reinstates the session (RFC 7143 6.3.5).
    pub isid: [u8; 6],
    /// Our CHAP name and secret.
    pub credentials: Option<Credentials>,
    /// The target's CHAP name and secret.
    pub target_credentials: Option<Credentials>,
    /// Wishes for the negotiation.
    pub offer: Offer,
    /// The only algorithm of CHAP to offer.
    pub auth: Option<Algorithm>,
    /// Offer MD5 alone. Some targets cannot read a list of algorithms, and some mean SHA-1 by the number of SHA-256.
    pub md5_only: bool,
    /// CmdSN of the first command behind the login (RFC 7143 11.12.8). Default 1.
    pub cmd_sn: Serial,
    /// Bytes of a cryptographic random number generator for this one login: the challenge of mutual CHAP.
    pub random: [u8; 64],
}

impl LoginConfig {
    /// A normal session without CHAP, and with the default wishes.
    #[must_use]
    pub fn new(
        initiator_name: impl Into<String>,
        target_name: impl Into<String>,
        isid: [u8; 6],
        random: [u8; 64],
    ) -> Self {
        Self {
            initiator_name: initiator_name.into(),
            initiator_alias: None,
            target_name: Some(target_name.into()),
            session_type: SessionType::Normal,
            isid,
            credentials: None,
            target_credentials: None,
            offer: Offer::default(),
            auth: None,
            md5_only: false,
            cmd_sn: Serial(1),
            random,
        }
    }

    /// Finds what no target could accept.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        IscsiName::new(&self.initiator_name).map_err(ConfigError::InitiatorName)?;
        if let Some(target) = &self.target_name {
            IscsiName::new(target).map_err(ConfigError::TargetName)?;
        }
        match (&self.credentials, &self.target_credentials) {
            (None, Some(_)) => Err(ConfigError::NoOwnSecret),
            _ => Ok(()),
        }
    }

    /// The machine for this login over a mover.
    pub(crate) fn into_machine(self, caps: &Caps) -> InitiatorLogin {
        let credentials = self.credentials.map(|own| ChapLogin {
            user: own.user,
            secret: own.secret,
            target: self.target_credentials.map(|target| TargetProof {
                name: Some(target.user).filter(|name| !name.is_empty()),
                secret: target.secret,
            }),
        });
        // A secret that is shorter than the RFC's 96 bits is the target's choice to refuse.
        let mut chap = ChapPolicy { min_secret: 1, ..ChapPolicy::default() };
        if let Some(algorithm) = self.auth {
            chap.algorithms = alloc::vec![algorithm];
        } else if self.md5_only {
            chap.algorithms = alloc::vec![Algorithm::Md5];
        }
        let config = InitiatorLoginConfig {
            initiator_alias: self.initiator_alias,
            session_type: self.session_type,
            isid: self.isid,
            cmd_sn: self.cmd_sn,
            offer: self.offer.over(caps),
            credentials,
            chap,
            target_name: self.target_name,
            ..InitiatorLoginConfig::discovery(self.initiator_name)
        };
        InitiatorLogin::new(config, self.random)
    }
}

/// What the application learns of a login, and the numbers that the engine begins with.
pub(crate) fn begin_with(grant: InitiatorGrant, mover: Option<MoverReport>) -> (LoginSummary, StartNumbers) {
    let InitiatorGrant { parameters, tsih, target_portal_group_tag, target_alias, .. } = grant;
    let numbers = StartNumbers {
        cmd_sn: grant.cmd_sn,
        exp_cmd_sn: grant.exp_cmd_sn,
        max_cmd_sn: grant.max_cmd_sn,
        exp_stat_sn: grant.exp_stat_sn,
        unexpected: parameters.peer_max_outstanding_unexpected_pdus,
    };
    (LoginSummary { parameters, tsih, target_portal_group_tag, target_alias, mover }, numbers)
}
