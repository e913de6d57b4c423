//! Tests of the whole queue.

mod hostile;
mod paired;
mod raw;
mod startup;
mod wire;
