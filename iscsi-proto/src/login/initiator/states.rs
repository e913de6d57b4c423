//! The states of an initiator's login, one struct each. A step takes its state whole and gives the next one: the
//! operational stage is reached through a [`Security`] that has what it asked the target for, or by beginning with it.

use alloc::vec::Vec;

use super::{ChapLogin, InitiatorLoginConfig};
use crate::chap::{self, ChapInitiator, Credentials, as_pairs};
use crate::keys::{Key, KeyError, Negotiator, shown};
use crate::login::error::LoginError;
use crate::misbehavior::Misbehavior;
use crate::parameters::Parameters;
use crate::pdu::Stage;
use crate::text::{NONE, Pair, TextWriter};

/// Where login stands.
#[derive(Debug)]
pub(super) enum State {
    /// SecurityNegotiation.
    Security(Security),
    /// LoginOperationalNegotiation.
    Operational(Operational),
    /// The Full Feature Phase has begun, the target is elsewhere, or login has failed.
    Over,
}

/// The SecurityNegotiation stage.
#[derive(Debug)]
pub(super) struct Security {
    authentication: Authentication,
    /// Whether the target has to prove itself.
    mutual: bool,
    negotiator: Negotiator,
}

/// The LoginOperationalNegotiation stage.
#[derive(Debug)]
pub(super) struct Operational(Negotiator);

/// How far our proof is, and the target's.
#[derive(Debug)]
enum Authentication {
    /// AuthMethod is offered, and credentials wait to be used.
    Offered,
    /// AuthMethod=None is offered, for want of credentials.
    NoneOffered,
    /// The target takes us without a proof.
    None,
    /// CHAP runs; our response is still to be sent.
    Chap(ChapInitiator),
    /// Our response is sent. The target's proof, where one is asked for, comes with its answer.
    Responded(ChapInitiator),
}

/// What a whole text of the target says, by the stage that it belongs to.
#[derive(Default)]
pub(super) struct Keys<'a> {
    pub(super) method: Option<&'a str>,
    pub(super) chap: Vec<Pair<'a>>,
    pub(super) operational: Vec<Pair<'a>>,
}

/// What mutual CHAP's challenge is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entropy {
    pub(super) challenge: [u8; 32],
    pub(super) identifier: u8,
}

impl State {
    /// The stage of the first request, and its text behind the names.
    pub(super) fn begin(config: &InitiatorLoginConfig, mut negotiator: Negotiator, out: &mut TextWriter) -> Self {
        // AuthMethod as offered. A target that must prove itself leaves no room for None.
        let (methods, authentication, mutual) = match &config.credentials {
            None if config.begin_with_security => (NONE, Authentication::NoneOffered, false),
            None => {
                negotiator.offer(out);
                return Self::Operational(Operational(negotiator));
            }
            Some(ChapLogin { target: Some(_), .. }) => ("CHAP", Authentication::Offered, true),
            Some(ChapLogin { target: None, .. }) => ("CHAP,None", Authentication::Offered, false),
        };
        out.push(Key::AuthMethod.name(), methods);
        Self::Security(Security { authentication, mutual, negotiator })
    }

    /// The stage that login is in.
    pub(super) const fn stage(&self) -> Stage {
        match self {
            Self::Security(_) => Stage::SecurityNegotiation,
            Self::Operational(_) => Stage::LoginOperationalNegotiation,
            Self::Over => Stage::FullFeaturePhase,
        }
    }

    /// The stage that the next request asks for, once all of its text is sent.
    pub(super) const fn wanted(&self) -> Option<Stage> {
        match self {
            Self::Security(Security { authentication: Authentication::Offered | Authentication::Chap(_), .. }) => None,
            Self::Security(_) => Some(Stage::LoginOperationalNegotiation),
            Self::Operational(_) => Some(Stage::FullFeaturePhase),
            Self::Over => None,
        }
    }

    /// What is negotiated at most; the defaults once login is over.
    pub(super) fn at_most(&self) -> Parameters {
        match self {
            Self::Security(Security { negotiator, .. }) | Self::Operational(Operational(negotiator)) => {
                negotiator.at_most()
            }
            Self::Over => Parameters::default(),
        }
    }

    /// A text of the target is whole; `next` is the stage that it goes on to.
    pub(super) fn take_text(
        self,
        keys: Keys<'_>,
        next: Option<Stage>,
        (config, entropy): (&InitiatorLoginConfig, Entropy),
        out: &mut TextWriter,
    ) -> Result<Self, LoginError> {
        match self {
            Self::Security(security) => {
                let security = security.take_method(keys.method, next, (config, entropy), out)?;
                Ok(Self::Security(security.authenticate(&keys.chap, out)?))
            }
            Self::Operational(operational) => {
                Ok(Self::Operational(operational.negotiate(keys.operational, next.is_some(), out)?))
            }
            Self::Over => Err(LoginError::Over),
        }
    }
}

