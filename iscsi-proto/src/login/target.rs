//! The target's side of login.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::error::LoginError;
use super::security::Authentication;
use super::{Authority, Identity, JoinedSession, Refusal};
use crate::chap::{ChapPolicy, ChapTarget};
use crate::keys::{Key, KeyError, Senders, shown};
use crate::misbehavior::Misbehavior;
use crate::parameters::Parameters;
use crate::pdu::{Bhs, LoginRequest, LoginResponse, LoginStatus, Opcode, Stage};
use crate::serial::Serial;
use crate::text::{NOT_UNDERSTOOD, TextBuffer, TextError, TextLimits, TextPieces, TextWriter};

mod states;

use states::{Established, Keys, Next, Opening, State};

/// The data segments of login: the default MaxRecvDataSegmentLength holds (RFC 7143 6.3).
pub(super) const LOGIN_SEGMENT: usize = 8192;
/// The most bytes of an iSCSI name (RFC 7143 4.2.7.1).
const MAX_NAME: usize = 223;

/// The limits of a [`TargetLogin`].
#[derive(Debug, Clone)]
pub struct TargetLoginConfig {
    /// Commands that a new session may have outstanding: MaxCmdSN - ExpCmdSN + 1; 128 by default, at least 1.
    pub command_window: u32,
    /// What CHAP accepts.
    pub chap: ChapPolicy,
    /// How much text one request may hold, over all its PDUs.
    pub text: TextLimits,
    /// Login Requests until the login is refused; 64 by default. RFC 7143 6.2 asks for six at the least.
    pub max_requests: u32,
    /// The most bytes of a response's data segment; 8192 by default, which is also the most that login allows (RFC 7143
    /// 6.3).
    pub data_segment: usize,
}

impl Default for TargetLoginConfig {
    fn default() -> Self {
        Self {
            command_window: 128,
            chap: ChapPolicy::default(),
            text: TextLimits::default(),
            max_requests: 64,
            data_segment: LOGIN_SEGMENT,
        }
    }
}

/// What a target's login came to: everything that the session starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetGrant {
    /// Who logged in to what.
    pub identity: Identity,
    /// What was negotiated.
    pub parameters: Parameters,
    /// The session's TSIH.
    pub tsih: u16,
    /// The CHAP name that the initiator proved itself with.
    pub user: Option<String>,
    /// StatSN of the first response in the Full Feature Phase.
    pub next_stat_sn: Serial,
    /// ExpCmdSN, which is the CmdSN of the first command (RFC 7143 11.12.8).
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN, as the last response told it.
    pub max_cmd_sn: Serial,
}

/// How a login stands after a request.
#[derive(Debug)]
pub enum LoginOutcome {
    /// It goes on: wait for the next request.
    Continue,
    /// The Full Feature Phase begins behind this response.
    Established(Box<TargetGrant>),
    /// It is refused: send the response, then close the connection (RFC 7143 11.13.5).
    Refused(LoginError),
}

/// The one answer to a Login Request.
#[derive(Debug)]
pub struct LoginReply {
    /// The response.
    pub response: LoginResponse,
    /// Its data segment, at most 8192 bytes.
    pub data: Vec<u8>,
    /// How login stands.
    pub outcome: LoginOutcome,
}

/// The fields of the first request, which stay the same in the whole login phase (RFC 7143 11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fixed {
    isid: [u8; 6],
    tsih: u16,
    itt: u32,
    cid: u16,
    versions: (u8, u8),
}

impl Fixed {
    const fn of(request: &LoginRequest) -> Self {
        Self {
            isid: request.isid,
            tsih: request.tsih,
            itt: request.itt,
            cid: request.cid,
            versions: (request.version_max, request.version_min),
        }
    }

