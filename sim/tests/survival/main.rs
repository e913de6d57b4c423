//! What a session over iSER survives, in both roles: whole sessions over loopback queue pairs, so that each fault is placed exactly.
//!
//! | what | the target survives it in | the initiator survives it in |
//! |---|---|---|
//! | the end of the connection at every step of login, of commands and of logout | [`both::whatever_goes_wrong_at_any_step`], [`target::every_end_at_every_stage`] | [`both::whatever_goes_wrong_at_any_step`], [`initiator::every_end_at_every_stage`], `initiator-core/tests/iser.rs` (`a_login_that_breaks_off_at_any_byte…`, `writes_survive_cut_connections_over_iser`) |
//! | RNR: the peer has no receive | [`target::an_initiator_without_receives`] | [`initiator::a_target_without_receives`] |
//! | a message without a receive of ours | [`target::more_messages_than_receives`], [`both::whatever_goes_wrong_at_any_step`] | [`initiator::more_messages_than_receives`], [`both::whatever_goes_wrong_at_any_step`] |
//! | an STag that is unknown, stale, out of range, of the wrong direction, or another connection's | [`target::a_bad_stag_of_a_read_touches_nothing`], [`target::a_bad_stag_of_a_write_brings_nothing`] | [`initiator::a_target_that_reaches_elsewhere_touches_nothing`], [`initiator::an_stag_is_dead_when_its_command_is_answered`], [`initiator::an_stag_that_is_not_the_commands_own_is_not_invalidated`] |
//! | a Send longer than the receive | [`target::a_message_longer_than_the_receive`] | [`initiator::a_message_longer_than_the_receive`] |
//! | a completion error | [`both::whatever_goes_wrong_at_any_step`] | [`both::whatever_goes_wrong_at_any_step`] |
//! | a connection that is refused | [`both::a_refused_connection`] | [`both::a_refused_connection`], `initiator-core/tests/iser.rs` (`auto_takes_tcp…`) |
//! | private data empty, short, long, padded | [`both::private_data_of_any_kind`], `target-core/tests/iser_portal.rs` (`private_data_may_be_missing…`) | [`both::private_data_of_any_kind`] |
//! | a peer that stops reading, for a while or for good | [`both::who_stops_reading_for_a_while_goes_on`], [`target::an_initiator_that_falls_silent`] | [`both::who_stops_reading_for_a_while_goes_on`], [`initiator::a_target_that_falls_silent`] |
//! | the device is gone | [`both::whatever_goes_wrong_at_any_step`] | [`both::whatever_goes_wrong_at_any_step`] |
//! | nothing is read or written but what a command advertised | [`target::nothing_is_touched_but_what_a_command_asks_for`], [`target::a_target_has_nothing_to_reach_for`] | [`initiator::a_target_that_reaches_elsewhere_touches_nothing`] |
//!
//! The same for queue pairs of every provider: the cases of `iser_transport::conformance`. For the movers alone: `iser-transport/tests/movers`, and the
//! tests beside the mover. By seeds and at random: the simulator over loopback and iWARP, and the fuzz targets `iser_target` and `iser_initiator`.

mod both;
mod initiator;
mod script;
mod target;
mod unexpected;
