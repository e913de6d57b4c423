//! Write data in sequences: what may come unasked with a command, and in what order Data-Out PDUs come.
//!
//! A command's data come as one unsolicited sequence (immediate data in the command's own PDU, then Data-Out PDUs
//! without a Target Transfer Tag) and then as the target asks for them. The keys ImmediateData, InitialR2T and
//! FirstBurstLength bound the first (RFC 7143 13.10, 13.11, 13.14) over TCP and over iSER alike, so that both movers
//! ask here, at either end.

use crate::datamover::DataError;
use crate::parameters::Parameters;
use crate::pdu::DataOut;

/// The keys that say what may come unasked.
///
/// ```
/// use iscsi_proto::parameters::Parameters;
/// use iscsi_proto::unsolicited::{UnsolicitedLengths, UnsolicitedRules};
/// let keys = Parameters { initial_r2t: false, first_burst_length: 65_536, ..Parameters::default() };
/// let rules = UnsolicitedRules::of(&keys);
/// assert_eq!(rules.lengths(1 << 20, 8192), UnsolicitedLengths { immediate: 8192, total: 65_536 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsolicitedRules {
    /// ImmediateData (RFC 7143 13.11).
    pub immediate_data: bool,
    /// InitialR2T (RFC 7143 13.10).
    pub initial_r2t: bool,
    /// FirstBurstLength in bytes (RFC 7143 13.14).
    pub first_burst_length: u32,
}

/// What an initiator sends of a command's data without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsolicitedLengths {
    /// Bytes in the command's own PDU.
    pub immediate: u32,
    /// Bytes of them and of the Data-Out PDUs that follow. More than `immediate` means that some follow: the command
    /// goes without the F bit (RFC 7143 11.3.1).
    pub total: u32,
}

impl UnsolicitedRules {
    /// The rules that login came to.
    #[must_use]
    pub const fn of(parameters: &Parameters) -> Self {
        Self {
            immediate_data: parameters.immediate_data,
            initial_r2t: parameters.initial_r2t,
            first_burst_length: parameters.first_burst_length,
        }
    }

    /// The most immediate data in bytes, where a data segment has at most `segment`.
    #[must_use]
    pub const fn immediate_limit(&self, segment: u32) -> u32 {
        match self.immediate_data {
            false => 0,
            true if segment < self.first_burst_length => segment,
            true => self.first_burst_length,
        }
    }

    /// What an initiator sends unasked of `expected` bytes (Expected Data Transfer Length), where a data segment has at
    /// most `segment`: all that it may.
    #[must_use]
    #[inline]
    pub fn lengths(&self, expected: u32, segment: u32) -> UnsolicitedLengths {
        let immediate = self.immediate_limit(segment).min(expected);
        let total = if self.initial_r2t { immediate } else { self.first_burst_length.min(expected) };
        UnsolicitedLengths { immediate, total }
    }

    /// Whether `len` bytes may come as immediate data.
    #[must_use]
    #[inline]
    pub const fn allow_immediate(&self, len: u32) -> bool {
        self.immediate_data && len <= self.first_burst_length
    }

    /// The unsolicited data that a target expects of a command that came with `immediate` bytes and writes `expected`
    /// (Expected Data Transfer Length).
    #[must_use]
    #[inline]
    pub const fn burst(&self, expected: u32, immediate: u32) -> UnsolicitedBurst {
        let limited = self.first_burst_length < expected;
        UnsolicitedBurst {
            immediate,
            limit: if limited { self.first_burst_length } else { expected },
            limited_by_first_burst: limited,
        }
    }

    /// Whether a command may come with these immediate data, and without the F bit (`is_final`) be followed by others.
    ///
    /// # Errors
    /// [`DataError::UnexpectedUnsolicitedData`] where a key forbids it, [`DataError::IncorrectAmountOfData`] where the
    /// command came with more than it writes.
    #[inline]
    pub fn check_command(&self, burst: &UnsolicitedBurst, is_final: bool) -> Result<(), DataError> {
        if (burst.immediate > 0 && !self.immediate_data) || (!is_final && self.initial_r2t) {
            return Err(DataError::UnexpectedUnsolicitedData);
        }
        if burst.immediate > burst.limit { Err(burst.too_much()) } else { Ok(()) }
    }
}

/// The unsolicited data of one command, as its target expects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnsolicitedBurst {
    immediate: u32,
    limit: u32,
    limited_by_first_burst: bool,
}

impl UnsolicitedBurst {
    /// Checks a Data-Out without a Target Transfer Tag and its `len` bytes: `received` bytes of the command's data came
    /// before, immediate data among them, and `data_sn` is the next DataSN (RFC 7143 11.7, 13.14).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(
        &self,
        pdu: &DataOut,
        len: u32,
        received: u32,
        data_sn: u32,
        pdu_in_order: bool,
    ) -> Result<(), DataError> {
        let sequence = DataOutSequence { start: self.immediate, end: self.limit, received, data_sn };
        match sequence.check(pdu, len, pdu_in_order) {
            Err(DataError::IncorrectAmountOfData) if u64::from(received) + u64::from(len) > u64::from(self.limit) => {
                Err(self.too_much())
            }
            checked => checked,
        }
    }

    const fn too_much(&self) -> DataError {
        if self.limited_by_first_burst {
            DataError::UnexpectedUnsolicitedData
        } else {
            DataError::IncorrectAmountOfData
        }
    }
}

