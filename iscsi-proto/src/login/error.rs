//! Why a login ended, at either side.

use alloc::string::String;

use crate::chap::ChapError;
use crate::keys::KeyError;
use crate::misbehavior::Misbehavior;
use crate::pdu::LoginStatus;
use crate::text::TextError;

use super::Refusal;

/// Why a login failed. At the target [`status`](Self::status) is what the last response told the initiator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target refused (initiator's side).
    #[error("login refused: {}", status.advice())]
    Refused {
        /// What the target answered.
        status: LoginStatus,
    },
    /// The [`Authority`](super::Authority) refused (target's side).
    #[error("the login was refused: {}", .0.status)]
    Denied(Refusal),
    /// The text is malformed or too long.
    #[error("the login text is wrong: {0}")]
    Text(#[from] TextError),
    /// A key breaks a rule.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// CHAP failed.
    #[error(transparent)]
    Chap(#[from] ChapError),
    /// The login must have a key that did not come.
    #[error("the first login request must carry {0}, which did not come")]
    MissingKey(&'static str),
    /// The target wants CHAP and the initiator does not.
    #[error("the initiator did not authenticate itself, and this target asks for CHAP")]
    AuthenticationRequired,
    /// No authentication method in common.
    #[error("no authentication method in common: the initiator offers {0:?}")]
    NoCommonAuthMethod(String),
    /// The target answered AuthMethod with something that cannot be.
    #[error("the target answered AuthMethod={0}, which was not offered; check the CHAP settings on both sides")]
    AuthMethodAnswer(String),
    /// The target went on without proving who it is.
    #[error(
        "the target did not authenticate itself, and mutual CHAP is asked for; do not trust it, or set its mutual \
         secret"
    )]
    TargetNotAuthenticated,
    /// The initiator speaks no version that the target does.
    #[error("the peer speaks iSCSI versions from {min:#04x} on; this side speaks version 0x00")]
    Version {
        /// The lowest version of the peer.
        min: u8,
    },
    /// A field that is to be the same in the whole login phase changed.
    #[error("the peer changed {0} in the middle of login")]
    FieldChanged(&'static str),
    /// A rule of the login phase was broken.
    #[error("protocol error in login: {0}")]
    Protocol(#[from] Misbehavior),
    /// A PDU came that does not belong into login, or does not parse.
    #[error("a PDU came that does not belong into the login phase")]
    NotALogin,
    /// The negotiation does not end.
    #[error("login did not end within {0} requests")]
    TooManyRequests(u32),
    /// The machine was used after the end of login.
    #[error("login is over already")]
    Over,
}

impl LoginError {
    /// The status that a Login Response tells of it (RFC 7143 11.13.5).
    #[must_use]
    pub fn status(&self) -> LoginStatus {
        use crate::chap::ChapErrorKind;
        match self {
            Self::Refused { status } => *status,
            Self::Denied(refusal) => refusal.status,
            Self::MissingKey(_) => LoginStatus::MISSING_PARAMETER,
            Self::AuthenticationRequired
            | Self::NoCommonAuthMethod(_)
            | Self::AuthMethodAnswer(_)
            | Self::TargetNotAuthenticated => LoginStatus::AUTHENTICATION_FAILURE,
            Self::Chap(error) => match error.kind() {
                ChapErrorKind::MissingKey => LoginStatus::MISSING_PARAMETER,
                ChapErrorKind::Malformed => LoginStatus::INITIATOR_ERROR,
                ChapErrorKind::AuthenticationFailure | ChapErrorKind::Configuration => {
                    LoginStatus::AUTHENTICATION_FAILURE
                }
            },
            Self::Version { .. } => LoginStatus::UNSUPPORTED_VERSION,
            Self::Protocol(misbehavior) => misbehavior.login_status(),
            Self::NotALogin => LoginStatus::INVALID_DURING_LOGIN,
            Self::Text(_) | Self::Key(_) | Self::FieldChanged(_) | Self::TooManyRequests(_) | Self::Over => {
                LoginStatus::INITIATOR_ERROR
            }
        }
    }
}

impl LoginStatus {
    /// The status, and what a person can do about it.
    ///
    /// ```
    /// use iscsi_proto::pdu::LoginStatus;
    /// assert!(LoginStatus::NOT_FOUND.advice().to_string().contains("check the name"));
    /// ```
    #[must_use]
    pub fn advice(self) -> impl core::fmt::Display {
        RefusalSentence(self)
    }
}

struct RefusalSentence(LoginStatus);

impl core::fmt::Display for RefusalSentence {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let advice = match self.0 {
            LoginStatus::AUTHENTICATION_FAILURE => {
                "the target does not accept the credentials; check the CHAP user and secret, and whether it asks for \
                 CHAP"
            }
            LoginStatus::AUTHORIZATION_FAILURE => "add this initiator's name to the target's access list",
            LoginStatus::NOT_FOUND => {
                "there is no target of this name at this address; check the name against what discovery lists"
            }
            LoginStatus::TARGET_REMOVED => "the target was taken away and left no new address",
            LoginStatus::UNSUPPORTED_VERSION => "the target speaks no iSCSI version of ours",
            LoginStatus::TOO_MANY_CONNECTIONS => "the session has as many connections as the target allows",
            LoginStatus::SESSION_TYPE_NOT_SUPPORTED => "the target does not serve this session type",
            LoginStatus::SESSION_DOES_NOT_EXIST => "the target lost the session; log in anew with TSIH 0",
            LoginStatus::SERVICE_UNAVAILABLE => "the target is not in service now; try again later",
            LoginStatus::OUT_OF_RESOURCES => "the target has no room for another session now; try again later",
            LoginStatus::TARGET_ERROR => "the target has a fault of its own; look into its log",
            other if other.class() == 3 => "the target cannot serve the login now; try again later",
            _ => "the target does not like the request; look into its log",
        };
        write!(f, "{}: {advice}", self.0)
    }
}
