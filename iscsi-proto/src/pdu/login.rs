//! Login, requests and responses (RFC 7143 11.12, 11.13). Their key=value text travels in the data segment.

use super::offset::{CID, CMD_SN, EXP_CMD_SN, EXP_STAT_SN, FLAGS, ISID, ITT, LOGIN_STATUS, MAX_CMD_SN, STAT_SN, TSIH};
use super::{Bhs, Opcode, PduError};
use crate::serial::Serial;

/// Stage of the login phase (RFC 7143 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// SecurityNegotiation.
    SecurityNegotiation = 0,
    /// LoginOperationalNegotiation.
    LoginOperationalNegotiation = 1,
    /// FullFeaturePhase.
    FullFeaturePhase = 3,
}

impl Stage {
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::SecurityNegotiation),
            1 => Some(Self::LoginOperationalNegotiation),
            3 => Some(Self::FullFeaturePhase),
            _ => None,
        }
    }
}

/// CSG, NSG, T and C of byte 1 as both login PDUs hold them; NSG is meaningful only with the T bit.
fn parse_stages(bhs: &Bhs, opcode: Opcode) -> Result<(bool, bool, Stage, Option<Stage>), PduError> {
    let flags = bhs.0[FLAGS];
    let (transit, incomplete) = (flags & 0x80 != 0, flags & 0x40 != 0);
    let invalid = |field, value: u8| PduError::InvalidField { opcode, field, value: value.into() };
    let csg = Stage::from_bits(flags >> 2)
        .filter(|stage| *stage != Stage::FullFeaturePhase)
        .ok_or(invalid("CSG", flags >> 2 & 3))?;
    let nsg = if transit { Some(Stage::from_bits(flags).ok_or(invalid("NSG", flags & 3))?) } else { None };
    // RFC 7143 11.12.2: a PDU that is to be continued cannot ask for a transition.
    if transit && incomplete {
        return Err(invalid("T with C", flags));
    }
    Ok((transit, incomplete, csg, nsg))
}

fn emit_stages(bhs: &mut Bhs, incomplete: bool, csg: Stage, nsg: Option<Stage>) {
    bhs.set_flag::<FLAGS>(0x80, nsg.is_some());
    bhs.set_flag::<FLAGS>(0x40, incomplete);
    bhs.0[FLAGS] |= (csg as u8) << 2 | nsg.map_or(0, |stage| stage as u8);
}

/// Login Request (RFC 7143 11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginRequest {
    /// C bit: the text continues in the next request.
    pub incomplete: bool,
    /// CSG: the current stage.
    pub csg: Stage,
    /// NSG, when the T bit asks for a transition.
    pub nsg: Option<Stage>,
    /// Highest version supported.
    pub version_max: u8,
    /// Lowest version supported.
    pub version_min: u8,
    /// ISID, six bytes.
    pub isid: [u8; 6],
    /// TSIH; zero for a new session.
    pub tsih: u16,
    /// Initiator Task Tag, the same in the whole login phase.
    pub itt: u32,
    /// Connection ID.
    pub cid: u16,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN; reserved in the first request of a connection unless it is a reinstatement.
    pub exp_stat_sn: Serial,
}

