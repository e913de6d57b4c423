use super::*;
use alloc::vec;
use proptest::prelude::*;

#[test]
fn the_linux_disk_driver_finds_the_cache_bits() {
    // MODE SENSE(6), page 08h: the byte after code and length has WCE (bit 2) and RCD (bit 0).
    let data = ModeData {
        header: ModeHeader {
            dpo_fua: true,
            write_protected: true,
            block: Some(BlockDescriptor::Short { blocks: 0x1_0000, block_length: 512 }),
            ..ModeHeader::default()
        },
        pages: vec![ModePage::Caching(Caching { write_cache: true, read_cache_disabled: true, ..Caching::default() })],
    };
    let six = data.to_bytes(false);
    assert_eq!(six[..15], [31, 0, 0x90, 8, 0, 1, 0, 0, 0, 0, 2, 0, 0x08, 18, 0x05]);
    assert_eq!(six.len(), 32);
    let ten = data.to_bytes(true);
    assert_eq!(ten[..8], [0, 34, 0, 0x90, 0, 0, 0, 8]);
    assert_eq!(ModeData::parse(&six, false).as_ref(), Ok(&data));
    assert_eq!(ModeData::parse(&ten, true).as_ref(), Ok(&data));
    let list = data.to_select_list(true);
    assert_eq!(list[..8], [0, 0, 0, 0, 0, 0, 0, 8]);
    assert!(data.page(page_code::CACHING, 0).is_some());
    assert!(data.page(page_code::CONTROL, 0).is_none());
}

#[test]
fn the_control_pages_stand_as_drawn() {
    let control = Control {
        descriptor_sense: true,
        queue_algorithm: 1,
        queue_error: 3,
        unit_attention_interlock: 2,
        software_write_protect: true,
        task_aborted_status: true,
        busy_timeout: 0xffff,
        self_test_time: 1,
        ..Control::default()
    };
    let mut page = Vec::new();
    ModePage::Control(control).emit(&mut page);
    assert_eq!(page, [0x0a, 10, 0x04, 0x16, 0x28, 0x40, 0, 0, 0xff, 0xff, 0, 1]);
    page.clear();
    let extension = ModePage::ControlExtension(ControlExtension { max_sense_length: 252, ..Default::default() });
    extension.emit(&mut page);
    assert_eq!(page[..8], [0x4a, 1, 0, 28, 0, 0, 252, 0]);
    assert_eq!((page.len(), extension.code(), extension.subpage()), (32, 0x0a, 1));
    page.clear();
    ModePage::InformationalExceptions(InformationalExceptions {
        flags: InformationalExceptions::DISABLED,
        ..Default::default()
    })
    .emit(&mut page);
    assert_eq!(page, [0x1c, 10, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    page.clear();
    ModePage::ReadWriteErrorRecovery(ReadWriteErrorRecovery {
        write_reallocation: true,
        read_reallocation: true,
        ..Default::default()
    })
    .emit(&mut page);
    assert_eq!(page, [0x01, 10, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_cut_page_is_an_error_or_left_out() {
    let pages = vec![ModePage::Control(Control::default()), ModePage::Caching(Caching::default())];
    let data = ModeData { header: ModeHeader::default(), pages }.to_bytes(false);
    let cut = &data[..data.len() - 1];
    assert!(matches!(ModeData::parse(cut, false), Err(DataError::TooShort { need: 20, got: 19, .. })));
    assert_eq!(ModeData::parse_cut(cut, false).unwrap().pages.len(), 1);
    assert!(ModeData::parse_cut(&data[..3], false).is_err());
    assert!(ModeData::parse(&[0, 0, 0, 8, 0], false).is_err());
}

#[test]
fn a_long_descriptor_fits_the_ten_byte_form_only() {
    let block = Some(BlockDescriptor::Long { blocks: 1 << 40, block_length: 4096 });
    let data = ModeData { header: ModeHeader { block, ..Default::default() }, pages: Vec::new() };
    let ten = data.to_bytes(true);
    assert_eq!(ten[..8], [0, 22, 0, 0, 1, 0, 0, 16]);
    assert_eq!(ModeData::parse(&ten, true).as_ref(), Ok(&data));
    let short = ModeData::parse(&data.to_bytes(false), false).unwrap().header.block;
    assert_eq!(short, Some(BlockDescriptor::Short { blocks: u32::MAX, block_length: 4096 }));
}

proptest! {
    #[test]
    fn pages_round_trip(
        first in proptest::sample::select(&[0x01u8, 0x08, 0x0a, 0x4a, 0x1c, 0x02, 0x59, 0x81, 0x88, 0x8a, 0xca,
            0x9c][..]),
        body in any::<[u8; 28]>(),
        exact: bool,
    ) {
        let length = match first & 0x7f {
            _ if !exact => 5,
            0x01 | 0x0a | 0x1c => 10,
            0x08 => 18,
            0x4a => 28,
            _ => 7,
        };
        let mut bytes = if first & 0x40 != 0 { vec![first, 1, 0, length] } else { vec![first, length] };
        bytes.extend_from_slice(&body[..length.into()]);
        let (page, rest) = ModePage::parse(&bytes).unwrap();
        prop_assert!(rest.is_empty());
        let mut again = Vec::new();
        page.emit(&mut again);
        prop_assert_eq!(again.len(), bytes.len());
        prop_assert_eq!(&again[..2], &bytes[..2]);
        prop_assert_eq!(ModePage::parse(&again).unwrap().0, page);
    }

    #[test]
    fn any_bytes_parse_or_not(bytes: Vec<u8>, ten: bool) {
        let mut bytes = bytes;
        // No block descriptors, so that pages are reached.
        for at in [3, 6, 7] {
            if let Some(byte) = bytes.get_mut(at) { *byte = 0; }
        }
        if let Ok(data) = ModeData::parse_cut(&bytes, ten) {
            prop_assert_eq!(ModeData::parse(&data.to_bytes(true), true).map(|data| data.pages), Ok(data.pages));
        }
    }
}
