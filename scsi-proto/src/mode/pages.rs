//! The mode pages of a disk.

use alloc::vec::Vec;

use crate::DataError;
use crate::field::{be16, be32, bit, flag, put, u8_at};

/// Page codes, for [`ModePage::code`] and MODE SENSE.
pub mod page_code {
    /// Read-write error recovery.
    pub const READ_WRITE_ERROR_RECOVERY: u8 = 0x01;
    /// Caching.
    pub const CACHING: u8 = 0x08;
    /// Control; subpage 01h is control extension.
    pub const CONTROL: u8 = 0x0a;
    /// Informational exceptions control.
    pub const INFORMATIONAL_EXCEPTIONS: u8 = 0x1c;
    /// All pages (MODE SENSE only).
    pub const ALL: u8 = 0x3f;
    /// All subpages (MODE SENSE only), as a subpage code.
    pub const ALL_SUBPAGES: u8 = 0xff;
}

/// One mode page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModePage {
    /// 01h.
    ReadWriteErrorRecovery(ReadWriteErrorRecovery),
    /// 08h.
    Caching(Caching),
    /// 0Ah.
    Control(Control),
    /// 0Ah, subpage 01h.
    ControlExtension(ControlExtension),
    /// 1Ch.
    InformationalExceptions(InformationalExceptions),
    /// Any other page, or one of these of another length than the standard's.
    Other {
        /// PS: the page can be saved.
        saveable: bool,
        /// PAGE CODE, 0 to 3Fh.
        code: u8,
        /// SUBPAGE CODE, if the page has the subpage format (SPF).
        subpage: Option<u8>,
        /// What follows the page's header.
        body: Vec<u8>,
    },
}

impl ModePage {
    /// PAGE CODE.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::ReadWriteErrorRecovery(_) => page_code::READ_WRITE_ERROR_RECOVERY,
            Self::Caching(_) => page_code::CACHING,
            Self::Control(_) | Self::ControlExtension(_) => page_code::CONTROL,
            Self::InformationalExceptions(_) => page_code::INFORMATIONAL_EXCEPTIONS,
            Self::Other { code, .. } => *code,
        }
    }

    /// SUBPAGE CODE, 0 for a page without.
    #[must_use]
    pub const fn subpage(&self) -> u8 {
        match self {
            Self::ControlExtension(_) => 1,
            Self::Other { subpage: Some(subpage), .. } => *subpage,
            _ => 0,
        }
    }

    /// Appends the page with its header.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::ReadWriteErrorRecovery(page) => emit_page(out, page.saveable, 0x01, &page.to_body()),
            Self::Caching(page) => emit_page(out, page.saveable, 0x08, &page.to_body()),
            Self::Control(page) => emit_page(out, page.saveable, 0x0a, &page.to_body()),
            Self::ControlExtension(page) => emit_subpage(out, page.saveable, 0x0a, 0x01, &page.to_body()),
            Self::InformationalExceptions(page) => emit_page(out, page.saveable, 0x1c, &page.to_body()),
            Self::Other { saveable, code, subpage: None, body } => emit_page(out, *saveable, *code, body),
            Self::Other { saveable, code, subpage: Some(subpage), body } => {
                emit_subpage(out, *saveable, *code, *subpage, body);
            }
        }
    }

    /// Reads the page at the start of `bytes`, and what follows it.
    ///
    /// # Errors
    /// [`DataError::TooShort`] when the page is cut off.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), DataError> {
        let short = |need| DataError::TooShort { what: "a mode page", need, got: bytes.len() };
        let (saveable, code) = (bit(bytes, 0, 7), u8_at(bytes, 0) & 0x3f);
        let subpage_format = bit(bytes, 0, 6);
        let (head, length) =
            if subpage_format { (4, usize::from(be16(bytes, 2))) } else { (2, usize::from(u8_at(bytes, 1))) };
        let rest = bytes.get(head..).ok_or_else(|| short(head))?;
        let (body, rest) = rest.split_at_checked(length).ok_or_else(|| short(head + length))?;
        let subpage = subpage_format.then(|| u8_at(bytes, 1));
        let page = match (code, subpage, body.len()) {
            (page_code::READ_WRITE_ERROR_RECOVERY, None, 10) => {
                Self::ReadWriteErrorRecovery(ReadWriteErrorRecovery::from_body(saveable, body))
            }
            (page_code::CACHING, None, 18) => Self::Caching(Caching::from_body(saveable, body)),
            (page_code::CONTROL, None, 10) => Self::Control(Control::from_body(saveable, body)),
            (page_code::CONTROL, Some(1), 28) => Self::ControlExtension(ControlExtension::from_body(saveable, body)),
            (page_code::INFORMATIONAL_EXCEPTIONS, None, 10) => {
                Self::InformationalExceptions(InformationalExceptions::from_body(saveable, body))
            }
            _ => Self::Other { saveable, code, subpage, body: body.to_vec() },
        };
        Ok((page, rest))
    }
}

