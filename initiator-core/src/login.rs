//! Login as a connection runs it: text in, text out, with this session's names, secrets and wishes (RFC 7143 6, 11.12, 11.13).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use iscsi_proto::chap::{self, ChapInitiator, ChapPolicy, InitiatorStep, TargetProof};
use iscsi_proto::keys::{Negotiator, NegotiatorConfig, Phase, Role};
use iscsi_proto::login::{LoginError, Offer};
use iscsi_proto::parameters::{Parameters, SessionType};
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, Stage};
use iscsi_proto::serial::Serial;
use iscsi_proto::text::{Pair, TextBuffer, TextLimits, TextWriter};

use crate::connection::LoginSummary;
use crate::engine::StartNumbers;
use crate::error::Error;
use crate::url::Credentials;

/// Requests after which a login that does not come to its end is given up.
const MOST_REQUESTS: u32 = 32;
/// CmdSN of a new session's first command; login requests show it and do not take it (RFC 7143 11.12.8).
const FIRST_CMD_SN: Serial = Serial(1);

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
    /// Offer MD5 alone. Some targets cannot read a list of algorithms, and some mean SHA-1 by the number of SHA-256.
    pub md5_only: bool,
    /// Bytes of a cryptographic random number generator for this one login: the challenge of mutual CHAP.
    pub random: [u8; 32],
}

impl LoginConfig {
    /// Finds what no target could accept.
    ///
    /// # Errors
    /// [`Error::Config`] with what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        let name = |what: &str, name: &str| {
            iscsi_proto::name::IscsiName::new(name)
                .map(|_| ())
                .map_err(|error| Error::Config(alloc::format!("the {what} name: {error}")))
        };
        name("initiator's", &self.initiator_name)?;
        if let Some(target) = &self.target_name {
            name("target's", target)?;
        }
        match (&self.credentials, &self.target_credentials) {
            (None, Some(_)) => Err(Error::Config(
                "mutual CHAP needs both sides' secrets, and there is no user and secret of our own".to_string(),
            )),
            _ => Ok(()),
        }
    }
}

/// What a response led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The next request.
    Send(Bhs, Vec<u8>),
    /// The Full Feature Phase begins.
    Done(LoginSummary, StartNumbers),
    /// The target serves at this address.
    Moved(String),
}

/// A login under way.
#[derive(Debug)]
pub(crate) struct Login {
    config: LoginConfig,
    stage: Stage,
    chap: Option<ChapInitiator>,
    negotiator: Negotiator,
    answer: TextBuffer,
    offered: bool,
    asked_to_leave: bool,
    exp_stat_sn: Option<Serial>,
    requests: u32,
    tpgt: Option<u16>,
    alias: Option<String>,
}

fn push(out: &mut TextWriter, pairs: &chap::KeyValues) {
    for (key, value) in chap::as_pairs(pairs) {
        out.push(key, value);
    }
}

impl Login {
    /// The machine and its first request.
    pub(crate) fn begin(config: LoginConfig) -> (Self, Bhs, Vec<u8>) {
        let negotiator = Negotiator::new(NegotiatorConfig {
            role: Role::Initiator,
            phase: Phase::Login,
            session_type: config.session_type,
            leading: true,
            offer: config.offer.clone(),
            before: Parameters::default(),
        });
        let stage = match config.credentials {
            Some(_) => Stage::SecurityNegotiation,
            // Nothing to prove: RFC 7143 6.2.1 lets the security stage be skipped, and a target that minds says so.
            None => Stage::LoginOperationalNegotiation,
        };
        let mut login = Self {
            config,
            stage,
            chap: None,
            negotiator,
            answer: TextBuffer::new(TextLimits::default()),
            offered: false,
            asked_to_leave: false,
            exp_stat_sn: None,
            requests: 0,
            tpgt: None,
            alias: None,
        };
        let mut text = TextWriter::new();
        text.push("InitiatorName", &login.config.initiator_name);
        if let Some(alias) = &login.config.initiator_alias {
            text.push("InitiatorAlias", alias);
        }
        match &login.config.target_name {
            Some(name) => text.push("TargetName", name),
            None => text.push("SessionType", "Discovery"),
        }
        if login.config.target_name.is_some() {
            text.push("SessionType", "Normal");
        }
        let leave = match stage {
            Stage::SecurityNegotiation => {
                let mutual = login.config.target_credentials.is_some();
                text.push("AuthMethod", if mutual { "CHAP" } else { "CHAP,None" });
                false
            }
            _ => login.offer(&mut text),
        };
        let (bhs, text) = login.request(&text, leave);
        (login, bhs, text)
    }