    fn check(&self, other: &Self) -> Result<(), LoginError> {
        let changed = match () {
            () if self.isid != other.isid => "the ISID",
            () if self.tsih != other.tsih => "the TSIH",
            () if self.itt != other.itt => "the Initiator Task Tag",
            () if self.cid != other.cid => "the CID",
            () if self.versions != other.versions => "the versions",
            () => return Ok(()),
        };
        Err(LoginError::FieldChanged(changed))
    }
}

/// Names that the initiator declared.
#[derive(Debug, Default)]
struct Names {
    initiator: Option<String>,
    alias: Option<String>,
    target: Option<String>,
    session_type: Option<String>,
}

/// The target's login machine: every request gets exactly one answer.
///
/// It goes through the stages as the initiator wishes (security, operational, or one of them), asks the [`Authority`]
/// as soon as the names are known, and once more when all is agreed. After a refusal or the end it takes nothing more.
/// Login Requests are bounded in number and text ([`TargetLoginConfig`]); time is the session's to bound.
///
/// ```
/// use iscsi_proto::login::*;
/// use iscsi_proto::parameters::Parameters;
/// use iscsi_proto::pdu::LoginStatus;
///
/// struct Open;
/// impl Authority for Open {
///     fn admit(&self, identity: &Identity) -> Result<Admission, Refusal> {
///         match identity.target_name.as_deref() {
///             Some("iqn.2024-01.com.example:disk") => Ok(Admission {
///                 target_portal_group_tag: Some(1),
///                 target_alias: None,
///                 accounts: Vec::new(),
///                 offer: Offer::default(),
///                 joins: None,
///             }),
///             _ => Err(LoginStatus::NOT_FOUND.into()),
///         }
///     }
///     fn establish(&self, _: &Identity, _: &Parameters) -> Result<u16, Refusal> { Ok(1) }
/// }
///
/// let mut target = TargetLogin::new(TargetLoginConfig::default(), [7; 64]);
/// let wishes = InitiatorLoginConfig::new("iqn.2024-01.com.example:host", "iqn.2024-01.com.example:disk");
/// let mut initiator = InitiatorLogin::new(wishes, [9; 64]);
/// let (request, data) = initiator.first_request();
/// let reply = target.handle_request(&request, &data, &Open);
/// assert!(matches!(reply.outcome, LoginOutcome::Established(_)));
/// let step = initiator.handle_response(&reply.response, &reply.data).unwrap();
/// assert!(matches!(step, InitiatorStep::Established(_)));
/// ```
#[derive(Debug)]
pub struct TargetLogin {
    config: TargetLoginConfig,
    /// What the first request said, and the stage that it began with.
    first: Option<(Fixed, Stage)>,
    requests: u32,
    next_stat_sn: Serial,
    incoming: TextBuffer,
    outgoing: TextPieces,
    names: Names,
    state: State,
}

/// A response under way.
struct ResponseDraft {
    incomplete: bool,
    csg: Stage,
    nsg: Option<Stage>,
    data: Vec<u8>,
    /// ExpCmdSN and MaxCmdSN.
    window: (Serial, Serial),
    established: Option<Established>,
}

impl TargetLogin {
    /// Waits for the first request. `entropy` comes from a cryptographic random number generator and is used for this
    /// login only: CHAP's challenge and the first StatSN are made of it.
    #[must_use]
    pub fn new(config: TargetLoginConfig, entropy: [u8; 64]) -> Self {
        let (challenge, rest) = entropy.split_first_chunk().map_or(([0; 32], [].as_slice()), |(c, r)| (*c, r));
        let (word, rest) = rest.split_first_chunk().map_or(([0; 4], [].as_slice()), |(w, r)| (*w, r));
        let identifier = rest.first().copied().unwrap_or_default();
        Self {
            first: None,
            requests: 0,
            next_stat_sn: Serial(u32::from_be_bytes(word)),
            incoming: TextBuffer::new(config.text),
            outgoing: TextPieces::default(),
            names: Names::default(),
            state: State::Opening(Opening(Authentication::Unspoken(ChapTarget::new(
                config.chap.clone(),
                identifier,
                challenge,
            )))),
            config,
        }
    }

