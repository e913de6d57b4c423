use super::*;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;

#[test]
fn fixed_format_stands_as_the_standard_draws_it() {
    let sense = Sense::invalid_field_in_cdb(2).with_information(0x0102_0304);
    let bytes = sense.to_bytes(SenseFormat::Fixed);
    assert_eq!(*bytes, [0xf0, 0, 5, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2]);
}

#[test]
fn descriptor_format_holds_64_bits_of_information() {
    let sense = Sense::new(SenseKey::MediumError, AdditionalSense::UNRECOVERED_READ_ERROR).with_information(1 << 40);
    let bytes = sense.to_bytes(SenseFormat::Descriptor);
    assert_eq!(*bytes, [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(Sense::parse(&bytes), Ok(sense));
    // The fixed format leaves out what it cannot hold.
    let fixed = Sense::parse(&sense.to_bytes(SenseFormat::Fixed)).unwrap();
    assert_eq!(fixed.information, None);
}

#[test]
fn short_and_foreign_data_are_told_apart() {
    assert!(matches!(Sense::parse(&[]), Err(DataError::TooShort { .. })));
    assert!(matches!(Sense::parse(&[0x70, 0]), Err(DataError::TooShort { .. })));
    assert!(matches!(Sense::parse(&[0x7f; 18]), Err(DataError::Reserved { .. })));
    let cut = Sense::parse(&[0x70, 0, 6, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(cut, Sense::unit_attention(AdditionalSense::NONE));
}

#[test]
fn it_reads_as_a_sentence() {
    let sense = Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, 0);
    assert_eq!(sense.to_string(), "ILLEGAL REQUEST: INVALID FIELD IN CDB (byte 1 bit 0 of the CDB)");
    let sense =
        Sense::new(SenseKey::Miscompare, AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION).with_information(512);
    assert_eq!(sense.to_string(), "MISCOMPARE: MISCOMPARE DURING VERIFY OPERATION, information 0x200");
}

fn senses() -> impl Strategy<Value = Sense> {
    (
        (0u8..16, any::<(u8, u8)>(), any::<bool>(), any::<Option<u64>>(), any::<Option<u64>>()),
        (any::<Option<[u8; 3]>>(), any::<u8>(), any::<bool>()),
    )
        .prop_map(|((key, (asc, ascq), deferred, information, command), (specific, fru, ili))| {
            let key = SenseKey::from_bits(key);
            Sense {
                key,
                code: AdditionalSense::new(asc, ascq),
                deferred,
                information,
                command_specific: command,
                specific: specific.and_then(|[a, b, c]| SenseKeySpecific::parse(key, [a | 0x80, b, c])),
                field_replaceable_unit: fru,
                incorrect_length: ili,
            }
        })
}

proptest! {
    #[test]
    fn descriptor_format_round_trips(sense in senses()) {
        let bytes = sense.to_bytes(SenseFormat::Descriptor);
        prop_assert_eq!(Sense::parse(&bytes), Ok(sense));
    }

    #[test]
    fn fixed_format_round_trips_what_it_has_room_for(sense in senses()) {
        let narrow = |value: Option<u64>| value.map(|value| value & 0xffff_ffff);
        let sense = Sense {
            information: narrow(sense.information),
            command_specific: narrow(sense.command_specific).filter(|value| *value != 0),
            ..sense
        };
        let bytes = sense.to_bytes(SenseFormat::Fixed);
        prop_assert_eq!(Sense::parse(&bytes), Ok(sense));
    }

    #[test]
    fn any_bytes_parse_or_not(bytes: Vec<u8>, response in 0x6eu8..0x75) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() { *first = response; }
        if let Ok(sense) = Sense::parse(&bytes) {
            let _ = sense.to_string();
        }
    }
}
