//! The initiator's side of login.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::error::LoginError;
use super::target::LOGIN_SEGMENT;
use super::{Offer, Serial};
use crate::chap::{self, ChapInitiator, ChapPolicy, ChapSecret, Credentials, TargetProof, as_pairs};
use crate::keys::{Key, KeyError, Negotiator, NegotiatorConfig, Phase, Role, Senders, shown};
use crate::misbehavior::Misbehavior;
use crate::parameters::{Parameters, SessionType};
use crate::pdu::{LoginRequest, LoginResponse, LoginStatus, Stage};
use crate::text::{
    IRRELEVANT, NONE, NOT_UNDERSTOOD, Pair, REJECT, TextBuffer, TextLimits, TextPieces, TextWriter, value,
};

/// How an initiator authenticates itself.
#[derive(Debug, Clone)]
pub struct ChapLogin {
    /// CHAP name.
    pub user: String,
    /// Its secret.
    pub secret: ChapSecret,
    /// What the target must prove in turn (mutual CHAP). Then the login offers CHAP and nothing else.
    pub target: Option<TargetProof>,
}

/// What an [`InitiatorLogin`] asks for.
#[derive(Debug, Clone)]
pub struct InitiatorLoginConfig {
    /// InitiatorName.
    pub initiator_name: String,
    /// InitiatorAlias.
    pub initiator_alias: Option<String>,
    /// TargetName; sent in a normal session only.
    pub target_name: Option<String>,
    /// SessionType.
    pub session_type: SessionType,
    /// ISID: the same one reinstates an older session of this initiator with the target (RFC 7143 6.3.5).
    pub isid: [u8; 6],
    /// TSIH: 0 for a new session, else the session to join.
    pub tsih: u16,
    /// CID.
    pub cid: u16,
    /// Initiator Task Tag of the whole login.
    pub itt: u32,
    /// CmdSN of the first command behind login.
    pub cmd_sn: Serial,
    /// ExpStatSN of the first request: 0, or the old connection's when it is reinstated (RFC 7143 11.12.9).
    pub exp_stat_sn: Serial,
    /// The session's values when `tsih` is not 0.
    pub joins: Option<Parameters>,
    /// What is wished for.
    pub offer: Offer,
    /// CHAP, if the initiator has credentials.
    pub credentials: Option<ChapLogin>,
    /// What CHAP allows. Some old targets cannot read a list of algorithms: give them MD5 alone.
    pub chap: ChapPolicy,
    /// Whether a login without credentials goes through the security stage, with AuthMethod=None. Off by default: most
    /// initiators begin with the operational stage then, so most targets are used to it.
    pub begin_with_security: bool,
    /// How much text one answer may hold.
    pub text: TextLimits,
    /// Login Requests until the initiator gives up; 64 by default.
    pub max_requests: u32,
    /// The most bytes of a request's data segment; 8192 by default, which is also the most that login allows (RFC 7143
    /// 6.3).
    pub data_segment: usize,
}

impl InitiatorLoginConfig {
    /// A new normal session of `initiator_name` with `target_name`, with default wishes and no credentials.
    #[must_use]
    pub fn new(initiator_name: impl Into<String>, target_name: impl Into<String>) -> Self {
        Self {
            initiator_name: initiator_name.into(),
            initiator_alias: None,
            target_name: Some(target_name.into()),
            session_type: SessionType::Normal,
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            cid: 0,
            itt: 0,
            cmd_sn: Serial(1),
            exp_stat_sn: Serial(0),
            joins: None,
            offer: Offer::default(),
            credentials: None,
            chap: ChapPolicy::default(),
            begin_with_security: false,
            text: TextLimits::default(),
            max_requests: 64,
            data_segment: LOGIN_SEGMENT,
        }
    }

    /// A discovery session of `initiator_name`.
    #[must_use]
    pub fn discovery(initiator_name: impl Into<String>) -> Self {
        Self { target_name: None, session_type: SessionType::Discovery, ..Self::new(initiator_name, "") }
    }
}