    /// A PDU came: a Login Request, or something that does not belong here.
    ///
    /// `None` means to close the connection without an answer: RFC 7143 4.2.3 wants that for a first PDU that is no Login
    /// Request. A later one is refused with the status "invalid during login", a malformed request with "initiator
    /// error".
    pub fn handle_pdu(&mut self, bhs: &Bhs, data: &[u8], authority: &dyn Authority) -> Option<LoginReply> {
        match LoginRequest::parse(bhs) {
            Ok(request) => Some(self.handle_request(&request, data, authority)),
            Err(_) if bhs.opcode() == Ok(Opcode::LoginRequest) => {
                let (fixed, _) = self.address_of(bhs);
                let error = LoginError::Protocol(Misbehavior::LoginHeader);
                Some(self.refuse(fixed, error))
            }
            Err(_) => {
                let (fixed, started) = self.address_of(bhs);
                started.then(|| self.refuse(fixed, LoginError::NotALogin))
            }
        }
    }

    /// A PDU came that cannot be taken, and `why`: the login is refused.
    ///
    /// ```
    /// use iscsi_proto::login::{LoginError, LoginOutcome, TargetLogin, TargetLoginConfig};
    /// use iscsi_proto::misbehavior::Misbehavior;
    /// use iscsi_proto::pdu::LoginRequest;
    /// let mut target = TargetLogin::new(TargetLoginConfig::default(), [7; 64]);
    /// let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
    /// let why = Misbehavior::LoginTextTooLong { len: 9000, limit: 8192 };
    /// let reply = target.refuse_pdu(&request.emit(), why.into());
    /// assert!(matches!(reply.outcome, LoginOutcome::Refused(LoginError::Protocol(_))));
    /// ```
    pub fn refuse_pdu(&mut self, bhs: &Bhs, why: LoginError) -> LoginReply {
        let (to, _) = self.address_of(bhs);
        self.refuse(to, why)
    }

    /// Whom a refusal of this PDU is addressed to, and whether login has begun.
    fn address_of(&self, bhs: &Bhs) -> (Fixed, bool) {
        let unknown = Fixed { isid: [0; 6], tsih: 0, itt: bhs.itt(), cid: 0, versions: (0, 0) };
        let fixed = self.first.map_or(unknown, |(fixed, _)| fixed);
        (Fixed { itt: bhs.itt(), ..fixed }, self.first.is_some())
    }

    /// A Login Request came, with its data segment.
    pub fn handle_request(&mut self, request: &LoginRequest, data: &[u8], authority: &dyn Authority) -> LoginReply {
        let draft = match self.advance(request, data, authority) {
            Ok(draft) => draft,
            Err(error) => return self.refuse(Fixed::of(request), error),
        };
        let (exp_cmd_sn, max_cmd_sn) = draft.window;
        let response = LoginResponse {
            incomplete: draft.incomplete,
            csg: draft.csg,
            nsg: draft.nsg,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            // RFC 7143 11.13.3: a new session's TSIH comes in the last response only.
            tsih: draft.established.as_ref().map_or(request.tsih, |established| established.tsih),
            itt: request.itt,
            stat_sn: self.next_stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
            status: LoginStatus::SUCCESS,
        };
        self.next_stat_sn = self.next_stat_sn.next();
        let outcome = match draft.established {
            Some(Established { identity, parameters, tsih, user }) => {
                let next_stat_sn = self.next_stat_sn;
                let grant = TargetGrant { identity, parameters, tsih, user, next_stat_sn, exp_cmd_sn, max_cmd_sn };
                LoginOutcome::Established(Box::new(grant))
            }
            None => LoginOutcome::Continue,
        };
        LoginReply { response, data: draft.data, outcome }
    }

