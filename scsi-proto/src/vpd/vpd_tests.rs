use super::*;
use crate::Ascii;
use alloc::vec;
use proptest::prelude::*;

fn round_trip(page: &VpdPage) -> Vec<u8> {
    let bytes = page.to_bytes(Peripheral::DISK);
    assert_eq!(bytes[1], page.code());
    assert_eq!(VpdPage::parse_expected(&bytes, page.code()).as_ref(), Ok(page));
    bytes
}

#[test]
fn device_identification_stands_as_drawn() {
    let page = VpdPage::DeviceIdentification(vec![
        Designator::of_unit(DesignatorId::Naa16(naa_6(0x02_0000, 0x1_2345_6789, 7))),
        Designator::of_port(DesignatorId::RelativeTargetPort(1)),
        Designator::of_port(DesignatorId::ScsiName("iqn.a,t,0x0001".into())),
        Designator::of_unit(DesignatorId::T10Vendor { vendor: Ascii::new("EXAMPLE"), id: "1".into() }),
    ]);
    let bytes = round_trip(&page);
    assert_eq!(bytes[..8], [0, 0x83, 0, 61, 0x01, 0x03, 0, 16]);
    assert_eq!(bytes[8..24], [0x60, 0x20, 0, 1, 0x23, 0x45, 0x67, 0x89, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(bytes[24..32], [0x51, 0x94, 0, 4, 0, 0, 0, 1]);
    assert_eq!(bytes[32..36], [0x53, 0x98, 0, 16]);
    assert_eq!(&bytes[36..52], b"iqn.a,t,0x0001\0\0");
    assert_eq!(&bytes[52..], b"\x02\x01\0\x09EXAMPLE 1");
}

#[test]
fn block_pages_stand_as_drawn() {
    let limits = BlockLimits {
        write_same_non_zero: true,
        max_compare_and_write: 1,
        max_transfer: 0x800,
        max_unmap_blocks: u32::MAX,
        max_unmap_descriptors: 16,
        unmap_granularity: 8,
        unmap_alignment: Some(0),
        max_write_same: 0x1_0000,
        ..BlockLimits::default()
    };
    let bytes = round_trip(&VpdPage::BlockLimits(limits));
    assert_eq!(bytes.len(), 64);
    assert_eq!(bytes[..12], [0, 0xb0, 0, 60, 1, 1, 0, 0, 0, 0, 8, 0]);
    assert_eq!(bytes[20..36], [255, 255, 255, 255, 0, 0, 0, 16, 0, 0, 0, 8, 0x80, 0, 0, 0]);
    assert_eq!(bytes[36..44], [0, 0, 0, 0, 0, 1, 0, 0]);
    let bytes = round_trip(&VpdPage::BlockCharacteristics(BlockCharacteristics::SOLID_STATE));
    assert_eq!((bytes.len(), &bytes[4..6]), (64, &[0, 1][..]));
    let thin = BlockProvisioning {
        unmap: true,
        write_same_16: true,
        write_same_10: true,
        reads_zero: 1,
        anchor: true,
        provisioning_type: 2,
        ..BlockProvisioning::default()
    };
    assert_eq!(round_trip(&VpdPage::BlockProvisioning(thin)), [0, 0xb2, 0, 4, 0, 0xe6, 2, 0]);
    let bytes = round_trip(&VpdPage::ExtendedInquiry(ExtendedInquiry::TASK_ATTRIBUTES));
    assert_eq!((bytes.len(), bytes[5]), (64, 7));
}

#[test]
fn a_short_page_of_an_older_device_reads_as_zeros() {
    // SBC-2 devices return 12 bytes of block limits.
    let page = [0, 0xb0, 0, 12, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0, 0];
    let Ok(VpdPage::BlockLimits(limits)) = VpdPage::parse(&page) else { panic!() };
    assert_eq!((limits.optimal_granularity, limits.max_transfer, limits.max_unmap_blocks), (8, 256, 0));
    assert!(matches!(VpdPage::parse(&page[..3]), Err(DataError::TooShort { .. })));
    assert!(matches!(VpdPage::parse_expected(&page, 0xb1), Err(DataError::Unexpected { .. })));
}

#[test]
fn made_up_designators_follow_the_seed() {
    assert_ne!(naa_6_from_seed(b"a"), naa_6_from_seed(b"b"));
    assert_eq!(naa_6_from_seed(b"a")[..3], [0x60, 0x20, 0x00]);
}

proptest! {
    /// Whatever a peer sends parses to pages that emit what parses to the same again.
    #[test]
    fn what_is_parsed_is_emitted_alike(
        code in proptest::sample::select(&[0u8, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2, 0xc0][..]),
        body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = vec![0, code, 0, body.len() as u8];
        bytes.extend_from_slice(&body);
        let page = VpdPage::parse(&bytes).unwrap();
        // A provisioning group bit without a descriptor is the one thing that is not kept.
        prop_assert_eq!(VpdPage::parse(&page.to_bytes(Peripheral::DISK)), Ok(page));
    }

    #[test]
    fn designators_round_trip(
        kind in 0u8..16, set in 0u8..16, association in 0u8..4, protocol in proptest::option::of(0u8..16),
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut page = vec![0, 0x83, 0, bytes.len() as u8 + 4];
        page.extend([
            protocol.unwrap_or(0) << 4 | set,
            u8::from(protocol.is_some()) << 7 | association << 4 | kind,
            0,
            bytes.len() as u8,
        ]);
        page.extend(bytes);
        let parsed = VpdPage::parse(&page).unwrap();
        prop_assert_eq!(VpdPage::parse(&parsed.to_bytes(Peripheral::DISK)), Ok(parsed));
    }

    #[test]
    fn any_bytes_parse_or_not(bytes: Vec<u8>) {
        let _ = VpdPage::parse(&bytes);
    }
}
