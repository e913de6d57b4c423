//! Sessions as an application holds them.

use std::sync::Arc;

use iscsi_memory::{Buf, Payload};

use iscsi_proto::isid::Isid;
use iscsi_proto::parameters::{Parameters, SessionType};
use iscsi_proto::pdu::{Residual, TaskFunction, TaskResponse};
use iscsi_proto::serial::Serial;
use scsi_proto::command::ReportLuns;
use scsi_proto::{CdbBuf, Lun, Sense, report};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::connector::{self, Connector, System};
use super::discovery;
use super::disk::Disk;
use super::events::Events;
use super::info::{Authentication, Discovered, SessionInfo, SessionStats};
use super::mailbox::{Mailbox, Shared};
use super::runner::{Plan, run};
use super::transport::Carrier;
use crate::application::{Control, ControlAnswer};
use crate::command::{Command, Completion, Failure, Repeat, Short};
use crate::config::SessionConfig;
use crate::engine::Engine;
use crate::error::{ConfigError, Error};
use crate::login::LoginConfig;
use crate::own_name::default_initiator_name;
use crate::url::{Portal, Url};

/// The session as all its handles share it; the last one to go logs out.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    target_name: String,
    /// Where the session's task runs.
    runtime: tokio::runtime::Handle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.log_out();
    }
}

/// A session to one target: clones share it. It lives in a task of the runtime that [`Session::connect`] was called on,
/// and ends with a logout when it is asked to or when its last handle (disks included) is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), initiator_core::Error> {
/// use initiator_core::{Session, Url};
/// let url: Url = "iscsi://127.0.0.1/iqn.2004-10.com.example:disk/0".parse()?;
/// let session = Session::from_url(&url).await?;
/// let disk = session.disk(0).await?;
/// let mut block = vec![0; disk.block_size() as usize];
/// disk.read(0, &mut block).await?;
/// session.logout().await
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

/// Ends the task of a session that nobody waits for before it is logged in, and with it its connection.
struct EndOnDrop(Option<AbortHandle>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// The data of a raw command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer<'a> {
    /// None.
    None,
    /// These bytes go to the target.
    Out(&'a [u8]),
    /// At most so many bytes come from the target.
    In(usize),
}

/// The answer to a raw command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status code.
    pub status: u8,
    /// Sense data.
    pub sense: Option<Sense>,
    /// Residual.
    pub residual: Residual,
    /// Bytes of its data that the target can have taken.
    pub taken: u32,
    /// The data that came.
    pub data: Vec<u8>,
}

/// Fills the configuration's gaps and makes a plan of it.
pub(super) fn plan(config: &SessionConfig, connector: &impl Connector) -> Result<Plan, Error> {
    let [a, b, c, d, e] = connector::random(connector)?;
    let isid = config.isid.unwrap_or(Isid::random([a, b, c], u16::from_be_bytes([d, e])).to_bytes());
    let plan = Plan {
        portal: config.portal.clone(),
        portals: config.portals.clone(),
        login: LoginConfig {
            initiator_name: config.initiator_name.clone().map_or_else(default_initiator_name, Ok)?,
            initiator_alias: config.initiator_alias.clone(),
            target_name: Some(config.target_name.clone()),
            session_type: SessionType::Normal,
            isid,
            credentials: config.credentials.clone(),
            target_credentials: config.target_credentials.clone(),
            offer: config.offer.clone(),
            auth: config.auth,
            md5_only: false,
            cmd_sn: Serial(1),
            // The runner draws those of each login.
            random: [0; 64],
        },
        timeouts: config.timeouts,
        reconnect: config.reconnect,
        commands: config.limits.commands,
        transport: config.transport,
        iser: config.iser,
        seed: u64::from_ne_bytes(connector::random(connector)?),
    };
    plan.login.check()?;
    Ok(plan)
}

impl Session {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Connection and login errors of [`Error`]. The first connection is tried once.
    ///
    /// Dropping the future ends the connection at once, wherever the login stands.
    pub async fn connect(config: SessionConfig) -> Result<Self, Error> {
        Self::connect_by(System, config).await
    }