/// What an initiator's login came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitiatorGrant {
    /// What was negotiated.
    pub parameters: Parameters,
    /// The session's TSIH; 0 from a target that breaks RFC 7143 11.13.3. No connection can be added then.
    pub tsih: u16,
    /// TargetPortalGroupTag, if the target told.
    pub target_portal_group_tag: Option<u16>,
    /// TargetAlias, if the target told.
    pub target_alias: Option<String>,
    /// ExpStatSN: StatSN of the first response in the Full Feature Phase.
    pub exp_stat_sn: Serial,
    /// CmdSN of the first command.
    pub cmd_sn: Serial,
    /// ExpCmdSN as the last response told it.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN as the last response told it.
    pub max_cmd_sn: Serial,
}

/// What a response led to.
#[derive(Debug)]
pub enum InitiatorStep {
    /// Send this request.
    Send(LoginRequest, Vec<u8>),
    /// The Full Feature Phase begins.
    Established(Box<InitiatorGrant>),
    /// The target is elsewhere: close the connection and log in there (RFC 7143 11.13.5).
    Redirected {
        /// TargetAddress, without portal group tag; see [`TargetAddress`](crate::text::targets::TargetAddress).
        address: String,
        /// Whether the target moved for good.
        permanent: bool,
    },
}

/// The initiator's login machine.
///
/// Give each Login Response to [`handle_response`](Self::handle_response). After an error the connection must be closed
/// (RFC 7143 6.3). It bends to peers where that is safe: names and session type are never sent twice, an offer that the
/// target passes over in silence keeps its default, an ISID that is not echoed is not minded.
#[derive(Debug)]
pub struct InitiatorLogin {
    config: InitiatorLoginConfig,
    challenge: [u8; 32],
    identifier: u8,
    stage: Stage,
    /// What the last request asked for.
    asked: Option<Stage>,
    /// What the next request asks for.
    wanted: Option<Stage>,
    method_answered: bool,
    chap: Option<ChapInitiator>,
    negotiator: Negotiator,
    outgoing: TextPieces,
    incoming: TextBuffer,
    exp_stat_sn: Serial,
    requests: u32,
    target_portal_group_tag: Option<u16>,
    target_alias: Option<String>,
    over: bool,
}

impl InitiatorLogin {
    /// Prepares a login. `entropy` comes from a cryptographic random number generator and is used for this login only:
    /// mutual CHAP's challenge is made of it.
    #[must_use]
    pub fn new(config: InitiatorLoginConfig, entropy: [u8; 64]) -> Self {
        let (challenge, rest) = entropy.split_first_chunk().map_or(([0; 32], [].as_slice()), |(c, r)| (*c, r));
        let negotiator = Negotiator::new(NegotiatorConfig {
            role: Role::Initiator,
            phase: Phase::Login,
            session_type: config.session_type,
            leading: config.tsih == 0,
            offer: config.offer.clone(),
            before: config.joins.as_ref().map_or_else(Parameters::default, Parameters::for_new_connection),
        });
        let secure = config.credentials.is_some() || config.begin_with_security;
        let mut login = Self {
            challenge,
            identifier: rest.first().copied().unwrap_or_default(),
            stage: if secure { Stage::SecurityNegotiation } else { Stage::LoginOperationalNegotiation },
            asked: None,
            wanted: None,
            method_answered: false,
            chap: None,
            negotiator,
            outgoing: TextPieces::default(),
            incoming: TextBuffer::new(config.text),
            exp_stat_sn: config.exp_stat_sn,
            requests: 0,
            target_portal_group_tag: None,
            target_alias: None,
            over: false,
            config,
        };
        let mut text = TextWriter::new();
        login.introduce(&mut text);
        login.outgoing = text.into_pieces(login.config.data_segment.min(LOGIN_SEGMENT));
        login
    }

