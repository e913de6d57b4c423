//! An initiator's session against a target that is odd: it restarts with and without its memory, or as another disk, takes less than was sent, swaps its
//! answers, answers late, closes its command window for ever, or hangs on a slow line.
//!
//! The target is played here PDU by PDU, since no honest one does these things. The oracle is the [model](crate::model) of the disk: what was acknowledged
//! is there, unless the session has told that it is lost; a flush is good when the medium has what was acknowledged before; nothing reaches another disk;
//! a write that was given up does not land over a later one; no session is lost while bytes flow; every call ends.
//!
//! | part | what it is |
//! |---|---|
//! | `plan` | what a seed means |
//! | `disk` | the disk, with a volatile cache |
//! | `target` | the target's end of a connection |
//! | `requests` | what it says beside the answers of commands |
//! | `unit` | what commands come to at its disk |
//! | `arrivals` | the order in which writes come |
//! | `session` | what uses the initiator's session |
//! | `world` | all of it on virtual time |
//! | [`library`] | the same target, and the library's sessions and disks over the tokio driver |
//! | [`paths`] | a disk by several paths |

mod arrivals;
mod disk;
pub mod library;
pub mod paths;
mod plan;
mod requests;
mod session;
mod target;
mod unit;
mod world;

pub use world::run;