/// A sequence of Data-Out PDUs under way: the unsolicited one, or what an R2T asked for. Offsets are bytes of the
/// command's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOutSequence {
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
    /// `start` and the bytes of it that came.
    pub received: u32,
    /// The next DataSN.
    pub data_sn: u32,
}

impl DataOutSequence {
    /// Checks the next Data-Out of the sequence and its `len` bytes. The one with the F bit ends it, and the sequence
    /// is then as long as it was to be (RFC 7143 11.4.7.2, 11.7.1, 11.8.4).
    ///
    /// # Errors
    /// [`DataError::IncorrectAmountOfData`] or [`DataError::OutOfSequence`].
    pub fn check(&self, pdu: &DataOut, len: u32, pdu_in_order: bool) -> Result<(), DataError> {
        let count = u64::from(self.received) + u64::from(len);
        if count > u64::from(self.end) {
            return Err(DataError::IncorrectAmountOfData);
        }
        let end = u64::from(pdu.buffer_offset) + u64::from(len);
        let in_place = if pdu_in_order {
            pdu.buffer_offset == self.received
        } else {
            pdu.buffer_offset >= self.start && end <= u64::from(self.end)
        };
        if pdu.data_sn != self.data_sn || !in_place {
            return Err(DataError::OutOfSequence);
        }
        if pdu.is_final && count != u64::from(self.end) {
            return Err(DataError::IncorrectAmountOfData);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::RESERVED_TAG;
    use crate::serial::Serial;

    const RULES: UnsolicitedRules =
        UnsolicitedRules { immediate_data: true, initial_r2t: false, first_burst_length: 1000 };

    fn data_out(data_sn: u32, buffer_offset: u32, is_final: bool) -> DataOut {
        DataOut { is_final, lun: 0, itt: 1, ttt: RESERVED_TAG, exp_stat_sn: Serial(0), data_sn, buffer_offset }
    }

    #[test]
    fn an_initiator_sends_what_the_keys_allow() {
        let lengths = |rules: UnsolicitedRules, expected, segment| {
            let UnsolicitedLengths { immediate, total } = rules.lengths(expected, segment);
            (immediate, total)
        };
        assert_eq!(lengths(RULES, 5000, 400), (400, 1000));
        assert_eq!(lengths(RULES, 5000, 4000), (1000, 1000));
        assert_eq!(lengths(RULES, 300, 400), (300, 300));
        let asked = UnsolicitedRules { initial_r2t: true, ..RULES };
        assert_eq!(lengths(asked, 5000, 400), (400, 400));
        let no_immediate = UnsolicitedRules { immediate_data: false, ..RULES };
        assert_eq!(lengths(no_immediate, 5000, 400), (0, 1000));
        assert_eq!(lengths(UnsolicitedRules { immediate_data: false, ..asked }, 5000, 400), (0, 0));
    }

    #[test]
    fn a_command_with_what_the_keys_forbid_is_told_from_one_with_too_much() {
        let check = |rules: UnsolicitedRules, expected, immediate, is_final| {
            rules.check_command(&rules.burst(expected, immediate), is_final)
        };
        let forbidden = Err(DataError::UnexpectedUnsolicitedData);
        assert_eq!(check(RULES, 5000, 1000, false), Ok(()));
        assert_eq!(check(RULES, 5000, 1001, true), forbidden);
        assert_eq!(check(RULES, 500, 501, true), Err(DataError::IncorrectAmountOfData));
        assert_eq!(check(UnsolicitedRules { initial_r2t: true, ..RULES }, 5000, 0, false), forbidden);
        assert_eq!(check(UnsolicitedRules { immediate_data: false, ..RULES }, 5000, 1, true), forbidden);
        assert!(RULES.allow_immediate(1000) && !RULES.allow_immediate(1001));
        assert!(!UnsolicitedRules { immediate_data: false, ..RULES }.allow_immediate(0));
    }

    #[test]
    fn unsolicited_data_out_ends_at_its_limit_and_comes_in_turn() {
        let burst = RULES.burst(5000, 400);
        let check = |pdu, len, received, in_order| burst.check(&pdu, len, received, 3, in_order);
        assert_eq!(check(data_out(3, 400, false), 300, 400, true), Ok(()));
        assert_eq!(check(data_out(3, 400, true), 600, 400, true), Ok(()));
        assert_eq!(check(data_out(3, 400, true), 300, 400, true), Err(DataError::IncorrectAmountOfData));
        assert_eq!(check(data_out(3, 400, false), 601, 400, true), Err(DataError::UnexpectedUnsolicitedData));
        assert_eq!(check(data_out(2, 400, false), 300, 400, true), Err(DataError::OutOfSequence));
        assert_eq!(check(data_out(3, 500, false), 300, 400, true), Err(DataError::OutOfSequence));
        assert_eq!(check(data_out(3, 500, false), 300, 400, false), Ok(()));
        assert_eq!(check(data_out(3, 300, false), 300, 400, false), Err(DataError::OutOfSequence));
        assert_eq!(check(data_out(3, 900, false), 101, 400, false), Err(DataError::OutOfSequence));
        // The command's own length is the limit: then it is the wrong amount, and no key forbids it.
        let short = RULES.burst(700, 400);
        let too_long = short.check(&data_out(3, 400, false), 301, 400, 3, true);
        assert_eq!(too_long, Err(DataError::IncorrectAmountOfData));
    }
}