    /// [`connect`](Self::connect) with connections that `connector` brings; those over RDMA devices are the system's.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn connect_by(connector: impl Connector, config: SessionConfig) -> Result<Self, Error> {
        let plan = plan(&config, &connector)?;
        let shared = Shared::new(&config.limits, &config.timeouts);
        let handle = Arc::new(Handle {
            shared: shared.clone(),
            target_name: config.target_name.clone(),
            runtime: tokio::runtime::Handle::current(),
        });
        let mut mailbox = Mailbox::new(shared.clone(), &config.limits);
        let (sender, ready) = oneshot::channel();
        mailbox.ready = Some(sender);
        let engine = Engine::new(mailbox, config.timeouts, config.limits, plan.seed);
        let task = tokio::spawn(async move {
            let draft = |mailbox: &mut Mailbox, carrier: Carrier| {
                mailbox.reporter.carried_by(&carrier);
                mailbox.draft = Some(SessionInfo {
                    target_name: config.target_name.clone(),
                    target_alias: None,
                    portal: carrier.peer,
                    local: carrier.local,
                    transport: carrier.transport,
                    provider: carrier.provider,
                    device: carrier.device,
                    read_depth: None,
                    tpgt: None,
                    initiator_name: plan.login.initiator_name.clone(),
                    isid: plan.login.isid,
                    tsih: 0,
                    cid: 0,
                    authentication: match (&config.credentials, &config.target_credentials) {
                        (None, _) => Authentication::None,
                        (_, None) => Authentication::Chap,
                        _ => Authentication::MutualChap,
                    },
                    parameters: Parameters::default(),
                });
            };
            let (mut engine, result) = run(&plan, &connector, engine, Some(&shared.ending), draft).await;
            // From here on nothing new is accepted; what is still there completes.
            shared.end(result.err().unwrap_or(Error::LoggedOut));
            engine.fail_all(Failure::SessionEnded, iscsi_driver::Clock::process().now());
        });
        let mut unwanted = EndOnDrop(Some(task.abort_handle()));
        // The sender goes away without a word, and after the reason is known, when the session ends before its first
        // login is done.
        if ready.await.is_err() {
            return Err(handle.shared.end_reason().unwrap_or(Error::LoggedOut));
        }
        unwanted.0 = None;
        Ok(Self { handle })
    }

    /// Connects to the target of a URL with all else by default.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn from_url(url: &Url) -> Result<Self, Error> {
        Self::connect(SessionConfig::from_url(url)).await
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(super) fn shared_handle(&self) -> Arc<Shared> {
        self.handle.shared.clone()
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.handle.runtime
    }

    /// Whether it is over.
    pub(super) fn has_ended(&self) -> bool {
        self.shared().end_reason().is_some()
    }

    /// Whether both are handles of one session.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    pub(super) fn target_name(&self) -> &str {
        &self.handle.target_name
    }

    /// The session as it stands after its last login.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a session has logged in before anybody holds it")]
    pub fn info(&self) -> SessionInfo {
        self.shared().info().expect("a session has logged in before anybody holds it")
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.shared().stats()
    }

    /// What happens in the session from now on, begun by how it stands: [`SessionEvent::LoggedIn`],
    /// [`SessionEvent::Lost`], [`SessionEvent::AttemptFailed`] or [`SessionEvent::Ended`]. There may be any number of
    /// listeners; see [`Events`] for what becomes of a slow one.
    ///
    /// ```no_run
    /// # async fn example(session: initiator_core::Session) {
    /// let mut events = session.events();
    /// tokio::spawn(async move {
    ///     while let Some(event) = events.next().await {
    ///         eprintln!("{event:?}");
    ///     }
    /// });
    /// # }
    /// ```
    ///
    /// [`SessionEvent::LoggedIn`]: crate::SessionEvent::LoggedIn
    /// [`SessionEvent::Lost`]: crate::SessionEvent::Lost
    /// [`SessionEvent::AttemptFailed`]: crate::SessionEvent::AttemptFailed
    /// [`SessionEvent::Ended`]: crate::SessionEvent::Ended
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared().listeners.add()
    }

    /// The LUNs that the target has for us (REPORT LUNS), ascending. Well-known ones and those of other levels are left
    /// out.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn luns(&self) -> Result<Vec<u16>, Error> {
        let mut room = 16 << 10;
        loop {
            let cdb = ReportLuns { select_report: 0, allocation_length: room }.to_cdb();
            let answer = self.query(Lun::ZERO, cdb, room as usize).await?;
            let needed = report::luns_length(&answer).saturating_add(8);
            if needed > u64::from(room) && room < MOST_LUN_BYTES {
                room = u32::try_from(needed).unwrap_or(MOST_LUN_BYTES).min(MOST_LUN_BYTES);
                continue;
            }
            let luns = report::parse_luns(&answer)
                .map_err(|error| Error::BadAnswer { command: "REPORT LUNS", source: Arc::new(error) })?;
            self.shared().listed(luns.iter().filter_map(|lun| lun.as_ref().ok()).copied());
            let mut luns: Vec<u16> = luns.into_iter().filter_map(|lun| lun.ok()?.number()).collect();
            luns.sort_unstable();
            luns.dedup();
            return Ok(luns);
        }
    }

    /// The disk at a LUN. Above 255 the LUN is spelled as the target lists it (SAM-5 4.7.6: 01 00 or 41 00 for 256),
    /// below too where the target does not know the common spelling.
    ///
    /// # Errors
    /// [`Error::NoSuchLun`], [`Error::NotADisk`], and what its inquiry fails with.
    pub async fn disk(&self, lun: u16) -> Result<Disk, Error> {
        match Disk::open(self.clone(), self.lun(lun).await?).await {
            Err(Error::NoSuchLun { .. }) if lun <= 0xff => {
                let asked = self.shared().spelled(to_lun(lun)?);
                let listed = self.luns().await.is_ok_and(|luns| luns.contains(&lun));
                let spelled = self.shared().spelled(asked);
                if !listed || spelled.is_spelled_as(asked) {
                    return Err(Error::NoSuchLun { target: self.target_name().to_owned(), lun });
                }
                Disk::open(self.clone(), spelled).await
            }
            result => result,
        }
    }

    /// A LUN as the target spells it.
    async fn lun(&self, number: u16) -> Result<Lun, Error> {
        let plain = to_lun(number)?;
        let known = self.shared().spelled(plain);
        if number > 0xff && known.is_spelled_as(plain) {
            // A target that lists nothing may know the common spelling all the same.
            let _ = self.luns().await;
        }
        Ok(self.shared().spelled(plain))
    }

    /// Sends any CDB. The answer is reported as it comes, unit attentions and BUSY included. After a lost connection it
    /// is sent again only if its operation code allows it ([`Repeat::ByOpcode`]).
    ///
    /// # Errors
    /// [`Error::Command`] when no status came, [`Error::Config`] for a CDB that is none.
    pub async fn command(&self, lun: u16, cdb: &[u8], transfer: Transfer<'_>) -> Result<Answer, Error> {
        self.command_with(lun, cdb, transfer, Repeat::ByOpcode).await
    }

    /// [`command`](Self::command) with the caller's word on whether it may be sent again when its fate is not known.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn command_with(
        &self,
        lun: u16,
        cdb: &[u8],
        transfer: Transfer<'_>,
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        let cdb = CdbBuf::new(cdb).map_err(ConfigError::Cdb)?;
        let lun = self.lun(lun).await?;
        let mut command = Command::new(0, lun, cdb);
        command.repeat = repeat;
        command.retry = false;
        match transfer {
            Transfer::None => {}
            Transfer::Out(data) => {
                let mut buf = self.shared().take_buf(data.len());
                buf.copy_from_slice(data);
                command.data_out = Some(Payload::Buf(buf)).filter(|_| !data.is_empty());
            }
            Transfer::In(len) => {
                command.data_in = Some(Payload::Buf(self.shared().take_buf(len))).filter(|_| len > 0);
            }
        }
        let completion = self.execute(command).await;
        let outcome = completion.result.map_err(|failure| self.failed(&cdb, lun, failure))?;
        let (data, taken) = (received(&completion).to_vec(), completion.data_out_len);
        self.shared().give_back(completion);
        Ok(Answer { status: outcome.status, sense: outcome.sense, residual: outcome.residual, taken, data })
    }

    pub(super) async fn execute(&self, command: Command) -> Completion {
        self.shared().execute(command).await
    }

    /// A command that asks for data, retried where that helps; anything but GOOD is an error.
    pub(super) async fn query(&self, lun: Lun, cdb: CdbBuf, room: usize) -> Result<Vec<u8>, Error> {
        self.query_with(Command::new(0, lun, cdb), room).await
    }

    /// [`query`](Self::query) with a command that says more than its CDB.
    pub(super) async fn query_with(&self, mut command: Command, room: usize) -> Result<Vec<u8>, Error> {
        let (lun, cdb) = (command.lun, command.cdb);
        command.data_in = Some(Payload::Buf(self.shared().take_buf(room)));
        let completion = self.execute(command).await;
        let result = self.good(&cdb, lun, &completion).map(|()| received(&completion).to_vec());
        self.shared().give_back(completion);
        result
    }

    /// The error of a completion, unless its status is good and all its data were taken.
    pub(super) fn good(&self, cdb: &CdbBuf, lun: Lun, completion: &Completion) -> Result<(), Error> {
        match completion.result {
            Ok(outcome) if outcome.is_good() => match completion.short_out() {
                Some(short) => Err(short_error(cdb, lun, short)),
                None => Ok(()),
            },
            Ok(outcome) => {
                Err(Error::Scsi { opcode: cdb.as_cdb().opcode(), lun: lun.number().unwrap_or_default(), outcome })
            }
            Err(failure) => Err(self.failed(cdb, lun, failure)),
        }
    }

    fn failed(&self, cdb: &CdbBuf, lun: Lun, failure: Failure) -> Error {
        if failure == Failure::SessionEnded
            && let Some(reason) = self.shared().end_reason()
        {
            return reason;
        }
        Error::Command { opcode: cdb.as_cdb().opcode(), lun: lun.number().unwrap_or_default(), failure }
    }

    /// Sends a task management function for a LUN: ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM
    /// RESET, ... Our own commands that ABORT TASK SET and CLEAR TASK SET end fail with [`Failure::Aborted`]; those
    /// that a reset ends are sent again if they may be.
    ///
    /// # Errors
    /// [`Error::Declined`] when no answer came, [`Error::Config`] for a function that names a single task.
    pub async fn task_management(&self, function: TaskFunction, lun: u16) -> Result<TaskResponse, Error> {
        if matches!(function, TaskFunction::AbortTask | TaskFunction::TaskReassign | TaskFunction::QueryTask) {
            return Err(ConfigError::SingleTask(function).into());
        }
        let lun = self.lun(lun).await?;
        match self.shared().ask(|id| Control::TaskManagement { id, function, lun }).await? {
            ControlAnswer::TaskManagement(response) => Ok(response),
            other => Err(declined("the task management function", &other)),
        }
    }

    /// The addresses of this session's target (SendTargets with an empty value, RFC 7143 appendix C).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send_targets(&self) -> Result<Discovered, Error> {
        let text = discovery::question("");
        match self.shared().ask(|id| Control::Text { id, text }).await? {
            ControlAnswer::Text(answer) => {
                let info = self.info();
                let asked = Portal { host: info.portal.ip().to_string(), port: info.portal.port() };
                let found = discovery::parse(&answer, &asked, info.tpgt)?;
                for odd in &found.odd {
                    self.shared().odd("SendTargets", odd.clone());
                }
                Ok(found)
            }
            other => Err(declined("SendTargets", &other)),
        }
    }

    /// Waits for commands under way, logs out and closes the connection. Later use of any clone gives
    /// [`Error::LoggedOut`].
    ///
    /// # Errors
    /// What had ended the session before, if it was not a logout.
    pub async fn logout(&self) -> Result<(), Error> {
        let ended = self.shared().ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if self.shared().end_reason().is_none() {
            self.shared().log_out();
            ended.await;
        }
        match self.shared().end_reason() {
            None | Some(Error::LoggedOut) => Ok(()),
            Some(error) => Err(error),
        }
    }
}

