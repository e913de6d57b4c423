//! The states of a target's login, one struct each. A step takes its state whole and gives the next one, so that
//! nothing is asked of a login in the wrong state: what was negotiated comes from an [`Operational`] alone, and that
//! one from somebody who was admitted and has passed the security stage, or who did not have to.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Fixed, Names};
use crate::keys::{Key, NegotiationPhase, Negotiator, NegotiatorConfig, Role};
use crate::login::error::LoginError;
use crate::login::security::{Authentication, Outcome};
use crate::login::{Admission, Authority, Identity, JoinedSession};
use crate::parameters::{Parameters, SessionType};
use crate::pdu::{LoginStatus, Stage};
use crate::text::{NONE, Pair, TextWriter};

/// Where login stands.
#[derive(Debug)]
pub(super) enum State {
    /// Who it is, and what it wants, is not known: the first text is not whole.
    Opening(Opening),
    /// SecurityNegotiation.
    Security(Security),
    /// LoginOperationalNegotiation.
    Operational(Operational),
    /// The Full Feature Phase has begun, or login was refused.
    Over,
}

/// The first text is not whole.
#[derive(Debug)]
pub(super) struct Opening(pub(super) Authentication);

/// The initiator was admitted, and is in the SecurityNegotiation stage.
#[derive(Debug)]
pub(super) struct Security {
    admitted: Admitted,
    authentication: Authentication,
}

/// The initiator may negotiate: it is in the LoginOperationalNegotiation stage, or leaves the one before.
#[derive(Debug)]
pub(super) struct Operational {
    admitted: Admitted,
    /// The CHAP name that was proved.
    user: Option<String>,
    negotiator: Negotiator,
    /// Whether a text of this stage has come.
    begun: bool,
}

/// What login came to.
pub(super) struct Established {
    pub(super) identity: Identity,
    pub(super) parameters: Parameters,
    pub(super) tsih: u16,
    pub(super) user: Option<String>,
}

/// Whom the authority let in, and by what rules.
#[derive(Debug)]
struct Admitted {
    identity: Identity,
    admission: Admission,
}

/// Where a text and the wish to leave the stage lead.
pub(super) enum Next {
    /// Login goes on.
    Stay(State),
    /// Login goes on in the stage that was asked for.
    Enter(State),
    /// The Full Feature Phase begins.
    End(Established),
}

impl State {
    /// The stage that login is in; none before the first text is whole.
    pub(super) const fn stage(&self) -> Option<Stage> {
        match self {
            Self::Opening(_) | Self::Over => None,
            Self::Security(_) => Some(Stage::SecurityNegotiation),
            Self::Operational(_) => Some(Stage::LoginOperationalNegotiation),
        }
    }

    /// The session that the connection joins.
    pub(super) fn joins(&self) -> Option<&JoinedSession> {
        match self {
            Self::Security(Security { admitted, .. }) | Self::Operational(Operational { admitted, .. }) => {
                admitted.admission.joins.as_ref()
            }
            Self::Opening(_) | Self::Over => None,
        }
    }

    /// A text is whole. `stage` is its request's, which the first one chooses.
    pub(super) fn take_text(
        self,
        keys: Keys<'_>,
        stage: Stage,
        (fixed, names): (Fixed, &Names),
        authority: &dyn Authority,
        out: &mut TextWriter,
    ) -> Result<Self, LoginError> {
        match self {
            Self::Opening(opening) => match opening.admit(stage, fixed, names, authority, out)? {
                Self::Opening(_) | Self::Over => Err(LoginError::Over),
                admitted => admitted.take_text(keys, stage, (fixed, names), authority, out),
            },
            Self::Security(security) => Ok(Self::Security(security.authenticate(&keys.security, out)?)),
            Self::Operational(operational) => Ok(Self::Operational(operational.negotiate(keys.operational, out)?)),
            Self::Over => Err(LoginError::Over),
        }
    }

    /// The initiator wishes to go on to the stage `to`, and nothing of our answer is left: it does, where it may.
    pub(super) fn leave_for(self, to: Stage, authority: &dyn Authority) -> Result<Next, LoginError> {
        match (self, to) {
            (Self::Security(security), _) => security.leave_for(to, authority),
            (Self::Operational(operational), Stage::FullFeaturePhase) if operational.is_settled() => {
                operational.establish(authority).map(Next::End)
            }
            (state, _) => Ok(Next::Stay(state)),
        }
    }
}

/// The keys of a whole text, names apart, by the stage that they belong to.
#[derive(Default)]
pub(super) struct Keys<'a> {
    pub(super) security: Vec<Pair<'a>>,
    pub(super) operational: Vec<Pair<'a>>,
}