    /// Writes the offers of the operational stage once; we would leave it with them.
    fn offer(&mut self, text: &mut TextWriter) -> bool {
        if !core::mem::replace(&mut self.offered, true) {
            self.negotiator.offer(text);
        }
        true
    }

    fn request(&mut self, text: &TextWriter, leave: bool) -> (Bhs, Vec<u8>) {
        self.requests += 1;
        self.asked_to_leave = leave;
        let next = match self.stage {
            Stage::SecurityNegotiation => Stage::LoginOperationalNegotiation,
            _ => Stage::FullFeaturePhase,
        };
        let request = LoginRequest {
            incomplete: false,
            csg: self.stage,
            nsg: leave.then_some(next),
            version_max: 0,
            version_min: 0,
            isid: self.config.isid,
            tsih: 0,
            itt: 0,
            cid: 0,
            cmd_sn: FIRST_CMD_SN,
            exp_stat_sn: self.exp_stat_sn.unwrap_or_default(),
        };
        (request.emit(), text.as_bytes().to_vec())
    }

    /// Takes a Login Response with its data segment.
    pub(crate) fn handle(&mut self, bhs: &Bhs, data: &[u8]) -> Result<Progress, LoginError> {
        let response = LoginResponse::parse(bhs).map_err(|_| LoginError::NotALogin)?;
        if response.status.class() == 1 {
            let mut text = TextBuffer::new(TextLimits::default());
            text.push(data)?;
            let address = text.pairs()?.find(|pair| pair.key == "TargetAddress").map(|pair| pair.value.to_string());
            return address.map(Progress::Moved).ok_or(LoginError::Refused { status: response.status });
        }
        if response.status.class() != 0 {
            return Err(LoginError::Refused { status: response.status });
        }
        if response.itt != 0 || response.isid != self.config.isid {
            return Err(LoginError::FieldChanged("the Initiator Task Tag or the ISID"));
        }
        if self.exp_stat_sn.is_some_and(|expected| expected != response.stat_sn) {
            return Err(LoginError::Protocol("a login response has an unexpected StatSN"));
        }
        self.exp_stat_sn = Some(response.stat_sn.next());
        if response.csg != self.stage {
            return Err(LoginError::Protocol("a login response is of another stage than its request"));
        }
        if response.nsg.is_some() && !self.asked_to_leave {
            return Err(LoginError::Protocol("the target left a stage unasked"));
        }
        if self.requests >= MOST_REQUESTS {
            return Err(LoginError::TooManyRequests(MOST_REQUESTS));
        }
        self.answer.push(data)?;
        if response.incomplete {
            // RFC 7143 6.2: an empty request asks for the rest.
            let (bhs, text) = self.request(&TextWriter::new(), false);
            return Ok(Progress::Send(bhs, text));
        }
        let answer = core::mem::replace(&mut self.answer, TextBuffer::new(TextLimits::default()));
        let pairs: Vec<Pair<'_>> = answer.pairs()?.collect();
        self.note(&pairs);
        let mut text = TextWriter::new();
        let mut leave = match self.stage {
            Stage::SecurityNegotiation => self.authenticate(&pairs, response.nsg.is_some(), &mut text)?,
            _ => self.negotiate(&pairs, &mut text)?,
        };
        if let Some(next) = response.nsg {
            if next == Stage::FullFeaturePhase {
                return self.finish(&response);
            }
            self.stage = next;
            leave = self.offer(&mut text);
        }
        let (bhs, text) = self.request(&text, leave);
        Ok(Progress::Send(bhs, text))
    }

