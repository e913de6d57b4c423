//! The conformance cases of queue pairs, over the providers that need no device.

mod iwarp;
mod loopback;