    fn advance(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        authority: &dyn Authority,
    ) -> Result<ResponseDraft, LoginError> {
        let (fixed, csg) = self.check_header(request)?;
        let mut state = core::mem::replace(&mut self.state, State::Over);
        let mut draft = ResponseDraft {
            incomplete: false,
            csg,
            nsg: None,
            data: Vec::new(),
            window: (Serial(0), Serial(0)),
            established: None,
        };
        if self.outgoing.has_more() {
            // RFC 7143 6.2: our C bit is answered with no data.
            if !data.is_empty() || request.incomplete {
                return Err(LoginError::Protocol(Misbehavior::TextWhileAnswerContinues));
            }
        } else {
            self.incoming.push(data)?;
            if !request.incomplete {
                let text = core::mem::replace(&mut self.incoming, TextBuffer::new(self.config.text));
                let mut out = TextWriter::new();
                let late = !matches!(state, State::Opening(_));
                let keys = self.sort_keys(&text, csg, late, &mut out)?;
                state = state.take_text(keys, csg, (fixed, &self.names), authority, &mut out)?;
                let limit = self.config.text.max_bytes.max(LOGIN_SEGMENT);
                if out.as_bytes().len() > limit {
                    // Many keys that mean nothing: the answer is not to be kept for who does not fetch it.
                    return Err(TextError::TooLong { limit }.into());
                }
                self.outgoing = out.into_pieces(self.config.data_segment.min(LOGIN_SEGMENT));
            }
        }
        draft.window = self.window(request, state.joins());
        // RFC 7143 6.2: a text that is not whole MUST be answered without data.
        if !request.incomplete {
            let (piece, incomplete) = self.outgoing.next_piece();
            draft.incomplete = incomplete;
            draft.data = piece.to_vec();
            if !incomplete {
                self.outgoing = TextPieces::default();
            }
        }
        // RFC 7143 11.13.7: no transition with more to come.
        match request.nsg.filter(|_| !request.incomplete && !draft.incomplete) {
            None => self.state = state,
            Some(to) => match state.leave_for(to, authority)? {
                Next::Stay(state) => self.state = state,
                Next::Enter(state) => {
                    draft.nsg = Some(to);
                    self.state = state;
                }
                Next::End(established) => {
                    draft.nsg = Some(to);
                    draft.established = Some(established);
                }
            },
        }
        Ok(draft)
    }

    /// What the first request said, and the stage that login is in.
    fn check_header(&mut self, request: &LoginRequest) -> Result<(Fixed, Stage), LoginError> {
        if matches!(self.state, State::Over) {
            return Err(LoginError::Over);
        }
        let came = Fixed::of(request);
        let (first, began_with) = match &self.first {
            Some((first, stage)) => {
                first.check(&came)?;
                (*first, *stage)
            }
            None => {
                // RFC 7143 11.12.4: this side speaks version 0 only.
                if request.version_min > 0 {
                    return Err(LoginError::Version { min: request.version_min });
                }
                *self.first.insert((came, request.csg))
            }
        };
        self.requests += 1;
        if self.requests > self.config.max_requests {
            return Err(LoginError::TooManyRequests(self.config.max_requests));
        }
        let stage = self.state.stage().unwrap_or(began_with);
        if request.csg != stage {
            let misbehavior = Misbehavior::RequestOfOtherStage { got: request.csg, expected: stage };
            return Err(LoginError::Protocol(misbehavior));
        }
        // RFC 7143 6.3: the table of transitions has no way back and none to the same stage.
        match request.nsg {
            Some(to) if to <= stage => Err(LoginError::Protocol(Misbehavior::LoginTransition { from: stage, to })),
            _ => Ok((first, stage)),
        }
    }

