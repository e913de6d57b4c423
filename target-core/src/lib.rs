//! target-core
