//! iser-transport