fn emit_page(out: &mut Vec<u8>, saveable: bool, code: u8, body: &[u8]) {
    let body = body.get(..255).unwrap_or(body);
    out.extend_from_slice(&[flag(saveable, 7) | code & 0x3f, body.len() as u8]);
    out.extend_from_slice(body);
}

fn emit_subpage(out: &mut Vec<u8>, saveable: bool, code: u8, subpage: u8, body: &[u8]) {
    let body = body.get(..0xffff).unwrap_or(body);
    let [high, low] = (body.len() as u16).to_be_bytes();
    out.extend_from_slice(&[flag(saveable, 7) | 0x40 | code & 0x3f, subpage, high, low]);
    out.extend_from_slice(body);
}

/// Read-write error recovery, page 01h (SBC-4 6.5.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadWriteErrorRecovery {
    /// PS: the page can be saved.
    pub saveable: bool,
    /// AWRE: bad blocks are reassigned on write.
    pub write_reallocation: bool,
    /// ARRE: bad blocks are reassigned on read.
    pub read_reallocation: bool,
    /// TB, RC, EER, PER, DTE and DCR, bits 5 to 0 in place.
    pub recovery: u8,
    /// READ RETRY COUNT.
    pub read_retries: u8,
    /// LBPERE: logical block provisioning threshold notification.
    pub provisioning_reporting: bool,
    /// WRITE RETRY COUNT.
    pub write_retries: u8,
    /// RECOVERY TIME LIMIT in milliseconds, 0 for the vendor's.
    pub time_limit: u16,
}

impl ReadWriteErrorRecovery {
    fn to_body(self) -> [u8; 10] {
        let mut body = [0; 10];
        body[0] = flag(self.write_reallocation, 7) | flag(self.read_reallocation, 6) | self.recovery & 0x3f;
        body[1] = self.read_retries;
        body[5] = flag(self.provisioning_reporting, 7);
        body[6] = self.write_retries;
        put(&mut body, 8, &self.time_limit.to_be_bytes());
        body
    }

    fn from_body(saveable: bool, body: &[u8]) -> Self {
        Self {
            saveable,
            write_reallocation: bit(body, 0, 7),
            read_reallocation: bit(body, 0, 6),
            recovery: u8_at(body, 0) & 0x3f,
            read_retries: u8_at(body, 1),
            provisioning_reporting: bit(body, 5, 7),
            write_retries: u8_at(body, 6),
            time_limit: be16(body, 8),
        }
    }
}

/// Caching, page 08h (SBC-4 6.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caching {
    /// PS: the page can be saved.
    pub saveable: bool,
    /// IC, ABPF, CAP, DISC and SIZE, bits 7 to 3 in place.
    pub advice: u8,
    /// WCE: writes may complete while the data is only in a volatile cache.
    pub write_cache: bool,
    /// MF: MAXIMUM and MINIMUM PRE-FETCH are multiplied by the transfer length.
    pub multiplied: bool,
    /// RCD: reads come from the medium, not from a cache.
    pub read_cache_disabled: bool,
    /// DEMAND READ and WRITE RETENTION PRIORITY.
    pub retention: u8,
    /// DISABLE PRE-FETCH TRANSFER LENGTH.
    pub disable_prefetch: u16,
    /// MINIMUM PRE-FETCH.
    pub min_prefetch: u16,
    /// MAXIMUM PRE-FETCH.
    pub max_prefetch: u16,
    /// MAXIMUM PRE-FETCH CEILING.
    pub max_prefetch_ceiling: u16,
    /// FSW, LBCSS, DRA, SYNC_PROG and NV_DIS, byte 12 of the page as it stands.
    pub flags: u8,
    /// NUMBER OF CACHE SEGMENTS.
    pub segments: u8,
    /// CACHE SEGMENT SIZE.
    pub segment_size: u16,
}

