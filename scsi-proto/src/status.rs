//! Status codes and task attributes.

use core::fmt;

/// The status of a completed command (SAM-5 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// The command is done.
    Good = 0x00,
    /// Something is to be told: sense data comes with this status.
    CheckCondition = 0x02,
    /// A search or a PRE-FETCH found what it asked for.
    ConditionMet = 0x04,
    /// The logical unit cannot take the command now; send it again later.
    Busy = 0x08,
    /// A linked command is done (obsolete since SAM-4).
    Intermediate = 0x10,
    /// A linked command found what it asked for (obsolete since SAM-4).
    IntermediateConditionMet = 0x14,
    /// A reservation or registration of another I_T nexus stands in the way.
    ReservationConflict = 0x18,
    /// The command was terminated (obsolete since SAM-2).
    CommandTerminated = 0x22,
    /// The task set has no room; send the command again when another one has completed.
    TaskSetFull = 0x28,
    /// An auto contingent allegiance stands in the way.
    AcaActive = 0x30,
    /// The command was aborted by another I_T nexus, and the control mode page asks to tell (TAS).
    TaskAborted = 0x40,
}

impl Status {
    /// Every status that SAM-5 names, obsolete ones included.
    pub const ALL: [Self; 11] = [
        Self::Good,
        Self::CheckCondition,
        Self::ConditionMet,
        Self::Busy,
        Self::Intermediate,
        Self::IntermediateConditionMet,
        Self::ReservationConflict,
        Self::CommandTerminated,
        Self::TaskSetFull,
        Self::AcaActive,
        Self::TaskAborted,
    ];

    /// The status with this code; `None` for a code that SAM-5 reserves.
    pub const fn from_byte(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::Good,
            0x02 => Self::CheckCondition,
            0x04 => Self::ConditionMet,
            0x08 => Self::Busy,
            0x10 => Self::Intermediate,
            0x14 => Self::IntermediateConditionMet,
            0x18 => Self::ReservationConflict,
            0x22 => Self::CommandTerminated,
            0x28 => Self::TaskSetFull,
            0x30 => Self::AcaActive,
            0x40 => Self::TaskAborted,
            _ => return None,
        })
    }

    /// The code for the wire.
    pub const fn to_byte(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "GOOD",
            Self::CheckCondition => "CHECK CONDITION",
            Self::ConditionMet => "CONDITION MET",
            Self::Busy => "BUSY",
            Self::Intermediate => "INTERMEDIATE",
            Self::IntermediateConditionMet => "INTERMEDIATE-CONDITION MET",
            Self::ReservationConflict => "RESERVATION CONFLICT",
            Self::CommandTerminated => "COMMAND TERMINATED",
            Self::TaskSetFull => "TASK SET FULL",
            Self::AcaActive => "ACA ACTIVE",
            Self::TaskAborted => "TASK ABORTED",
        })
    }
}

/// How a command is ordered among the others of its task set (SAM-5 8.6; the codes are those of RFC 7143 11.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TaskAttribute {
    /// No attribute given; handled as SIMPLE.
    Untagged = 0,
    /// May be reordered with other SIMPLE commands.
    #[default]
    Simple = 1,
    /// Waits for all older commands, and younger ones wait for it.
    Ordered = 2,
    /// Goes before all others.
    HeadOfQueue = 3,
    /// Belongs to the handling of an auto contingent allegiance.
    Aca = 4,
}

impl TaskAttribute {
    /// The attribute with this code; `None` for the reserved codes 5 to 7 and for what does not fit three bits.
    pub const fn from_bits(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Untagged,
            1 => Self::Simple,
            2 => Self::Ordered,
            3 => Self::HeadOfQueue,
            4 => Self::Aca,
            _ => return None,
        })
    }

    /// The three-bit code for the wire.
    pub const fn to_bits(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for TaskAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untagged => "UNTAGGED",
            Self::Simple => "SIMPLE",
            Self::Ordered => "ORDERED",
            Self::HeadOfQueue => "HEAD OF QUEUE",
            Self::Aca => "ACA",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn codes_round_trip_and_others_are_unknown() {
        let known = (0..=255).filter_map(Status::from_byte).collect::<Vec<_>>();
        assert_eq!(known, Status::ALL);
        assert!(Status::ALL.iter().all(|s| Status::from_byte(s.to_byte()) == Some(*s)));
        let known = (0..=255).filter_map(TaskAttribute::from_bits).collect::<Vec<_>>();
        assert_eq!(known.len(), 5);
        assert!(known.iter().all(|a| TaskAttribute::from_bits(a.to_bits()) == Some(*a)));
    }
}
