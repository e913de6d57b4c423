//! iscsi-driver
#![forbid(unsafe_code)]
