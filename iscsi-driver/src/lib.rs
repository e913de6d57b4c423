//! iscsi-driver
