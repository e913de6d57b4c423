//! How a connection is driven: the contract of [`iscsi_proto::connection`], kept phase by phase.

use core::task::Context;

use iscsi_memory::{ReceiveSlice, ReceiveWindow, SendList};
use iscsi_proto::connection::{self, QueueConnection, QueueMover, StreamConnection, StreamEnd, StreamMover};
use iscsi_proto::datamover::{Datamover, MoverError};
use iscsi_proto::pdu::AsyncEvent;
use iscsi_proto::time::Instant;

use super::EndReason;
use super::logout::Logout;
use super::target_connection::{Ending, Phase, TargetConnection};

impl<M: Datamover> connection::Connection for TargetConnection<M> {
    fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Login(login) => Some(login.deadline),
            Phase::Reinstating(_, until) => Some(*until),
            Phase::FullFeature(session) => {
                let (own, session) = (self.connection.deadline(), session.deadline(self.connection.now));
                Some(session.map_or(own, |session| own.min(session)))
            }
            Phase::Ending(ending) => Some(ending.lingering.or(ending.flushing).unwrap_or(ending.until)),
            Phase::Finished => None,
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Login(login) if now >= login.deadline => self.end(EndReason::LoginTimeout, now),
            Phase::FullFeature(session) => {
                if session.held.deadline().is_some_and(|deadline| now >= deadline) {
                    self.end(EndReason::Gap, now);
                } else if let Logout::Asked(until) = self.connection.logout
                    && now >= until
                {
                    // RFC 7143 11.9.1: tell it if possible, then drop the connection.
                    let window = &session.commands.window;
                    self.connection.send_async(window, AsyncEvent::SessionDrop, 0, 0);
                    self.end(EndReason::Stopped, now);
                } else if let Err(reason) = session.watch(&mut self.connection, now) {
                    self.end(reason, now);
                }
            }
            _ => {}
        }
        self.pump(now);
        self.connection.mover.ring();
    }

    fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant) {
        if !self.connection.waker.will_wake(cx.waker()) {
            self.connection.waker.clone_from(cx.waker());
            if let Some(seat) = &self.seat {
                seat.mailbox.set_waker(cx.waker());
            }
        }
        // A store's wake-up uses the waker up: it is given anew each time.
        if let Some(executor) = self.session().and_then(|session| session.executor.as_mut()) {
            executor.set_waker(cx.waker());
        }
        while let Some(event) = self.seat.as_ref().and_then(|seat| seat.mailbox.take()) {
            self.event(event, now);
        }
        self.pump(now);
        self.connection.mover.ring();
    }

    fn has_more_work(&self) -> bool {
        match &self.phase {
            Phase::FullFeature(session) | Phase::Ending(Ending { session: Some(session), .. }) => {
                session.has_more_work()
            }
            _ => false,
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }
}

impl<M: StreamMover> StreamConnection for TargetConnection<M> {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        let closed = match &self.phase {
            Phase::FullFeature(_) => self.connection.is_stalled() && self.connection.mover.is_sending(),
            Phase::Login(_) | Phase::Ending(Ending { flushing: Some(_), .. }) => false,
            Phase::Reinstating(..) | Phase::Ending(_) | Phase::Finished => true,
        };
        if closed {
            return ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] };
        }
        self.connection.mover.receive_window()
    }

    fn handle_received(&mut self, n: usize, now: Instant) {
        self.connection.mover.handle_received(n);
        self.connection.heard(now);
        self.pump(now);
        self.connection.mover.ring();
    }

    fn handle_stream_end(&mut self, end: StreamEnd, now: Instant) {
        self.connection.mover.handle_stream_end(end);
        match &mut self.phase {
            Phase::FullFeature(_) => self.connection.unstall(),
            Phase::Reinstating(..) if end == StreamEnd::Broken => {
                self.end(EndReason::Transport(MoverError::Broken), now);
            }
            _ => {}
        }
        self.pump(now);
        if end == StreamEnd::Broken
            && let Phase::Ending(ending) = &mut self.phase
        {
            // Nothing can be sent any more.
            ending.flushing = None;
            self.connection.mover.connection_abort();
            self.pump_ending(now);
        }
        self.connection.mover.ring();
    }

    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        match &self.phase {
            Phase::Finished | Phase::Ending(Ending { flushing: None, .. }) => {}
            _ => self.connection.mover.fill_send_list(list),
        }
    }

    fn take_sent(&mut self, n: usize) {
        self.connection.mover.handle_sent(n);
    }

    fn go_on(&mut self, now: Instant) {
        self.connection.keepalive.sent(now);
        match &self.phase {
            Phase::FullFeature(session) => {
                if self.connection.is_stalled() || session.awaits_sends() {
                    self.pump(now);
                }
            }
            _ => self.pump_rarely(now),
        }
        self.connection.mover.ring();
    }
}

impl<M: QueueMover> QueueConnection for TargetConnection<M> {
    fn handle_completions(&mut self, now: Instant) -> bool {
        let any = self.connection.mover.handle_completions();
        if any {
            // Reliable transports complete what is sent when the peer has it: both directions are alive.
            self.connection.heard(now);
            self.connection.keepalive.sent(now);
            self.pump(now);
            self.connection.mover.ring();
        }
        any
    }
}
