//! The initiator's side of login.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::error::LoginError;
use super::target::LOGIN_SEGMENT;
use super::{Offer, Serial};
use crate::chap::{ChapPolicy, ChapSecret, TargetProof};
use crate::keys::{Key, KeyError, NegotiationPhase, Negotiator, NegotiatorConfig, Role, Senders, shown};
use crate::misbehavior::Misbehavior;
use crate::parameters::{Parameters, SessionType};
use crate::pdu::{LoginRequest, LoginResponse, LoginStatus, Stage};
use crate::text::{IRRELEVANT, NOT_UNDERSTOOD, Pair, REJECT, TextBuffer, TextLimits, TextPieces, TextWriter, value};

mod states;

use states::{Entropy, Keys, State};

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
/// (RFC 7143 6.3). It tolerates some breaches of peers in use: an offer that the target does not answer keeps its
/// default, and an ISID that is not echoed is ignored. Names and session type are sent once.
#[derive(Debug)]
pub struct InitiatorLogin {
    config: InitiatorLoginConfig,
    entropy: Entropy,
    /// What the last request asked for.
    asked: Option<Stage>,
    state: State,
    outgoing: TextPieces,
    incoming: TextBuffer,
    exp_stat_sn: Serial,
    requests: u32,
    target_portal_group_tag: Option<u16>,
    target_alias: Option<String>,
}

impl InitiatorLogin {
    /// Prepares a login. `entropy` comes from a cryptographic random number generator and is used for this login only:
    /// mutual CHAP's challenge is made of it.
    #[must_use]
    pub fn new(config: InitiatorLoginConfig, entropy: [u8; 64]) -> Self {
        let (challenge, rest) = entropy.split_first_chunk().map_or(([0; 32], [].as_slice()), |(c, r)| (*c, r));
        let negotiator = Negotiator::new(NegotiatorConfig {
            role: Role::Initiator,
            phase: NegotiationPhase::Login,
            session_type: config.session_type,
            leading: config.tsih == 0,
            offer: config.offer.clone(),
            before: config.joins.as_ref().map_or_else(Parameters::default, Parameters::for_new_connection),
        });
        // The first text: who this is and, by stage, how it authenticates itself or what it wishes for.
        let mut text = TextWriter::new();
        introduce(&config, &mut text);
        let state = State::begin(&config, negotiator, &mut text);
        Self {
            entropy: Entropy { challenge, identifier: rest.first().copied().unwrap_or_default() },
            asked: None,
            state,
            outgoing: text.into_pieces(config.data_segment.min(LOGIN_SEGMENT)),
            incoming: TextBuffer::new(config.text),
            exp_stat_sn: config.exp_stat_sn,
            requests: 0,
            target_portal_group_tag: None,
            target_alias: None,
            config,
        }
    }

    /// The first request and its data segment. Call it once.
    pub fn first_request(&mut self) -> (LoginRequest, Vec<u8>) {
        self.next_request()
    }

    /// What is negotiated at most, while login is under way; see [`Negotiator::at_most`].
    #[must_use]
    pub fn at_most(&self) -> Parameters {
        self.state.at_most()
    }

