//! Operation codes of the commands that a disk may meet (SPC-5 and SBC-4; assignments in T10's operation code list).

use core::fmt;

macro_rules! opcodes {
    ($($name:ident = $code:literal, $words:literal;)*) => {
        $(#[doc = concat!("`", stringify!($code), "`: ", $words, ".")] pub const $name: u8 = $code;)*

        /// The command's name in the standard's words, or the number for an operation code not in this list.
        ///
        /// ```
        /// use scsi_proto::opcode;
        /// assert_eq!(opcode::name(opcode::READ_10).to_string(), "READ(10)");
        /// assert_eq!(opcode::name(0xd1).to_string(), "operation code D1h");
        /// ```
        pub fn name(opcode: u8) -> impl fmt::Display {
            Name(opcode)
        }

        impl fmt::Display for Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($code => f.write_str($words),)*
                    other => write!(f, "operation code {other:02X}h"),
                }
            }
        }
    };
}

struct Name(u8);

opcodes! {
    TEST_UNIT_READY = 0x00, "TEST UNIT READY";
    REQUEST_SENSE = 0x03, "REQUEST SENSE";
    FORMAT_UNIT = 0x04, "FORMAT UNIT";
    REASSIGN_BLOCKS = 0x07, "REASSIGN BLOCKS";
    READ_6 = 0x08, "READ(6)";
    WRITE_6 = 0x0a, "WRITE(6)";
    INQUIRY = 0x12, "INQUIRY";
    MODE_SELECT_6 = 0x15, "MODE SELECT(6)";
    RESERVE_6 = 0x16, "RESERVE(6)";
    RELEASE_6 = 0x17, "RELEASE(6)";
    MODE_SENSE_6 = 0x1a, "MODE SENSE(6)";
    START_STOP_UNIT = 0x1b, "START STOP UNIT";
    RECEIVE_DIAGNOSTIC_RESULTS = 0x1c, "RECEIVE DIAGNOSTIC RESULTS";
    SEND_DIAGNOSTIC = 0x1d, "SEND DIAGNOSTIC";
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1e, "PREVENT ALLOW MEDIUM REMOVAL";
    READ_CAPACITY_10 = 0x25, "READ CAPACITY(10)";
    READ_10 = 0x28, "READ(10)";
    WRITE_10 = 0x2a, "WRITE(10)";
    WRITE_AND_VERIFY_10 = 0x2e, "WRITE AND VERIFY(10)";
    VERIFY_10 = 0x2f, "VERIFY(10)";
    PRE_FETCH_10 = 0x34, "PRE-FETCH(10)";
    SYNCHRONIZE_CACHE_10 = 0x35, "SYNCHRONIZE CACHE(10)";
    READ_DEFECT_DATA_10 = 0x37, "READ DEFECT DATA(10)";
    WRITE_BUFFER = 0x3b, "WRITE BUFFER";
    READ_BUFFER_10 = 0x3c, "READ BUFFER(10)";
    WRITE_SAME_10 = 0x41, "WRITE SAME(10)";
    UNMAP = 0x42, "UNMAP";
    SANITIZE = 0x48, "SANITIZE";
    LOG_SELECT = 0x4c, "LOG SELECT";
    LOG_SENSE = 0x4d, "LOG SENSE";
    XDWRITEREAD_10 = 0x53, "XDWRITEREAD(10)";
    MODE_SELECT_10 = 0x55, "MODE SELECT(10)";
    RESERVE_10 = 0x56, "RESERVE(10)";
    RELEASE_10 = 0x57, "RELEASE(10)";
    MODE_SENSE_10 = 0x5a, "MODE SENSE(10)";
    PERSISTENT_RESERVE_IN = 0x5e, "PERSISTENT RESERVE IN";
    PERSISTENT_RESERVE_OUT = 0x5f, "PERSISTENT RESERVE OUT";
    VARIABLE_LENGTH = 0x7f, "variable length CDB";
    THIRD_PARTY_COPY_OUT = 0x83, "third-party copy OUT";
    THIRD_PARTY_COPY_IN = 0x84, "third-party copy IN";
    ATA_PASS_THROUGH_16 = 0x85, "ATA PASS-THROUGH(16)";
    ACCESS_CONTROL_IN = 0x86, "ACCESS CONTROL IN";
    ACCESS_CONTROL_OUT = 0x87, "ACCESS CONTROL OUT";
    READ_16 = 0x88, "READ(16)";
    COMPARE_AND_WRITE = 0x89, "COMPARE AND WRITE";
    WRITE_16 = 0x8a, "WRITE(16)";
    ORWRITE_16 = 0x8b, "ORWRITE(16)";
    WRITE_AND_VERIFY_16 = 0x8e, "WRITE AND VERIFY(16)";
    VERIFY_16 = 0x8f, "VERIFY(16)";
    PRE_FETCH_16 = 0x90, "PRE-FETCH(16)";
    SYNCHRONIZE_CACHE_16 = 0x91, "SYNCHRONIZE CACHE(16)";
    WRITE_SAME_16 = 0x93, "WRITE SAME(16)";
    WRITE_ATOMIC_16 = 0x9c, "WRITE ATOMIC(16)";
    SERVICE_ACTION_IN_16 = 0x9e, "SERVICE ACTION IN(16)";
    SERVICE_ACTION_OUT_16 = 0x9f, "SERVICE ACTION OUT(16)";
    REPORT_LUNS = 0xa0, "REPORT LUNS";
    ATA_PASS_THROUGH_12 = 0xa1, "ATA PASS-THROUGH(12)";
    MAINTENANCE_IN = 0xa3, "MAINTENANCE IN";
    MAINTENANCE_OUT = 0xa4, "MAINTENANCE OUT";
    READ_12 = 0xa8, "READ(12)";
    WRITE_12 = 0xaa, "WRITE(12)";
    WRITE_AND_VERIFY_12 = 0xae, "WRITE AND VERIFY(12)";
    VERIFY_12 = 0xaf, "VERIFY(12)";
    READ_DEFECT_DATA_12 = 0xb7, "READ DEFECT DATA(12)";
}
