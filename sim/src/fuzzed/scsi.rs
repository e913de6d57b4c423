//! Every SCSI parser over any bytes, and back where a type goes both ways.

use scsi_proto::capacity::{ReadCapacity10, ReadCapacity16};
use scsi_proto::command::{
    GetLbaStatus, Inquiry, ModeSelect, ModeSense, PersistentReserveIn, PersistentReserveOut, PreventAllow,
    ReadCapacity16 as ReadCapacity16Command, ReportLuns, ReportSupportedOpcodes, ReportSupportedTmfs,
    ReportTargetPortGroups, RequestSense, StartStopUnit, Unmap,
};
use scsi_proto::inquiry::{Peripheral, StandardInquiry};
use scsi_proto::mode::ModeData;
use scsi_proto::provisioning::{UnmapList, lba_status_data, parse_lba_status_data, unmap_list};
use scsi_proto::report::{self, OneCommand, SupportedTmfs};
use scsi_proto::vpd::VpdPage;
use scsi_proto::{BlockIo, Cdb, CdbBuf, Lun, Sense, SenseFormat, Status, TaskAttribute, opcode};

/// All bytes are taken for each kind of data in turn.
pub fn scsi(data: &[u8]) {
    cdb(data);
    sense(data);
    pages(data);
    reports(data);
    if let Some(bytes) = data.first_chunk::<8>()
        && let Ok(lun) = Lun::parse(*bytes)
    {
        assert_eq!(Lun::parse(lun.to_bytes()), Ok(lun));
        let _ = format!("{lun}");
    }
    if let Some(&byte) = data.first() {
        assert!(Status::from_byte(byte).is_none_or(|status| status.to_byte() == byte));
        assert!(TaskAttribute::from_bits(byte).is_none_or(|attribute| attribute.to_bits() == byte));
        let _ = opcode::name(byte).to_string();
    }
}

fn cdb(data: &[u8]) {
    if let Some((field, extension)) = data.split_first_chunk::<16>()
        && let Ok(buf) = CdbBuf::from_parts(field, extension)
    {
        let again = CdbBuf::from_parts(&buf.pdu_field(), buf.extension());
        assert_eq!(again.as_ref().map(CdbBuf::as_bytes), Ok(buf.as_bytes()));
    }
    let Ok(cdb) = Cdb::new(data) else { return };
    let _ = (
        cdb.opcode(),
        cdb.service_action(),
        cdb.control(),
        cdb.naca(),
        cdb.allocation_length(),
        cdb.parameter_list_length(),
    );
    let _ = CdbBuf::new(data);
    if let Some(io) = BlockIo::parse(cdb) {
        let _ =
            (io.end(), io.fua(), io.dpo(), io.protect(), io.bytchk(), io.immed(), io.unmap(), io.anchor(), io.ndob());
        if let Some(built) = io.to_cdb(cdb.opcode()) {
            assert_eq!(BlockIo::parse(built.as_cdb()), Some(io), "a block command that was read can be written");
        }
    }
    macro_rules! round_trip {
        ($($command:ident)*) => {$({
            let command = $command::parse(cdb);
            let built = command.to_cdb();
            assert_eq!($command::parse(built.as_cdb()), command, "what {} makes, it reads", stringify!($command));
        })*};
    }
    round_trip!(ReportLuns ReadCapacity16Command GetLbaStatus Unmap RequestSense ReportSupportedTmfs ReportTargetPortGroups StartStopUnit
        PreventAllow PersistentReserveIn PersistentReserveOut);
    let inquiry = Inquiry::parse(cdb);
    assert_eq!(Inquiry::parse(inquiry.to_cdb().as_cdb()), inquiry);
    let _ = Inquiry::stray_page_code(cdb);
    let _ = ModeSense::parse(cdb).to_cdb();
    let _ = ModeSelect::parse(cdb).to_cdb();
    let _ = ReportSupportedOpcodes::parse(cdb).to_cdb();
}

fn sense(data: &[u8]) {
    let Ok(sense) = Sense::parse(data) else { return };
    let _ = format!("{sense}");
    for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
        let bytes = sense.to_bytes(format);
        let again = Sense::parse(&bytes).expect("sense data that we make parse");
        assert_eq!((again.key, again.code), (sense.key, sense.code));
        assert_eq!(*again.to_bytes(format), *bytes, "sense data settle after one round");
    }
}

fn pages(data: &[u8]) {
    if let Ok(page) = VpdPage::parse(data) {
        let bytes = page.to_bytes(Peripheral::DISK);
        let again = VpdPage::parse(&bytes).expect("a page that we make parses");
        assert_eq!(again.to_bytes(Peripheral::DISK), bytes, "a page settles after one round");
        let _ = VpdPage::parse_expected(data, page.code());
    }
    if let Ok(inquiry) = StandardInquiry::parse(data) {
        let bytes = inquiry.to_bytes();
        assert_eq!(StandardInquiry::parse(&bytes).map(|again| again.to_bytes()).as_ref(), Ok(&bytes));
    }
    for ten in [false, true] {
        if let Ok(mode) = ModeData::parse(data, ten) {
            let again = ModeData::parse(&mode.to_bytes(ten), ten).expect("mode data that we make parse");
            assert_eq!(again.pages.len(), mode.pages.len());
            let _ = mode.to_select_list(ten);
        }
        let _ = ModeData::parse_cut(data, ten);
    }
}

fn reports(data: &[u8]) {
    if let Ok(list) = UnmapList::parse(data) {
        let extents: Vec<_> = list.collect();
        let again = unmap_list(&extents);
        assert!(UnmapList::parse(&again).expect("a list that we make parses").eq(extents.iter().copied()));
    }
    if let Ok(statuses) = parse_lba_status_data(data) {
        assert_eq!(parse_lba_status_data(&lba_status_data(&statuses)), Ok(statuses));
    }
    if let Ok(capacity) = ReadCapacity10::parse(data) {
        assert_eq!(ReadCapacity10::parse(&capacity.to_bytes()), Ok(capacity));
    }
    if let Ok(capacity) = ReadCapacity16::parse(data) {
        let _ = (capacity.blocks(), capacity.bytes());
        assert_eq!(ReadCapacity16::parse(&capacity.to_bytes()), Ok(capacity));
    }
    let _ = (report::luns_length(data), report::parse_luns(data));
    if let Ok(commands) = report::parse_all_commands(data) {
        let bytes = report::all_commands(commands.iter().copied());
        assert_eq!(report::parse_all_commands(&bytes), Ok(commands));
    }
    if let Ok(command) = OneCommand::parse(data) {
        assert_eq!(OneCommand::parse(&command.to_bytes()), Ok(command));
    }
    if let Ok(tmfs) = SupportedTmfs::parse(data) {
        assert_eq!(
            SupportedTmfs::parse(&tmfs.to_bytes(true)).map(|again| again.to_bytes(false)),
            Ok(tmfs.to_bytes(false))
        );
    }
    for extended in [false, true] {
        if let Ok(groups) = report::parse_target_port_groups(data, extended) {
            let bytes = report::target_port_groups(&groups, extended.then_some(0));
            assert_eq!(report::parse_target_port_groups(&bytes, extended), Ok(groups));
        }
    }
}