    /// The first text: who this is and, by stage, how it authenticates itself or what it wishes for.
    fn introduce(&mut self, text: &mut TextWriter) {
        text.push(Key::InitiatorName.name(), &self.config.initiator_name);
        if let Some(alias) = &self.config.initiator_alias {
            text.push(Key::InitiatorAlias.name(), alias);
        }
        let session_type = match (self.config.session_type, &self.config.target_name) {
            (SessionType::Discovery, _) => "Discovery",
            (SessionType::Normal, Some(name)) => {
                text.push(Key::TargetName.name(), name);
                "Normal"
            }
            (SessionType::Normal, None) => "Normal",
        };
        // RFC 7143 13.21: LO.
        if self.config.tsih == 0 {
            text.push(Key::SessionType.name(), session_type);
        }
        if self.stage == Stage::SecurityNegotiation {
            text.push(Key::AuthMethod.name(), self.methods());
            if self.config.credentials.is_none() {
                self.wanted = Some(Stage::LoginOperationalNegotiation);
            }
        } else {
            self.negotiator.offer(text);
            self.wanted = Some(Stage::FullFeaturePhase);
        }
    }

    /// AuthMethod as offered. A target that must prove itself leaves no room for None.
    const fn methods(&self) -> &'static str {
        match &self.config.credentials {
            None => NONE,
            Some(ChapLogin { target: Some(_), .. }) => "CHAP",
            Some(ChapLogin { target: None, .. }) => "CHAP,None",
        }
    }

    /// The first request and its data segment. Call it once.
    pub fn first_request(&mut self) -> (LoginRequest, Vec<u8>) {
        self.next_request()
    }

    /// What is negotiated at most; see [`Negotiator::at_most`].
    #[must_use]
    pub fn at_most(&self) -> Parameters {
        self.negotiator.at_most()
    }

    fn next_request(&mut self) -> (LoginRequest, Vec<u8>) {
        self.requests = self.requests.saturating_add(1);
        let (piece, incomplete) = self.outgoing.next_piece();
        let data = piece.to_vec();
        // RFC 7143 11.12.2: T never with C.
        self.asked = self.wanted.filter(|_| !incomplete);
        let request = LoginRequest {
            incomplete,
            csg: self.stage,
            nsg: self.asked,
            version_max: 0,
            version_min: 0,
            isid: self.config.isid,
            tsih: self.config.tsih,
            itt: self.config.itt,
            cid: self.config.cid,
            cmd_sn: self.config.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        };
        (request, data)
    }

    /// A Login Response came, with its data segment.
    ///
    /// # Errors
    /// [`LoginError`]: the login has failed, close the connection. [`LoginError::Refused`] when the target said so.
    pub fn handle_response(&mut self, response: &LoginResponse, data: &[u8]) -> Result<InitiatorStep, LoginError> {
        if self.over {
            return Err(LoginError::Over);
        }
        let step = self.advance(response, data);
        self.over = !matches!(step, Ok(InitiatorStep::Send(..)));
        step
    }

    fn advance(&mut self, response: &LoginResponse, data: &[u8]) -> Result<InitiatorStep, LoginError> {
        match response.status.class() {
            0 => {}
            1 => return self.redirected(response.status, data),
            _ => return Err(LoginError::Refused { status: response.status }),
        }
        self.check_header(response)?;
        if self.outgoing.has_more() {
            // RFC 7143 6.2: our C bit is answered with no data.
            if !data.is_empty() || response.incomplete {
                return Err(LoginError::Protocol(Misbehavior::AnswerBeforeRequestIsWhole));
            }
        } else {
            self.incoming.push(data)?;
            if !response.incomplete {
                let text = core::mem::replace(&mut self.incoming, TextBuffer::new(self.config.text));
                let mut out = TextWriter::new();
                self.take_text(&text, response.nsg, &mut out)?;
                match response.nsg {
                    Some(Stage::FullFeaturePhase) => return self.establish(response),
                    Some(next) => {
                        self.stage = next;
                        self.negotiator.offer(&mut out);
                        self.wanted = Some(Stage::FullFeaturePhase);
                    }
                    None => {}
                }
                self.outgoing = out.into_pieces(self.config.data_segment.min(LOGIN_SEGMENT));
            }
        }
        if self.requests >= self.config.max_requests {
            return Err(LoginError::TooManyRequests(self.config.max_requests));
        }
        let (request, data) = self.next_request();
        Ok(InitiatorStep::Send(request, data))
    }

    fn check_header(&mut self, response: &LoginResponse) -> Result<(), LoginError> {
        if response.itt != self.config.itt {
            return Err(LoginError::FieldChanged("the Initiator Task Tag"));
        }
        if response.version_active != 0 {
            return Err(LoginError::Version { min: response.version_active });
        }
        if response.csg != self.stage {
            return Err(LoginError::Protocol(Misbehavior::ResponseOfOtherStage {
                got: response.csg,
                expected: self.stage,
            }));
        }
        // RFC 7143 6.3, 11.13.6: a target grants at most what was asked for.
        if let Some(next) = response.nsg {
            let Some(asked) = self.asked else {
                return Err(LoginError::Protocol(Misbehavior::LoginTransitionUnasked(next)));
            };
            if next <= self.stage || next > asked {
                return Err(LoginError::Protocol(Misbehavior::LoginTransitionElsewhere { asked, got: next }));
            }
        }
        self.exp_stat_sn = response.stat_sn.next();
        Ok(())
    }

    fn redirected(&self, status: LoginStatus, data: &[u8]) -> Result<InitiatorStep, LoginError> {
        let mut text = TextBuffer::new(self.config.text);
        text.push(data)?;
        let address = text.pairs()?.find(|pair| pair.key == Key::TargetAddress.name());
        match address {
            Some(Pair { value, .. }) => Ok(InitiatorStep::Redirected {
                address: value.to_string(),
                permanent: status == LoginStatus::TARGET_MOVED_PERMANENTLY,
            }),
            None => Err(LoginError::Protocol(Misbehavior::RedirectionWithoutAddress)),
        }
    }

    fn take_text(&mut self, text: &TextBuffer, next: Option<Stage>, out: &mut TextWriter) -> Result<(), LoginError> {
        let secure = self.stage == Stage::SecurityNegotiation;
        let mut method = None;
        let mut chap = Vec::new();
        let mut operational = Vec::new();
        for pair in text.pairs()? {
            match Key::from_name(pair.key) {
                Some(Key::TargetPortalGroupTag) => {
                    let tag = value::number(pair.value).and_then(|tag| u16::try_from(tag).ok());
                    let wrong = || KeyError::Value { key: Key::TargetPortalGroupTag, value: shown(pair.value) };
                    self.target_portal_group_tag = Some(tag.ok_or_else(wrong)?);
                }
                Some(Key::TargetAlias) => self.target_alias = Some(pair.value.to_string()),
                Some(Key::TargetAddress | Key::NodeArchitecture) => {}
                Some(key) if key.spec().senders == Senders::Initiator && key != Key::IserHelloRequired => {
                    self.take_declaration_answer(key, pair.value)?;
                }
                Some(Key::AuthMethod) if secure => {
                    if method.replace(pair.value).is_some() {
                        return Err(KeyError::Repeated(Key::AuthMethod).into());
                    }
                }
                Some(Key::ChapA | Key::ChapI | Key::ChapC | Key::ChapN | Key::ChapR) if secure => chap.push(pair),
                // RFC 7143 6.3, 12: a key out of its stage is a protocol error.
                Some(key) if secure => {
                    return Err(KeyError::Stage { key, stage: "the SecurityNegotiation stage" }.into());
                }
                None if secure => {
                    if pair.value != NOT_UNDERSTOOD {
                        out.push(pair.key, NOT_UNDERSTOOD);
                    }
                }
                _ => operational.push(pair),
            }
        }
        if secure {
            self.take_method(method, next, out)?;
            return self.authenticate(&chap, next, out);
        }
        self.negotiator.receive(operational, out)?;
        // RFC 7143 6.3: MUST NOT end the stage with a key that needs our answer.
        match self.negotiator.owed() {
            Some(_) if next.is_some() => Err(LoginError::Protocol(Misbehavior::OfferAtTheEndOfAStage)),
            _ => Ok(()),
        }
    }

    /// The target may not send our keys, but may say that it cannot make sense of one.
    fn take_declaration_answer(&self, key: Key, value: &str) -> Result<(), LoginError> {
        match value {
            NOT_UNDERSTOOD if key.spec().later => Ok(()),
            NOT_UNDERSTOOD => Err(KeyError::NotUnderstood(key).into()),
            REJECT => Err(KeyError::Rejected { key, offered: String::new() }.into()),
            IRRELEVANT => Ok(()),
            _ => Err(KeyError::Sender(key).into()),
        }
    }

    fn take_method(
        &mut self,
        method: Option<&str>,
        next: Option<Stage>,
        out: &mut TextWriter,
    ) -> Result<(), LoginError> {
        match (method, &self.config.credentials) {
            (Some(_), _) if self.method_answered => return Err(KeyError::Repeated(Key::AuthMethod).into()),
            (Some("CHAP"), Some(login)) => {
                let credentials = Credentials::new(login.user.clone(), login.secret.clone())?;
                let mut chap =
                    ChapInitiator::new(self.config.chap.clone(), credentials, self.challenge, self.identifier);
                if let Some(proof) = &login.target {
                    chap = chap.require_target(proof.clone());
                }
                // RFC 7143 12.1: the initiator MUST make the first step as soon as the method is chosen.
                for (key, value) in as_pairs(&chap.start()?) {
                    out.push(key, value);
                }
                self.chap = Some(chap);
            }
            // A target that asks for no proof gets none; one that has to prove itself was not offered this.
            (Some(NONE), None | Some(ChapLogin { target: None, .. })) => {
                self.wanted = Some(Stage::LoginOperationalNegotiation);
            }
            (Some(other), _) => return Err(LoginError::AuthMethodAnswer(shown(other))),
            (None, Some(_)) if !self.method_answered && next.is_none() => {
                return Err(LoginError::Protocol(Misbehavior::AuthMethodUnanswered));
            }
            (None, _) => {}
        }
        self.method_answered |= method.is_some();
        Ok(())
    }

    fn authenticate(
        &mut self,
        pairs: &[Pair<'_>],
        next: Option<Stage>,
        out: &mut TextWriter,
    ) -> Result<(), LoginError> {
        let mutual = self.config.credentials.as_ref().is_some_and(|login| login.target.is_some());
        match &mut self.chap {
            Some(chap) if !pairs.is_empty() && !chap.is_satisfied() => {
                let step = chap.handle(pairs.iter().map(|pair| (pair.key, pair.value)))?;
                if let chap::InitiatorStep::Send(keys) = step {
                    for (key, value) in as_pairs(&keys) {
                        out.push(key, value);
                    }
                    // The response is all that we have to say; the target's proof comes with its answer.
                    self.wanted = Some(Stage::LoginOperationalNegotiation);
                }
            }
            Some(chap) if self.wanted.is_some() && !chap.is_satisfied() => {
                return Err(LoginError::TargetNotAuthenticated);
            }
            Some(_) if pairs.is_empty() && self.wanted.is_none() && out.is_empty() => {
                return Err(LoginError::Protocol(Misbehavior::ChapNotContinued));
            }
            None if !pairs.is_empty() => {
                return Err(LoginError::Protocol(Misbehavior::ChapKeysFromTarget));
            }
            _ => {}
        }
        if next.is_some() && mutual && !self.chap.as_ref().is_some_and(ChapInitiator::is_satisfied) {
            return Err(LoginError::TargetNotAuthenticated);
        }
        Ok(())
    }

    fn establish(&mut self, response: &LoginResponse) -> Result<InitiatorStep, LoginError> {
        // RFC 7143 11.13.3: the TSIH MUST NOT be zero. It is needed to add a connection to a session alone, so that one
        // whose target tells none works all the same.
        let parameters = self.negotiator.clone().finish()?;
        Ok(InitiatorStep::Established(Box::new(InitiatorGrant {
            parameters,
            tsih: response.tsih,
            target_portal_group_tag: self.target_portal_group_tag,
            target_alias: self.target_alias.take(),
            exp_stat_sn: self.exp_stat_sn,
            cmd_sn: self.config.cmd_sn,
            exp_cmd_sn: response.exp_cmd_sn,
            max_cmd_sn: response.max_cmd_sn,
        })))
    }
}
