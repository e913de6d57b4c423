//! What the status of a failed request says about who is at fault.

use crate::queue::EndCause;

/// The request was flushed: the queue pair had failed before, for another reason.
pub(super) const FLUSHED: i32 = 5;

/// The cause behind a failed work request. `None` when it only says that something else went wrong.
pub(super) fn of_work(status: i32) -> Option<EndCause> {
    Some(match status {
        FLUSHED => return None,
        9 => EndCause::ByPeer("it refused a request as invalid"),
        10 => EndCause::ByPeer("it refused access to its memory"),
        11 => EndCause::ByPeer("it could not complete a request"),
        12 => EndCause::Broken,
        13 => EndCause::ByPeer("it had no receive for a message"),
        16 => EndCause::ByPeer("it gave up"),
        1 => EndCause::WorkFailed("a message is too long"),
        4 => EndCause::WorkFailed("the device may not reach the memory of a request"),
        7 => EndCause::PeerProtocol("its answer makes no sense"),
        8 => EndCause::WorkFailed("the device may not write where a Read lands"),
        20 => EndCause::Broken,
        _ => EndCause::WorkFailed("the device gave up"),
    })
}

/// The cause behind a failed receive.
pub(super) fn of_receive(status: i32) -> Option<EndCause> {
    Some(match status {
        FLUSHED => return None,
        1 => EndCause::PeerProtocol("a message is longer than its receive"),
        8 | 10 => EndCause::PeerProtocol("it named memory that it may not reach so"),
        9 => EndCause::PeerProtocol("it asked for what no queue pair does"),
        4 => EndCause::WorkFailed("the device may not reach the memory of a receive"),
        _ => EndCause::WorkFailed("the device gave up on a receive"),
    })
}
