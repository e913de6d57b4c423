//! The TCP mover from outside: pairs of movers over byte pipes, and movers against hand-made PDUs.

mod garbage;
mod initiator;
mod link;
mod pair;
mod target;
