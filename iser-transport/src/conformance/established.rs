//! How a connection comes to be.

use super::rig::Rig;
use super::{End, Harness, Plan};

/// Work and receives may be posted at once; the ledger sees to it that `Established` is what comes first.
pub(super) fn established_comes_first(harness: &mut dyn Harness) {
    let mut rig = Rig::connecting(harness, &Plan::default());
    for end in End::BOTH {
        rig.receive(end, 4, 128);
    }
    for byte in 0..4 {
        rig.send(End::Active, &[byte; 100]);
    }
    for byte in 0..4 {
        assert_eq!(rig.message(End::Passive).0, [byte; 100]);
        rig.send(End::Passive, &[byte; 50]);
        assert_eq!(rig.message(End::Active).0, [byte; 50]);
    }
    rig.close();
}

pub(super) fn private_data_arrive(harness: &mut dyn Harness) {
    const LONG: &[u8] = &[0xc0; 40];
    let cases: [[&[u8]; 2]; 5] =
        [[&[0x80, 0, 0, 0], &[0xc0, 0, 0, 0]], [&[], &[]], [&[0x40], &[]], [&[], LONG], [LONG, &[0]]];
    for private in cases {
        let rig = Rig::connected(harness, &Plan { private, ..Plan::default() });
        for end in End::BOTH {
            let seen = rig.established(end).and_then(|established| established.peer_private);
            let sent = private[end.other() as usize].first().copied();
            let padded = rig.knobs().pads_private && sent.is_none() && seen == Some(0);
            assert!(seen == sent || padded, "{end:?} sees the private data {seen:?}, {sent:?} was sent");
        }
        rig.close();
    }
}

pub(super) fn the_read_depth_is_agreed(harness: &mut dyn Harness) {
    for read_depth in [[16, 16], [4, 16], [16, 4], [1, 1]] {
        let rig = Rig::connected(harness, &Plan { read_depth, ..Plan::default() });
        for end in End::BOTH {
            let depth = rig.established(end).map_or(0, |established| established.read_depth);
            let most = read_depth[0].min(read_depth[1]);
            assert!((1..=most).contains(&depth), "{end:?} may read {depth} deep, {read_depth:?} was asked for");
            let served = rig.established(end.other()).map_or(0, |established| established.served_depth);
            assert!(served >= depth, "{end:?} may read {depth} deep, and its peer serves {served}");
        }
        rig.close();
    }
}
