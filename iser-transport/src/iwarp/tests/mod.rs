//! Tests of the whole queue.

mod paired;
mod wire;