    /// The keys of a whole text; names are kept, and what is not understood is answered. `late` says that it is not the
    /// first text.
    fn sort_keys<'t>(
        &mut self,
        text: &'t TextBuffer,
        stage: Stage,
        late: bool,
        out: &mut TextWriter,
    ) -> Result<Keys<'t>, LoginError> {
        let mut keys = Keys::default();
        for pair in text.pairs()? {
            match Key::from_name(pair.key) {
                Some(key @ (Key::InitiatorName | Key::InitiatorAlias | Key::TargetName | Key::SessionType)) => {
                    self.take_name(key, pair.value, late)?;
                }
                // Not kept, and no answer is due (RFC 7143 13.26.2).
                Some(Key::NodeArchitecture) => {}
                Some(key) if key.spec().senders == Senders::Target => return Err(KeyError::Sender(key).into()),
                Some(Key::AuthMethod | Key::ChapA | Key::ChapI | Key::ChapC | Key::ChapN | Key::ChapR)
                    if stage == Stage::SecurityNegotiation =>
                {
                    keys.security.push(pair);
                }
                // RFC 7143 6.3, 12: a key out of its stage is a protocol error.
                Some(key) if stage == Stage::SecurityNegotiation => {
                    return Err(KeyError::Stage { key, stage: "the SecurityNegotiation stage" }.into());
                }
                None if stage == Stage::SecurityNegotiation => {
                    if pair.value != NOT_UNDERSTOOD {
                        out.push(pair.key, NOT_UNDERSTOOD);
                    }
                }
                _ => keys.operational.push(pair),
            }
        }
        Ok(keys)
    }

    /// RFC 7143 13.5 and others forbid a name to be declared again. Peers that repeat the same one after the security
    /// stage are tolerated; another one is refused, and so is a new one that comes `late`, behind the first text.
    fn take_name(&mut self, key: Key, value: &str, late: bool) -> Result<(), LoginError> {
        let declared = match key {
            Key::InitiatorName => &mut self.names.initiator,
            Key::InitiatorAlias => &mut self.names.alias,
            Key::TargetName => &mut self.names.target,
            _ => &mut self.names.session_type,
        };
        match declared {
            Some(before) if before == value => return Ok(()),
            Some(_) => return Err(KeyError::Repeated(key).into()),
            None if late && key != Key::InitiatorAlias => {
                // RFC 7143 6.3: the names come with the first request.
                return Err(LoginError::Protocol(Misbehavior::LateName));
            }
            None => {}
        }
        let most = if key == Key::InitiatorAlias { 255 } else { MAX_NAME };
        if value.len() > most || value.is_empty() && key != Key::InitiatorAlias {
            return Err(KeyError::Value { key, value: shown(value) }.into());
        }
        *declared = Some(value.to_string());
        Ok(())
    }

    fn window(&self, request: &LoginRequest, joins: Option<&JoinedSession>) -> (Serial, Serial) {
        match joins {
            Some(joined) => (joined.exp_cmd_sn, joined.max_cmd_sn),
            // RFC 7143 11.12.8: the leading login's CmdSN is the target's ExpCmdSN; login requests are immediate and
            // take none.
            None => (request.cmd_sn, request.cmd_sn.advance(self.config.command_window.max(1) - 1)),
        }
    }

    fn refuse(&mut self, to: Fixed, error: LoginError) -> LoginReply {
        self.state = State::Over;
        let mut data = TextWriter::new();
        // RFC 7143 11.13.5: a redirection MUST tell where to.
        if let LoginError::Denied(Refusal { target_address: Some(address), .. }) = &error {
            data.push(Key::TargetAddress.name(), address);
        }
        let response = LoginResponse {
            incomplete: false,
            // RFC 7143 6.3.1: T, CSG and NSG are reserved in a reject.
            csg: Stage::SecurityNegotiation,
            nsg: None,
            version_max: 0,
            version_active: 0,
            isid: to.isid,
            tsih: to.tsih,
            itt: to.itt,
            stat_sn: Serial(0),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
            status: error.status(),
        };
        LoginReply { response, data: data.as_bytes().to_vec(), outcome: LoginOutcome::Refused(error) }
    }
}