impl Security {
    fn take_method(
        self,
        method: Option<&str>,
        next: Option<Stage>,
        (config, entropy): (&InitiatorLoginConfig, Entropy),
        out: &mut TextWriter,
    ) -> Result<Self, LoginError> {
        let authentication = match (method, self.authentication) {
            (Some(answer), Authentication::Offered) => answered(answer, config, entropy, out)?,
            (Some(NONE), Authentication::NoneOffered) => Authentication::None,
            (Some(other), Authentication::NoneOffered) => return Err(LoginError::AuthMethodAnswer(shown(other))),
            (Some(_), _) => return Err(KeyError::Repeated(Key::AuthMethod).into()),
            (None, Authentication::Offered) if next.is_none() => {
                return Err(LoginError::Protocol(Misbehavior::AuthMethodUnanswered));
            }
            (None, other) => other,
        };
        Ok(Self { authentication, ..self })
    }

    fn authenticate(self, pairs: &[Pair<'_>], out: &mut TextWriter) -> Result<Self, LoginError> {
        let (mut chap, responded) = match self.authentication {
            Authentication::Chap(chap) => (chap, false),
            Authentication::Responded(chap) => (chap, true),
            _ if !pairs.is_empty() => return Err(LoginError::Protocol(Misbehavior::ChapKeysFromTarget)),
            authentication => return Ok(Self { authentication, ..self }),
        };
        let authentication = if !pairs.is_empty() && !chap.is_satisfied() {
            match chap.handle(pairs.iter().map(|pair| (pair.key, pair.value)))? {
                chap::InitiatorStep::Send(keys) => {
                    for (key, value) in as_pairs(&keys) {
                        out.push(key, value);
                    }
                    // The response is all that we have to say; the target's proof comes with its answer.
                    Authentication::Responded(chap)
                }
                _ if responded => Authentication::Responded(chap),
                _ => Authentication::Chap(chap),
            }
        } else if responded && !chap.is_satisfied() {
            return Err(LoginError::TargetNotAuthenticated);
        } else if pairs.is_empty() && !responded && out.is_empty() {
            return Err(LoginError::Protocol(Misbehavior::ChapNotContinued));
        } else if responded {
            Authentication::Responded(chap)
        } else {
            Authentication::Chap(chap)
        };
        Ok(Self { authentication, ..self })
    }

    /// The target goes on to the next stage: it has proved itself where it has to.
    pub(super) fn leave(self, out: &mut TextWriter) -> Result<Operational, LoginError> {
        let proved = match &self.authentication {
            Authentication::Chap(chap) | Authentication::Responded(chap) => chap.is_satisfied(),
            _ => false,
        };
        if self.mutual && !proved {
            return Err(LoginError::TargetNotAuthenticated);
        }
        let mut negotiator = self.negotiator;
        negotiator.offer(out);
        Ok(Operational(negotiator))
    }
}

/// The target answered the AuthMethod that we offered, and we have credentials.
fn answered(
    method: &str,
    config: &InitiatorLoginConfig,
    Entropy { challenge, identifier }: Entropy,
    out: &mut TextWriter,
) -> Result<Authentication, LoginError> {
    match (method, &config.credentials) {
        ("CHAP", Some(login)) => {
            let credentials = Credentials::new(login.user.clone(), login.secret.clone())?;
            let mut chap = ChapInitiator::new(config.chap.clone(), credentials, challenge, identifier);
            if let Some(proof) = &login.target {
                chap = chap.require_target(proof.clone());
            }
            // RFC 7143 12.1: the initiator MUST make the first step as soon as the method is chosen.
            for (key, value) in as_pairs(&chap.start()?) {
                out.push(key, value);
            }
            Ok(Authentication::Chap(chap))
        }
        // A target that asks for no proof gets none; one that has to prove itself was not offered this.
        (NONE, None | Some(ChapLogin { target: None, .. })) => Ok(Authentication::None),
        _ => Err(LoginError::AuthMethodAnswer(shown(method))),
    }
}

impl Operational {
    fn negotiate(mut self, keys: Vec<Pair<'_>>, ends: bool, out: &mut TextWriter) -> Result<Self, LoginError> {
        self.0.receive(keys, out)?;
        // RFC 7143 6.3: MUST NOT end the stage with a key that needs our answer.
        if ends && self.0.owed().is_some() {
            return Err(LoginError::Protocol(Misbehavior::OfferAtTheEndOfAStage));
        }
        Ok(self)
    }

    /// The target goes on to the Full Feature Phase with these values.
    pub(super) fn finish(self) -> Result<Parameters, LoginError> {
        Ok(self.0.finish()?)
    }
}
