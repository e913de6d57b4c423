//! Extended INQUIRY data, page 86h (SPC-5 7.7.7).

use crate::field::{be16, bit, flag, put, u8_at};

/// Which abilities of SPC a logical unit has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExtendedInquiry {
    /// SPT: which protection types are supported, 0 to 7.
    pub supported_protection: u8,
    /// GRD_CHK, APP_CHK and REF_CHK, bits 2 to 0: which protection fields are checked.
    pub protection_checks: u8,
    /// UASK_SUP: unit attentions carry sense key specific data.
    pub unit_attention_specific: bool,
    /// GROUP_SUP: GROUP NUMBER is understood.
    pub grouping: bool,
    /// PRIOR_SUP: task priority is understood.
    pub priority: bool,
    /// HEADSUP: HEAD OF QUEUE is supported.
    pub head_of_queue: bool,
    /// ORDSUP: ORDERED is supported.
    pub ordered: bool,
    /// SIMPSUP: SIMPLE is supported.
    pub simple: bool,
    /// WU_SUP: WRITE UNCORRECTABLE is supported.
    pub write_uncorrectable: bool,
    /// NV_SUP: a non-volatile cache is there.
    pub non_volatile_cache: bool,
    /// V_SUP: a volatile cache is there.
    pub volatile_cache: bool,
    /// LUICLR: a unit attention is cleared by any I_T nexus' report.
    pub unit_attention_cleared: bool,
    /// EXTENDED SELF-TEST COMPLETION MINUTES.
    pub self_test_minutes: u16,
    /// MAXIMUM SUPPORTED SENSE DATA LENGTH in bytes; 0 not told.
    pub max_sense_length: u8,
}

impl ExtendedInquiry {
    /// A logical unit that knows SIMPLE, ORDERED and HEAD OF QUEUE.
    pub const TASK_ATTRIBUTES: Self = Self {
        supported_protection: 0,
        protection_checks: 0,
        unit_attention_specific: false,
        grouping: false,
        priority: false,
        head_of_queue: true,
        ordered: true,
        simple: true,
        write_uncorrectable: false,
        non_volatile_cache: false,
        volatile_cache: false,
        unit_attention_cleared: false,
        self_test_minutes: 0,
        max_sense_length: 0,
    };

    /// Offsets count from byte 4 of the page.
    pub(super) fn to_body(self) -> [u8; 60] {
        let mut body = [0; 60];
        body[0] = (self.supported_protection & 0x07) << 3 | self.protection_checks & 0x07;
        body[1] = flag(self.unit_attention_specific, 5)
            | flag(self.grouping, 4)
            | flag(self.priority, 3)
            | flag(self.head_of_queue, 2)
            | flag(self.ordered, 1)
            | flag(self.simple, 0);
        body[2] = flag(self.write_uncorrectable, 3) | flag(self.non_volatile_cache, 1) | flag(self.volatile_cache, 0);
        body[3] = flag(self.unit_attention_cleared, 0);
        put(&mut body, 6, &self.self_test_minutes.to_be_bytes());
        body[9] = self.max_sense_length;
        body
    }

    pub(super) fn from_body(body: &[u8]) -> Self {
        Self {
            supported_protection: (u8_at(body, 0) >> 3) & 0x07,
            protection_checks: u8_at(body, 0) & 0x07,
            unit_attention_specific: bit(body, 1, 5),
            grouping: bit(body, 1, 4),
            priority: bit(body, 1, 3),
            head_of_queue: bit(body, 1, 2),
            ordered: bit(body, 1, 1),
            simple: bit(body, 1, 0),
            write_uncorrectable: bit(body, 2, 3),
            non_volatile_cache: bit(body, 2, 1),
            volatile_cache: bit(body, 2, 0),
            unit_attention_cleared: bit(body, 3, 0),
            self_test_minutes: be16(body, 6),
            max_sense_length: u8_at(body, 9),
        }
    }
}
