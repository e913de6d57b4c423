//! initiator-core
