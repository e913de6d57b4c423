//! What uses the session of one path: commands are put in, and what becomes of them is taken out.

use std::collections::VecDeque;
use std::task::Waker;

use initiator_core::application::{Application, Control, ControlAnswer, Event};
use initiator_core::command::{Command, Completion};
use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

/// What a session has told.
#[derive(Debug)]
pub(super) enum Told {
    LoggedIn,
    Attention(AdditionalSense),
    OtherDisk,
    Resized(u64),
    Completed(Completion),
    Answered(ControlAnswer),
}

#[derive(Debug)]
pub(super) struct PathUses {
    commands: VecDeque<Command>,
    controls: VecDeque<Control>,
    pub(super) told: VecDeque<Told>,
    waker: Waker,
}

impl PathUses {
    pub(super) fn new() -> Self {
        Self {
            commands: VecDeque::new(),
            controls: VecDeque::new(),
            told: VecDeque::new(),
            waker: Waker::noop().clone(),
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
        self.waker.wake_by_ref();
    }

    pub(super) fn control(&mut self, control: Control) {
        self.controls.push_back(control);
        self.waker.wake_by_ref();
    }
}

impl Application for PathUses {
    fn register(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
    }

    fn next_command(&mut self, _now: Instant) -> Option<Command> {
        self.commands.pop_front()
    }

    fn next_control(&mut self) -> Option<Control> {
        self.controls.pop_front()
    }

    fn complete(&mut self, completion: Completion, _now: Instant) {
        self.told.push_back(Told::Completed(completion));
    }

    fn control_complete(&mut self, _id: u32, answer: ControlAnswer) {
        self.told.push_back(Told::Answered(answer));
    }

    fn event(&mut self, event: Event<'_>) {
        self.told.push_back(match event {
            Event::LoggedIn(_) => Told::LoggedIn,
            Event::UnitAttention(_, code) => Told::Attention(code),
            Event::OtherDisk { .. } => Told::OtherDisk,
            Event::Resized { blocks, .. } => Told::Resized(blocks),
            _ => return,
        });
    }
}