    fn next_request(&mut self) -> (LoginRequest, Vec<u8>) {
        self.requests = self.requests.saturating_add(1);
        let (piece, incomplete) = self.outgoing.next_piece();
        let data = piece.to_vec();
        // RFC 7143 11.12.2: T never with C.
        self.asked = self.state.wanted().filter(|_| !incomplete);
        let request = LoginRequest {
            incomplete,
            csg: self.state.stage(),
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
        match core::mem::replace(&mut self.state, State::Over) {
            State::Over => Err(LoginError::Over),
            state => self.advance(state, response, data),
        }
    }

    /// Takes a step from `state`, and leaves the next one behind where login goes on.
    fn advance(
        &mut self,
        mut state: State,
        response: &LoginResponse,
        data: &[u8],
    ) -> Result<InitiatorStep, LoginError> {
        match response.status.class() {
            0 => {}
            1 => return self.redirected(response.status, data),
            _ => return Err(LoginError::Refused { status: response.status }),
        }
        self.check_header(state.stage(), response)?;
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
                let keys = self.sort_keys(&text, state.stage(), &mut out)?;
                state = state.take_text(keys, response.nsg, (&self.config, self.entropy), &mut out)?;
                if response.nsg.is_some() {
                    state = match state {
                        State::Security(security) => State::Operational(security.leave(&mut out)?),
                        State::Operational(operational) => return self.establish(operational.finish()?, response),
                        State::Over => return Err(LoginError::Over),
                    };
                }
                self.outgoing = out.into_pieces(self.config.data_segment.min(LOGIN_SEGMENT));
            }
        }
        if self.requests >= self.config.max_requests {
            return Err(LoginError::TooManyRequests(self.config.max_requests));
        }
        self.state = state;
        let (request, data) = self.next_request();
        Ok(InitiatorStep::Send(request, data))
    }

    fn check_header(&mut self, stage: Stage, response: &LoginResponse) -> Result<(), LoginError> {
        if response.itt != self.config.itt {
            return Err(LoginError::FieldChanged("the Initiator Task Tag"));
        }
        if response.version_active != 0 {
            return Err(LoginError::Version { min: response.version_active });
        }
        if response.csg != stage {
            return Err(LoginError::Protocol(Misbehavior::ResponseOfOtherStage { got: response.csg, expected: stage }));
        }
        // RFC 7143 6.3, 11.13.6: a target grants at most what was asked for.
        if let Some(next) = response.nsg {
            let Some(asked) = self.asked else {
                return Err(LoginError::Protocol(Misbehavior::LoginTransitionUnasked(next)));
            };
            if next <= stage || next > asked {
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

    /// The keys of a whole text; what the target declares is kept, and what is not understood is answered.
    fn sort_keys<'t>(
        &mut self,
        text: &'t TextBuffer,
        stage: Stage,
        out: &mut TextWriter,
    ) -> Result<Keys<'t>, LoginError> {
        let secure = stage == Stage::SecurityNegotiation;
        let mut keys = Keys::default();
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
                    take_declaration_answer(key, pair.value)?;
                }
                Some(Key::AuthMethod) if secure => {
                    if keys.method.replace(pair.value).is_some() {
                        return Err(KeyError::Repeated(Key::AuthMethod).into());
                    }
                }
                Some(Key::ChapA | Key::ChapI | Key::ChapC | Key::ChapN | Key::ChapR) if secure => keys.chap.push(pair),
                // RFC 7143 6.3, 12: a key out of its stage is a protocol error.
                Some(key) if secure => {
                    return Err(KeyError::Stage { key, stage: "the SecurityNegotiation stage" }.into());
                }
                None if secure => {
                    if pair.value != NOT_UNDERSTOOD {
                        out.push(pair.key, NOT_UNDERSTOOD);
                    }
                }
                _ => keys.operational.push(pair),
            }
        }
        Ok(keys)
    }

    fn establish(&mut self, parameters: Parameters, response: &LoginResponse) -> Result<InitiatorStep, LoginError> {
        Ok(InitiatorStep::Established(Box::new(InitiatorGrant {
            parameters,
            // RFC 7143 11.13.3: the TSIH MUST NOT be zero. It is needed to add a connection to a session alone, so that
            // one whose target tells none works all the same.
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

/// Who this is, and what it wants.
fn introduce(config: &InitiatorLoginConfig, text: &mut TextWriter) {
    text.push(Key::InitiatorName.name(), &config.initiator_name);
    if let Some(alias) = &config.initiator_alias {
        text.push(Key::InitiatorAlias.name(), alias);
    }
    let session_type = match (config.session_type, &config.target_name) {
        (SessionType::Discovery, _) => "Discovery",
        (SessionType::Normal, Some(name)) => {
            text.push(Key::TargetName.name(), name);
            "Normal"
        }
        (SessionType::Normal, None) => "Normal",
    };
    // RFC 7143 13.21: LO.
    if config.tsih == 0 {
        text.push(Key::SessionType.name(), session_type);
    }
}

/// The target may not send our keys, but may say that it cannot make sense of one.
fn take_declaration_answer(key: Key, value: &str) -> Result<(), LoginError> {
    match value {
        NOT_UNDERSTOOD if key.spec().later => Ok(()),
        NOT_UNDERSTOOD => Err(KeyError::NotUnderstood(key).into()),
        REJECT => Err(KeyError::Rejected { key, offered: String::new() }.into()),
        IRRELEVANT => Ok(()),
        _ => Err(KeyError::Sender(key).into()),
    }
}