    /// What the target tells about itself.
    fn note(&mut self, pairs: &[Pair<'_>]) {
        for pair in pairs {
            match pair.key {
                "TargetPortalGroupTag" => self.tpgt = pair.value.parse().ok().or(self.tpgt),
                "TargetAlias" => self.alias = Some(pair.value.to_string()),
                _ => {}
            }
        }
    }

    /// A step of the security stage; true if we would leave it.
    fn authenticate(&mut self, pairs: &[Pair<'_>], left: bool, text: &mut TextWriter) -> Result<bool, LoginError> {
        let plain = || pairs.iter().map(|pair| (pair.key, pair.value));
        if let Some(chap) = &mut self.chap {
            let has_keys = pairs.iter().any(|pair| pair.key.starts_with("CHAP_"));
            let mut responded = false;
            if has_keys && let InitiatorStep::Send(keys) = chap.handle(plain())? {
                push(text, &keys);
                responded = true;
            }
            // The T bit goes with the response, mutual or not (RFC 7143 appendix B); the target's own proof comes with its answer, and without it
            // the stage is not left.
            if left && !chap.is_satisfied() {
                return Err(LoginError::TargetNotAuthenticated);
            }
            return Ok(responded || chap.is_satisfied());
        }
        match pairs.iter().find(|pair| pair.key == "AuthMethod").map(|pair| pair.value) {
            Some("CHAP") => {
                let mut chap = self.chap_machine()?;
                push(text, &chap.start()?);
                self.chap = Some(chap);
                Ok(false)
            }
            Some("None") if self.config.target_credentials.is_none() => Ok(true),
            Some(other) => Err(LoginError::AuthMethodAnswer(other.to_string())),
            None => Err(LoginError::MissingKey("AuthMethod")),
        }
    }

    fn chap_machine(&self) -> Result<ChapInitiator, LoginError> {
        // A machine for CHAP is made only where there are credentials.
        let Some(own) = &self.config.credentials else { return Err(LoginError::AuthenticationRequired) };
        let credentials = chap::Credentials::new(own.user.clone(), own.secret.clone())?;
        let [identifier, ..] = self.config.random;
        // A secret that is shorter than the RFC's 96 bits is the target's choice to refuse.
        let mut policy = ChapPolicy { min_secret: 1, ..ChapPolicy::default() };
        if self.config.md5_only {
            policy.algorithms = alloc::vec![chap::Algorithm::Md5];
        }
        let chap = ChapInitiator::new(policy, credentials, self.config.random, identifier);
        Ok(match &self.config.target_credentials {
            None => chap,
            Some(target) => {
                let name = Some(target.user.clone()).filter(|name| !name.is_empty());
                chap.require_target(TargetProof { name, secret: target.secret.clone() })
            }
        })
    }

    /// A step of the operational stage; true if we would leave it.
    fn negotiate(&mut self, pairs: &[Pair<'_>], text: &mut TextWriter) -> Result<bool, LoginError> {
        let told = ["TargetPortalGroupTag", "TargetAlias", "TargetAddress", "AuthMethod"];
        let keys = pairs.iter().copied().filter(|pair| !told.contains(&pair.key));
        self.negotiator.receive(keys, text)?;
        Ok(true)
    }

    fn finish(&mut self, response: &LoginResponse) -> Result<Progress, LoginError> {
        let parameters = self.negotiator.clone().finish()?;
        let summary = LoginSummary {
            parameters,
            tsih: response.tsih,
            target_portal_group_tag: self.tpgt,
            target_alias: self.alias.take(),
        };
        let numbers = StartNumbers {
            cmd_sn: FIRST_CMD_SN,
            exp_cmd_sn: response.exp_cmd_sn,
            max_cmd_sn: response.max_cmd_sn,
            exp_stat_sn: response.stat_sn.next(),
        };
        Ok(Progress::Done(summary, numbers))
    }
}