impl LoginRequest {
    /// A whole login in one request, where nobody asks for authentication: out of LoginOperationalNegotiation straight
    /// into the Full Feature Phase of a new session (RFC 7143 6.3). CID 0 and CmdSN 1; what is to be different is set
    /// beside it.
    ///
    /// ```
    /// use iscsi_proto::pdu::{LoginRequest, LoginResponse, Stage};
    /// let request = LoginRequest { cid: 1, ..LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 7) };
    /// let response = LoginResponse { tsih: 5, ..LoginResponse::granting(&request) };
    /// assert_eq!((request.nsg, response.nsg), (Some(Stage::FullFeaturePhase), Some(Stage::FullFeaturePhase)));
    /// assert_eq!(LoginResponse::parse(&response.emit()), Ok(response));
    /// ```
    #[must_use]
    pub const fn straight_to_full_feature(isid: [u8; 6], itt: u32) -> Self {
        Self {
            incomplete: false,
            csg: Stage::LoginOperationalNegotiation,
            nsg: Some(Stage::FullFeaturePhase),
            version_max: 0,
            version_min: 0,
            isid,
            tsih: 0,
            itt,
            cid: 0,
            cmd_sn: Serial(1),
            exp_stat_sn: Serial(0),
        }
    }

    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved stage, or T and C together.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::LoginRequest)?;
        let (_, incomplete, csg, nsg) = parse_stages(bhs, Opcode::LoginRequest)?;
        let mut isid = [0; 6];
        isid.copy_from_slice(&bhs.0[8..14]);
        Ok(Self {
            incomplete,
            csg,
            nsg,
            version_max: bhs.0[2],
            version_min: bhs.0[3],
            isid,
            tsih: bhs.u16_at::<TSIH>(),
            itt: bhs.itt(),
            cid: bhs.u16_at::<CID>(),
            cmd_sn: Serial(bhs.u32_at::<CMD_SN>()),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LoginRequest);
        // The I bit is always set (11.12).
        bhs.0[0] |= 0x40;
        emit_stages(&mut bhs, self.incomplete, self.csg, self.nsg);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_min;
        bhs.put::<ISID, 6>(self.isid);
        bhs.put::<TSIH, 2>(self.tsih.to_be_bytes());
        bhs.put_u32::<ITT>(self.itt);
        bhs.put::<CID, 2>(self.cid.to_be_bytes());
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs
    }
}

/// Status-Class and Status-Detail of a Login Response (RFC 7143 11.13.5), class in the high byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoginStatus(pub u16);

impl LoginStatus {
    /// Login is proceeding.
    pub const SUCCESS: Self = Self(0x0000);
    /// The target moved temporarily; TargetAddress tells where.
    pub const TARGET_MOVED_TEMPORARILY: Self = Self(0x0101);
    /// The target moved permanently; TargetAddress tells where.
    pub const TARGET_MOVED_PERMANENTLY: Self = Self(0x0102);
    /// Miscellaneous initiator error.
    pub const INITIATOR_ERROR: Self = Self(0x0200);
    /// Authentication failure.
    pub const AUTHENTICATION_FAILURE: Self = Self(0x0201);
    /// Authorization failure: the initiator may not use the target.
    pub const AUTHORIZATION_FAILURE: Self = Self(0x0202);
    /// Not found: no such target.
    pub const NOT_FOUND: Self = Self(0x0203);
    /// Target removed: no forwarding address.
    pub const TARGET_REMOVED: Self = Self(0x0204);
    /// Unsupported version.
    pub const UNSUPPORTED_VERSION: Self = Self(0x0205);
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x0206);
    /// Missing parameter, such as the initiator's name.
    pub const MISSING_PARAMETER: Self = Self(0x0207);
    /// Cannot include this connection in the session.
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self(0x0208);
    /// Session type not supported.
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self(0x0209);
    /// Session does not exist.
    pub const SESSION_DOES_NOT_EXIST: Self = Self(0x020a);
    /// Invalid request type during login.
    pub const INVALID_DURING_LOGIN: Self = Self(0x020b);
    /// Target error.
    pub const TARGET_ERROR: Self = Self(0x0300);
    /// Service unavailable.
    pub const SERVICE_UNAVAILABLE: Self = Self(0x0301);
    /// Out of resources.
    pub const OUT_OF_RESOURCES: Self = Self(0x0302);

    /// Status-Class: 0 success, 1 redirection, 2 initiator error, 3 target error.
    #[must_use]
    pub const fn class(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Status-Detail.
    #[must_use]
    pub const fn detail(self) -> u8 {
        self.0 as u8
    }
}

