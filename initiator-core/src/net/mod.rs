//! The initiator over tokio sockets: discovery, sessions, disks, and the loop for load generators.

mod connector;
mod discovery;
mod disk;
mod disk_io;
mod events;
mod info;
#[cfg(feature = "iser")]
mod iser;
mod load;
mod mailbox;
mod multipath;
mod portals;
mod runner;
mod session;
mod transport;

pub use connector::{Connected, Connector};
pub use discovery::discover;
pub use disk::Disk;
pub use disk_io::{DiskIo, DiskIoOptions};
pub use events::{Events, SessionEvent};
pub use info::{
    Authentication, Discovered, DiscoveredPortal, DiscoveredTarget, DiskInfo, Extent, SessionInfo, SessionStats,
};
pub use load::{BlockCompletion, BlockRequest, Direction, Next, Workload, run_load};
pub use multipath::{Multipath, PathInfo};
pub use session::{Answer, Session, Transfer};
