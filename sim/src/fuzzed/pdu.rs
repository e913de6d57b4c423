//! Every header through every parser, and back.

use iscsi_proto::pdu::{
    Ahs, AhsIter, AsyncMessage, BHS_LEN, Bhs, DataIn, DataOut, LoginRequest, LoginResponse, LogoutRequest,
    LogoutResponse, NopIn, NopOut, R2t, Reject, ScsiCommand, ScsiResponse, SnackRequest, TaskManagementRequest,
    TaskManagementResponse, TextRequest, TextResponse, emit_bidirectional_read_length, emit_extended_cdb, padding,
};

macro_rules! round_trip {
    ($bhs:expr, $($pdu:ident)*) => {
        $(if let Ok(pdu) = $pdu::parse($bhs) {
            let emitted = pdu.emit();
            assert_eq!($pdu::parse(&emitted).as_ref(), Ok(&pdu), "what {} emits, it parses", stringify!($pdu));
        })*
    };
}

/// Bytes 0 to 47 are a header, what follows is an AHS area.
pub fn pdu(data: &[u8]) {
    let mut header = [0; BHS_LEN];
    let n = data.len().min(BHS_LEN);
    header[..n].copy_from_slice(&data[..n]);
    let mut bhs = Bhs(header);
    // The opcode as it is, and then each in turn: a mutation of one field reaches all parsers.
    for opcode in [header[0] & 0x3f].into_iter().chain(0..0x40) {
        bhs.0[0] = header[0] & 0xc0 | opcode;
        let _ = (bhs.opcode(), format!("{bhs:?} {bhs}"), bhs.immediate(), bhs.is_final(), bhs.itt(), bhs.lun());
        assert!(bhs.ahs_len() <= 1020 && padding(bhs.data_segment_len()) < 4);
        round_trip!(&bhs, NopOut ScsiCommand TaskManagementRequest LoginRequest TextRequest DataOut LogoutRequest SnackRequest NopIn
            ScsiResponse TaskManagementResponse LoginResponse TextResponse DataIn LogoutResponse R2t AsyncMessage Reject);
    }
    additional_headers(&data[n..]);
}

fn additional_headers(area: &[u8]) {
    let mut segments = 0;
    for ahs in AhsIter::new(area) {
        segments += 1;
        let mut emitted = Vec::new();
        match ahs {
            Ok(Ahs::ExtendedCdb(rest)) if rest.len() <= 244 => emit_extended_cdb(&mut emitted, rest),
            Ok(Ahs::BidirectionalReadLength(len)) => emit_bidirectional_read_length(&mut emitted, len),
            _ => continue,
        }
        assert_eq!(emitted.len() % 4, 0);
        assert_eq!(AhsIter::new(&emitted).next(), Some(ahs));
    }
    assert!(segments <= area.len() / 4 + 1, "the walk through an AHS area advances");
}