impl Caching {
    fn to_body(self) -> [u8; 18] {
        let mut body = [0; 18];
        body[0] = self.advice & 0xf8
            | flag(self.write_cache, 2)
            | flag(self.multiplied, 1)
            | flag(self.read_cache_disabled, 0);
        body[1] = self.retention;
        put(&mut body, 2, &self.disable_prefetch.to_be_bytes());
        put(&mut body, 4, &self.min_prefetch.to_be_bytes());
        put(&mut body, 6, &self.max_prefetch.to_be_bytes());
        put(&mut body, 8, &self.max_prefetch_ceiling.to_be_bytes());
        body[10] = self.flags;
        body[11] = self.segments;
        put(&mut body, 12, &self.segment_size.to_be_bytes());
        body
    }

    fn from_body(saveable: bool, body: &[u8]) -> Self {
        Self {
            saveable,
            advice: u8_at(body, 0) & 0xf8,
            write_cache: bit(body, 0, 2),
            multiplied: bit(body, 0, 1),
            read_cache_disabled: bit(body, 0, 0),
            retention: u8_at(body, 1),
            disable_prefetch: be16(body, 2),
            min_prefetch: be16(body, 4),
            max_prefetch: be16(body, 6),
            max_prefetch_ceiling: be16(body, 8),
            flags: u8_at(body, 10),
            segments: u8_at(body, 11),
            segment_size: be16(body, 12),
        }
    }
}

/// Control, page 0Ah (SPC-5 7.5.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// PS: the page can be saved.
    pub saveable: bool,
    /// TST: 0 one task set for all I_T nexuses, 1 one for each.
    pub task_set_type: u8,
    /// TMF_ONLY: only task management clears an ACA.
    pub tmf_only: bool,
    /// DPICZ: protection information is not checked when RDPROTECT is zero.
    pub disable_protection_check: bool,
    /// D_SENSE: sense data comes in descriptor format.
    pub descriptor_sense: bool,
    /// GLTSD: log parameters are not saved implicitly.
    pub global_logging_disabled: bool,
    /// RLEC: log exception conditions are reported.
    pub report_log_exceptions: bool,
    /// QUEUE ALGORITHM MODIFIER: 0 restricted reordering, 1 unrestricted.
    pub queue_algorithm: u8,
    /// NUAR: no unit attention on release.
    pub no_unit_attention_on_release: bool,
    /// QERR: 0 other commands go on after a CHECK CONDITION, 1 all are aborted, 3 those of the I_T nexus are.
    pub queue_error: u8,
    /// RAC: a CHECK CONDITION is reported rather than a long BUSY.
    pub report_check: bool,
    /// UA_INTLCK_CTRL: 0 unit attentions are cleared when reported, 2 and 3 kept.
    pub unit_attention_interlock: u8,
    /// SWP: the logical unit is write protected by software.
    pub software_write_protect: bool,
    /// ATO: the application tag belongs to the application.
    pub application_tag_owner: bool,
    /// TAS: aborted commands of other I_T nexuses get TASK ABORTED.
    pub task_aborted_status: bool,
    /// ATMPE: the application tag mode page is in use.
    pub application_tag_page: bool,
    /// RWWP: writes without protection information are rejected.
    pub reject_write_without_protection: bool,
    /// AUTOLOAD MODE, 0 to 7.
    pub autoload: u8,
    /// BUSY TIMEOUT PERIOD in 100 ms; FFFFh for no limit.
    pub busy_timeout: u16,
    /// EXTENDED SELF-TEST COMPLETION TIME in seconds.
    pub self_test_time: u16,
}

impl Control {
    fn to_body(self) -> [u8; 10] {
        let mut body = [0; 10];
        body[0] = (self.task_set_type & 0x07) << 5
            | flag(self.tmf_only, 4)
            | flag(self.disable_protection_check, 3)
            | flag(self.descriptor_sense, 2)
            | flag(self.global_logging_disabled, 1)
            | flag(self.report_log_exceptions, 0);
        body[1] = (self.queue_algorithm & 0x0f) << 4
            | flag(self.no_unit_attention_on_release, 3)
            | (self.queue_error & 0x03) << 1;
        body[2] = flag(self.report_check, 6)
            | (self.unit_attention_interlock & 0x03) << 4
            | flag(self.software_write_protect, 3);
        body[3] = flag(self.application_tag_owner, 7)
            | flag(self.task_aborted_status, 6)
            | flag(self.application_tag_page, 5)
            | flag(self.reject_write_without_protection, 4)
            | self.autoload & 0x07;
        put(&mut body, 6, &self.busy_timeout.to_be_bytes());
        put(&mut body, 8, &self.self_test_time.to_be_bytes());
        body
    }