/// Room for the longest list of LUNs: 16384 of eight bytes, and the header.
const MOST_LUN_BYTES: u32 = 8 + 8 * 16384;

pub(super) fn to_lun(lun: u16) -> Result<Lun, Error> {
    Lun::new(lun).ok_or(Error::Config(ConfigError::Lun(lun)))
}

pub(super) fn declined(what: &'static str, answer: &ControlAnswer) -> Error {
    // No other answer comes to such a question.
    let failure = if let ControlAnswer::Failed(failure) = answer { *failure } else { Failure::Aborted };
    Error::Declined { what, failure }
}

pub(super) fn short_error(cdb: &CdbBuf, lun: Lun, short: Short) -> Error {
    Error::Short { opcode: cdb.as_cdb().opcode(), lun: lun.number().unwrap_or_default(), short }
}

/// The data that came with a completion.
pub(super) fn received(completion: &Completion) -> &[u8] {
    match &completion.data_in {
        Some(Payload::Buf(buf)) => &buf[..buf.len().min(completion.data_in_len as usize)],
        _ => &[],
    }
}

/// The buffers of a completion.
pub(super) fn into_buf(completion: Completion) -> Option<Buf> {
    match (completion.data_in, completion.data_out) {
        (Some(Payload::Buf(buf)), _) | (_, Some(Payload::Buf(buf))) => Some(buf),
        _ => None,
    }
}
