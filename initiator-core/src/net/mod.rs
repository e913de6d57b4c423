//! The initiator over tokio sockets: discovery, sessions, disks, and the loop for load generators.

mod disk;
mod info;
mod load;
mod session;

pub use disk::Disk;
pub use info::{Authentication, DiscoveredPortal, DiscoveredTarget, DiskInfo, Extent, SessionInfo, SessionStats};
pub use load::{BlockCompletion, BlockRequest, Direction, Next, Workload, run_load};
pub use session::{Answer, Session, Transfer, discover};