impl Opening {
    /// The first text is whole: who is it, and may it log in?
    fn admit(
        self,
        stage: Stage,
        fixed: Fixed,
        names: &Names,
        authority: &dyn Authority,
        out: &mut TextWriter,
    ) -> Result<State, LoginError> {
        let session_type = match names.session_type.as_deref() {
            Some("Discovery") => SessionType::Discovery,
            None | Some("Normal") => SessionType::Normal,
            Some(_) => return Err(LoginError::Denied(LoginStatus::SESSION_TYPE_NOT_SUPPORTED.into())),
        };
        let initiator_name = names.initiator.clone().ok_or(LoginError::MissingKey("InitiatorName"))?;
        if session_type == SessionType::Normal && names.target.is_none() {
            return Err(LoginError::MissingKey("TargetName"));
        }
        let identity = Identity {
            initiator_name,
            initiator_alias: names.alias.clone(),
            target_name: names.target.clone().filter(|_| session_type == SessionType::Normal),
            session_type,
            isid: fixed.isid,
            tsih: fixed.tsih,
            cid: fixed.cid,
        };
        let admission = authority.admit(&identity).map_err(LoginError::Denied)?;
        if fixed.tsih != 0 && admission.joins.is_none() {
            return Err(LoginError::Denied(LoginStatus::SESSION_DOES_NOT_EXIST.into()));
        }
        if stage != Stage::SecurityNegotiation && !admission.accounts.is_empty() {
            // RFC 7143 6.3.1: the target may insist on the stage that the initiator left out.
            return Err(LoginError::AuthenticationRequired);
        }
        // RFC 7143 6.3.1, 13.9: MUST be in the first response that may have it.
        if let Some(tag) = admission.target_portal_group_tag {
            out.push(Key::TargetPortalGroupTag.name(), &tag.to_string());
        }
        if let Some(alias) = &admission.target_alias {
            out.push(Key::TargetAlias.name(), alias);
        }
        let admitted = Admitted { identity, admission };
        Ok(match stage {
            Stage::SecurityNegotiation => State::Security(Security { admitted, authentication: self.0 }),
            _ => State::Operational(Operational::new(admitted, None)),
        })
    }
}

impl Security {
    fn authenticate(self, keys: &[Pair<'_>], out: &mut TextWriter) -> Result<Self, LoginError> {
        let Self { admitted, authentication } = self;
        let authentication = authentication.receive(keys, &admitted.admission.accounts, out)?;
        Ok(Self { admitted, authentication })
    }

    /// The next stage is for who has proved itself, or does not have to.
    fn leave_for(self, to: Stage, authority: &dyn Authority) -> Result<Next, LoginError> {
        let Self { admitted, authentication } = self;
        let user = match authentication.finish(admitted.admission.accounts.is_empty()) {
            Outcome::Passed(user) => user,
            Outcome::NotYet(authentication) => {
                return Ok(Next::Stay(State::Security(Self { admitted, authentication })));
            }
        };
        let operational = Operational::new(admitted, user);
        match to {
            Stage::FullFeaturePhase => operational.establish(authority).map(Next::End),
            _ => Ok(Next::Enter(State::Operational(operational))),
        }
    }
}

impl Operational {
    fn new(admitted: Admitted, user: Option<String>) -> Self {
        let admission = &admitted.admission;
        let negotiator = Negotiator::new(NegotiatorConfig {
            role: Role::Target,
            phase: NegotiationPhase::Login,
            session_type: admitted.identity.session_type,
            leading: admission.joins.is_none(),
            offer: admission.offer.clone(),
            before: admission
                .joins
                .as_ref()
                .map_or_else(Parameters::default, |joined| joined.parameters.for_new_connection()),
        });
        Self { admitted, user, negotiator, begun: false }
    }

    fn negotiate(mut self, mut keys: Vec<Pair<'_>>, out: &mut TextWriter) -> Result<Self, LoginError> {
        self.pass_auth_method_none(&mut keys, out);
        self.negotiator.receive(keys, out)?;
        if !self.begun {
            self.negotiator.propose(out);
            self.begun = true;
        }
        Ok(self)
    }

    /// Initiators in use say AuthMethod=None once more in the operational stage. Where no authentication is asked for
    /// that changes nothing.
    fn pass_auth_method_none(&self, keys: &mut Vec<Pair<'_>>, out: &mut TextWriter) {
        let open = self.admitted.admission.accounts.is_empty();
        let none = |pair: &Pair<'_>| pair.key == Key::AuthMethod.name() && pair.value == NONE;
        if open && keys.iter().filter(|pair| none(pair)).count() == 1 {
            keys.retain(|pair| !none(pair));
            out.push(Key::AuthMethod.name(), NONE);
        }
    }

    /// Whether a text of this stage came, and all that we proposed is answered.
    fn is_settled(&self) -> bool {
        self.begun && self.negotiator.unanswered().is_none()
    }

    fn establish(self, authority: &dyn Authority) -> Result<Established, LoginError> {
        let parameters = self.negotiator.finish()?;
        let Admitted { identity, .. } = self.admitted;
        let tsih = authority.establish(&identity, &parameters).map_err(LoginError::Denied)?;
        Ok(Established { identity, parameters, tsih, user: self.user })
    }
}
