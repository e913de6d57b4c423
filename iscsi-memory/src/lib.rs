//! iscsi-memory
