//! iSCSI Extensions for RDMA (RFC 7145): the room of the iSER mover and its RDMA providers. **Nothing is implemented here yet.**
//!
//! # What is to come
//!
//! An iSER mover for both roles behind the very same [`Datamover`](iscsi_proto::datamover::Datamover) that the TCP mover implements, sans-IO: it emits
//! work requests (receive, Send, Send-with-Invalidate, RDMA Write, RDMA Read) and takes work completions, so that it runs in the simulator too. Three
//! providers carry the work requests: `loopback` (in process, with faults by seed), `iwarp` (MPA, DDP and RDMAP over an ordinary TCP socket in user
//! space) and `verbs` (rdma_cm and ibverbs, by `dlopen`).
//!
//! # What the rest of the house already holds ready
//!
//! - [`Caps`](iscsi_proto::datamover::Caps) tells login and buffer allocation what a mover can do: digests, registered memory, the limit of copying.
//!   Nothing above the seam asks which mover it has.
//! - `put_data` takes the data and the response in one call: an RDMA Write chained with its Send in one post.
//! - Buffers move into the mover and come back in a notification, which is what memory under a work request needs; a store's
//!   `Region` (crate `iscsi-memory`) is registered once and its slices are advertised.
//! - The login machines negotiate the keys of RFC 7145 section 6 when the offer asks for RDMAExtensions.
//! - A portal has a flag for iSER, and the first bytes of a connection tell an MPA request from an iSCSI login on the same TCP port.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
