//! Tests of the whole queue.

mod format;
mod hostile;
mod paired;
mod raw;
mod startup;
mod wire;
