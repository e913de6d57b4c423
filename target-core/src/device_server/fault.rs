//! What went wrong, as sense data: the store's errors and those of data transfer.

use iscsi_proto::datamover::DataError;
use scsi_proto::{AdditionalSense, Sense, SenseKey};

use backstore::StoreError;

/// The sense data of a store's error.
pub(crate) fn of_store(error: StoreError) -> Sense {
    let (key, code, at) = match error {
        StoreError::Read(lba) => (SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR, lba),
        StoreError::Write(lba) => (SenseKey::MediumError, AdditionalSense::WRITE_ERROR, lba),
        StoreError::NoSpace => (SenseKey::DataProtect, AdditionalSense::SPACE_ALLOCATION_FAILED_WRITE_PROTECT, None),
        StoreError::ReadOnly => (SenseKey::DataProtect, AdditionalSense::WRITE_PROTECTED, None),
        StoreError::Miscompare(offset) => return miscompare(offset.into()),
        StoreError::Unsupported => (SenseKey::IllegalRequest, AdditionalSense::INVALID_COMMAND_OPERATION_CODE, None),
        StoreError::NotReady => (SenseKey::NotReady, AdditionalSense::NOT_READY_CAUSE_NOT_REPORTABLE, None),
        StoreError::Failed => (SenseKey::HardwareError, AdditionalSense::INTERNAL_TARGET_FAILURE, None),
    };
    Sense { information: at, ..Sense::new(key, code) }
}

/// What was sent is not what is on the medium, from this byte of the data on (SBC-4 5.3, 5.36).
pub(crate) fn miscompare(offset: u64) -> Sense {
    Sense::new(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION).with_information(offset)
}

/// The sense data of a transfer that broke (RFC 7143 11.4.7.2).
pub(crate) fn of_transfer(error: DataError) -> Sense {
    Sense::aborted_command(match error {
        DataError::UnexpectedUnsolicitedData => AdditionalSense::UNEXPECTED_UNSOLICITED_DATA,
        DataError::IncorrectAmountOfData => AdditionalSense::INCORRECT_AMOUNT_OF_DATA,
        // RFC 7143 7.9 has a sequence error answered as a lost PDU, which is what a digest error makes of one.
        DataError::DigestError | DataError::OutOfSequence => AdditionalSense::PROTOCOL_SERVICE_CRC_ERROR,
    })
}

/// A length without R and W, where it has no meaning (RFC 7143 11.3.1, 11.3.4).
pub(crate) fn no_direction() -> Sense {
    Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
}

/// An access past the last block; the INFORMATION is the first address that does not exist.
pub(crate) fn out_of_range(first_bad: u64) -> Sense {
    Sense::illegal_request(AdditionalSense::LBA_OUT_OF_RANGE).with_information(first_bad)
}
