use super::*;
use proptest::prelude::*;

#[test]
fn cdbs_stand_as_the_standards_draw_them() {
    assert_eq!(test_unit_ready().as_bytes(), [0; 6]);
    assert_eq!(read_capacity_10().as_bytes(), [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        ReadCapacity16 { allocation_length: 32 }.to_cdb().as_bytes(),
        [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]
    );
    assert_eq!(
        GetLbaStatus { lba: 1, allocation_length: 24, report_type: 0 }.to_cdb().as_bytes(),
        [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 24, 0, 0]
    );
    assert_eq!(
        ReportLuns { select_report: 2, allocation_length: 0x1000 }.to_cdb().as_bytes(),
        [0xa0, 0, 2, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]
    );
    assert_eq!(
        Unmap { anchor: true, parameter_list_length: 24 }.to_cdb().as_bytes(),
        [0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0]
    );
    assert_eq!(
        ReportTargetPortGroups { extended: true, allocation_length: 0xff }.to_cdb().as_bytes(),
        [0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0]
    );
    assert_eq!(
        PersistentReserveOut { action: 1, scope: 0, kind: 5, parameter_list_length: 24 }.to_cdb().as_bytes(),
        [0x5f, 1, 5, 0, 0, 0, 0, 0, 24, 0]
    );
    assert_eq!(StartStopUnit { start: true, ..StartStopUnit::default() }.to_cdb().as_bytes(), [0x1b, 0, 0, 0, 1, 0]);
}

#[test]
fn a_page_code_without_evpd_is_noticed() {
    let cdb = [opcode::INQUIRY, 0, 0x83, 0, 96, 0];
    let cdb = Cdb::new(&cdb).unwrap();
    assert_eq!(Inquiry::parse(cdb).page, None);
    assert!(Inquiry::stray_page_code(cdb));
}

#[test]
fn six_byte_lengths_are_bounded() {
    let sense = ModeSense {
        ten: false,
        disable_block_descriptors: true,
        long_lba_accepted: false,
        control: PageControl::Changeable,
        page: 0x08,
        subpage: 0,
        allocation_length: 4096,
    };
    assert_eq!(sense.to_cdb().as_bytes(), [0x1a, 8, 0x48, 0, 255, 0]);
    let select = ModeSelect {
        ten: false,
        page_format: true,
        revert_to_defaults: false,
        save_pages: false,
        parameter_list_length: 256,
    };
    assert_eq!(select.to_cdb(), None);
}

proptest! {
    /// Every command type reads back what it wrote, whatever bytes its fields came from.
    #[test]
    fn what_is_parsed_is_emitted_alike(bytes: [u8; 16]) {
        let with = |code: u8| {
            let mut cdb = bytes;
            cdb[0] = code;
            CdbBuf::new(&cdb).unwrap()
        };
        macro_rules! round_trip {
            ($($kind:ident at $code:ident),* $(,)?) => {$({
                let cdb = with(opcode::$code);
                let fields = $kind::parse(cdb.as_cdb());
                prop_assert_eq!($kind::parse(fields.to_cdb().as_cdb()), fields);
                prop_assert_eq!(fields.to_cdb().as_cdb().opcode(), opcode::$code);
            })*};
        }
        round_trip!(
            Inquiry at INQUIRY,
            ReportLuns at REPORT_LUNS,
            ReadCapacity16 at SERVICE_ACTION_IN_16,
            GetLbaStatus at SERVICE_ACTION_IN_16,
            Unmap at UNMAP,
            ModeSense at MODE_SENSE_6,
            ModeSense at MODE_SENSE_10,
            RequestSense at REQUEST_SENSE,
            ReportSupportedOpcodes at MAINTENANCE_IN,
            ReportSupportedTmfs at MAINTENANCE_IN,
            ReportTargetPortGroups at MAINTENANCE_IN,
            StartStopUnit at START_STOP_UNIT,
            PreventAllow at PREVENT_ALLOW_MEDIUM_REMOVAL,
            PersistentReserveIn at PERSISTENT_RESERVE_IN,
            PersistentReserveOut at PERSISTENT_RESERVE_OUT,
        );
        for code in [opcode::MODE_SELECT_6, opcode::MODE_SELECT_10] {
            let fields = ModeSelect::parse(with(code).as_cdb());
            let back = fields.to_cdb().map(|cdb| ModeSelect::parse(cdb.as_cdb()));
            prop_assert_eq!(back, Some(fields));
        }
    }
}
