//! A generic iSCSI initiator to embed: discovery, sessions with recovery, and a block-device handle.
//!
//! The core does no I/O: a connection takes bytes, commands and time, and gives bytes and completions. The features
//! connect it to the world: `tokio` adds discovery, sessions and disks over sockets, among them a disk as a
//! [`Backstore`](backstore::Backstore).
//!
//! | layer | what |
//! |---|---|
//! | [`Session`], [`Disk`], [`discover`] (feature `tokio`) | what applications hold |
//! | [`Multipath`] (feature `tokio`) | a disk by several sessions |
//! | [`DiskIo`] (feature `tokio`) | a disk as a stream of bytes |
//! | [`Events`] (feature `tokio`) | what happens in a session |
//! | [`run_load`] (feature `tokio`) | the engine without a hop between tasks, for load generators |
//! | [`Recovery`] | when to connect anew |
//! | [`InitiatorConnection`] | one connection: login, then the engine over a mover; any driver of streams runs it |
//! | [`Engine`] and its [`Application`] | the session at ErrorRecoveryLevel 0; outlives its connections |
//!
//! # Recovery
//!
//! When the connection is lost (cut, dead, digest error, target's wish), the session logs in again with the same ISID,
//! which reinstates it at the target (RFC 7143 6.3.5), and sends again what was not acknowledged, where that may be
//! done twice ([`command::Repeat`]). What was acknowledged is never touched.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod application;
pub mod command;
mod config;
mod connection;
mod engine;
#[cfg(feature = "std")]
mod entropy;
mod error;
mod identity;
mod jitter;
mod login;
pub mod multipath;
#[cfg(feature = "std")]
mod own_name;
mod recovery;
mod url;

#[cfg(feature = "tokio")]
mod net;

pub use application::Application;
pub use config::{DiscoveryConfig, IserConfig, Limits, ReconnectPolicy, SessionConfig, Timeouts};
pub use connection::{ConnectionEnd, InitiatorConnection, LoginSummary};
pub use engine::Engine;
pub use error::{Cause, ConfigError, Error};
pub use identity::{Difference, Identity, KnownDisk};
pub use login::LoginConfig;
pub use multipath::{Access, MultipathConfig, PathPolicy};
#[cfg(feature = "std")]
pub use own_name::default_initiator_name;
pub use recovery::{GivenUp, Recovery, Service, may_heal};
pub use url::{Credentials, DEFAULT_PORT, Portal, Rdma, Transport, Url, UrlError};

#[cfg(feature = "tokio")]
pub use net::*;

#[cfg(feature = "tokio")]
mod store;

#[cfg(feature = "tokio")]
pub use store::RemoteStore;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
