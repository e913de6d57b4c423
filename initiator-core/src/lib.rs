//! A generic iSCSI initiator to embed: discovery, sessions with recovery, and a block-device handle.
//!
//! The core does no I/O: a connection takes bytes, commands and time, and gives bytes and completions. The features connect it to the world: `tokio` adds
//! discovery, sessions and disks over sockets, `backstore` makes a remote disk a store of a target.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
mod config;
mod error;
mod url;

#[cfg(feature = "tokio")]
mod net;

pub use config::{DEFAULT_INITIATOR_NAME, DiscoveryConfig, Limits, ReconnectPolicy, SessionConfig, Timeouts};
pub use error::Error;
pub use url::{Credentials, DEFAULT_PORT, Portal, Transport, Url, UrlError};

#[cfg(feature = "tokio")]
pub use net::*;