    fn from_body(saveable: bool, body: &[u8]) -> Self {
        Self {
            saveable,
            task_set_type: u8_at(body, 0) >> 5,
            tmf_only: bit(body, 0, 4),
            disable_protection_check: bit(body, 0, 3),
            descriptor_sense: bit(body, 0, 2),
            global_logging_disabled: bit(body, 0, 1),
            report_log_exceptions: bit(body, 0, 0),
            queue_algorithm: u8_at(body, 1) >> 4,
            no_unit_attention_on_release: bit(body, 1, 3),
            queue_error: (u8_at(body, 1) >> 1) & 0x03,
            report_check: bit(body, 2, 6),
            unit_attention_interlock: (u8_at(body, 2) >> 4) & 0x03,
            software_write_protect: bit(body, 2, 3),
            application_tag_owner: bit(body, 3, 7),
            task_aborted_status: bit(body, 3, 6),
            application_tag_page: bit(body, 3, 5),
            reject_write_without_protection: bit(body, 3, 4),
            autoload: u8_at(body, 3) & 0x07,
            busy_timeout: be16(body, 6),
            self_test_time: be16(body, 8),
        }
    }
}

/// Control extension, page 0Ah subpage 01h (SPC-5 7.5.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlExtension {
    /// PS: the page can be saved.
    pub saveable: bool,
    /// TCMOS: the timestamp can be changed by methods outside the standard.
    pub timestamp_outside: bool,
    /// SCSIP: a timestamp that SCSI set goes before others.
    pub scsi_precedence: bool,
    /// IALUAE: implicit asymmetric access changes are on.
    pub implicit_asymmetric_access: bool,
    /// INITIAL COMMAND PRIORITY, 0 to 15.
    pub initial_priority: u8,
    /// MAXIMUM SENSE DATA LENGTH in bytes, 0 for no limit.
    pub max_sense_length: u8,
}

impl ControlExtension {
    fn to_body(self) -> [u8; 28] {
        let mut body = [0; 28];
        body[0] =
            flag(self.timestamp_outside, 2) | flag(self.scsi_precedence, 1) | flag(self.implicit_asymmetric_access, 0);
        body[1] = self.initial_priority & 0x0f;
        body[2] = self.max_sense_length;
        body
    }

    fn from_body(saveable: bool, body: &[u8]) -> Self {
        Self {
            saveable,
            timestamp_outside: bit(body, 0, 2),
            scsi_precedence: bit(body, 0, 1),
            implicit_asymmetric_access: bit(body, 0, 0),
            initial_priority: u8_at(body, 1) & 0x0f,
            max_sense_length: u8_at(body, 2),
        }
    }
}

/// Informational exceptions control, page 1Ch (SBC-4 6.5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InformationalExceptions {
    /// PS: the page can be saved.
    pub saveable: bool,
    /// PERF, EBF, EWASC, DEXCPT, TEST, EBACKERR and LOGERR in place; DEXCPT, 08h, switches reporting off.
    pub flags: u8,
    /// MRIE, 0 to 15: how exceptions are reported.
    pub method: u8,
    /// INTERVAL TIMER in 100 ms.
    pub interval: u32,
    /// REPORT COUNT.
    pub report_count: u32,
}

impl InformationalExceptions {
    /// DEXCPT of [`InformationalExceptions::flags`].
    pub const DISABLED: u8 = 0x08;

    fn to_body(self) -> [u8; 10] {
        let mut body = [0; 10];
        body[0] = self.flags;
        body[1] = self.method & 0x0f;
        put(&mut body, 2, &self.interval.to_be_bytes());
        put(&mut body, 6, &self.report_count.to_be_bytes());
        body
    }

    fn from_body(saveable: bool, body: &[u8]) -> Self {
        Self {
            saveable,
            flags: u8_at(body, 0),
            method: u8_at(body, 1) & 0x0f,
            interval: be32(body, 2),
            report_count: be32(body, 6),
        }
    }
}