impl core::fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let words = match *self {
            Self::SUCCESS => "success",
            Self::TARGET_MOVED_TEMPORARILY => "the target moved temporarily",
            Self::TARGET_MOVED_PERMANENTLY => "the target moved permanently",
            Self::INITIATOR_ERROR => "initiator error",
            Self::AUTHENTICATION_FAILURE => "authentication failure",
            Self::AUTHORIZATION_FAILURE => "the initiator is not allowed to use the target",
            Self::NOT_FOUND => "the target is not there",
            Self::TARGET_REMOVED => "the target was removed",
            Self::UNSUPPORTED_VERSION => "unsupported version",
            Self::TOO_MANY_CONNECTIONS => "too many connections",
            Self::MISSING_PARAMETER => "missing parameter",
            Self::CANNOT_INCLUDE_IN_SESSION => "the connection cannot join the session",
            Self::SESSION_TYPE_NOT_SUPPORTED => "session type not supported",
            Self::SESSION_DOES_NOT_EXIST => "the session does not exist",
            Self::INVALID_DURING_LOGIN => "invalid request type during login",
            Self::TARGET_ERROR => "target error",
            Self::SERVICE_UNAVAILABLE => "service unavailable",
            Self::OUT_OF_RESOURCES => "the target is out of resources",
            _ => "undefined status",
        };
        write!(f, "{words} (status class {:#04x}, detail {:#04x})", self.class(), self.detail())
    }
}

/// Login Response (RFC 7143 11.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginResponse {
    /// C bit: the text continues in the next response.
    pub incomplete: bool,
    /// CSG: the current stage.
    pub csg: Stage,
    /// NSG, when the T bit grants the transition.
    pub nsg: Option<Stage>,
    /// Highest version supported.
    pub version_max: u8,
    /// Version in use.
    pub version_active: u8,
    /// ISID, echoed.
    pub isid: [u8; 6],
    /// TSIH; the target's number in the final response.
    pub tsih: u16,
    /// Initiator Task Tag, echoed.
    pub itt: u32,
    /// StatSN; valid when the status is success.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// Status.
    pub status: LoginStatus,
}

impl LoginResponse {
    /// Success, with the stages, the ISID, the TSIH and the ITT of the request. StatSN is 0, and the command window
    /// holds one command, the next; what is to be different is set beside it, such as the TSIH of a new session.
    #[must_use]
    pub const fn granting(request: &LoginRequest) -> Self {
        Self {
            incomplete: false,
            csg: request.csg,
            nsg: request.nsg,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: request.tsih,
            itt: request.itt,
            stat_sn: Serial(0),
            // A Login Request is immediate: its CmdSN is the next command's (RFC 7143 11.12.8).
            exp_cmd_sn: request.cmd_sn,
            max_cmd_sn: request.cmd_sn,
            status: LoginStatus::SUCCESS,
        }
    }

    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved stage, or T and C together; stages are not
    /// looked at when the status is not success.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::LoginResponse)?;
        let status = LoginStatus(bhs.u16_at::<LOGIN_STATUS>());
        let (_, incomplete, csg, nsg) = match parse_stages(bhs, Opcode::LoginResponse) {
            Err(_) if status.class() != 0 => (false, false, Stage::SecurityNegotiation, None),
            stages => stages?,
        };
        let mut isid = [0; 6];
        isid.copy_from_slice(&bhs.0[8..14]);
        Ok(Self {
            incomplete,
            csg,
            nsg,
            version_max: bhs.0[2],
            version_active: bhs.0[3],
            isid,
            tsih: bhs.u16_at::<TSIH>(),
            itt: bhs.itt(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            status,
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LoginResponse);
        emit_stages(&mut bhs, self.incomplete, self.csg, self.nsg);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_active;
        bhs.put::<ISID, 6>(self.isid);
        bhs.put::<TSIH, 2>(self.tsih.to_be_bytes());
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put::<LOGIN_STATUS, 2>(self.status.0.to_be_bytes());
        bhs
    }
}
