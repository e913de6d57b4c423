//! The questions to a unit after a new login: device identification, unit serial number, capacity. See `guard`.

use iscsi_memory::{Buf, Payload};
use iscsi_proto::time::Instant;
use scsi_proto::capacity::{ReadCapacity10, ReadCapacity16};
use scsi_proto::command::{Inquiry, ReadCapacity16 as AskCapacity16, read_capacity_10};
use scsi_proto::vpd::{self, VpdPage};
use scsi_proto::{AdditionalSense, CdbBuf, Lun, SenseKey};

use super::Engine;
use super::guard::Standing;
use super::slots::{Errand, Moved};
use crate::application::{Application, Event};
use crate::command::{Command, Failure, Outcome};
use crate::identity::Identity;

/// What is asked, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Names,
    Serial,
    Capacity16,
    Capacity10,
}

/// Bytes of an answer that are looked at. A page that is longer is cut, and tells what fits.
const ROOM: usize = 1024;

impl Question {
    fn cdb(self) -> CdbBuf {
        let page = |code| Inquiry { page: Some(code), allocation_length: ROOM as u16 }.to_cdb();
        match self {
            Self::Names => page(vpd::DEVICE_IDENTIFICATION),
            Self::Serial => page(vpd::UNIT_SERIAL_NUMBER),
            Self::Capacity16 => AskCapacity16 { allocation_length: 32 }.to_cdb(),
            Self::Capacity10 => read_capacity_10(),
        }
    }

    fn room(self) -> usize {
        match self {
            Self::Names | Self::Serial => ROOM,
            Self::Capacity16 => 32,
            Self::Capacity10 => 8,
        }
    }
}

/// What an answer comes to.
enum Told {
    /// The next question.
    Next(Question),
    /// All is told.
    All,
    /// There is no unit, or it cannot tell: this is what its commands end with.
    Nothing(Result<Outcome, Failure>),
}

impl<A: Application> Engine<A> {
    /// Asks units who they are for whose commands that is to be known.
    #[inline]
    pub(super) fn ask_who_they_are(&mut self, now: Instant) {
        if !self.guards.are_content() {
            self.ask_the_next(now);
        }
    }

    #[cold]
    fn ask_the_next(&mut self, now: Instant) {
        // There is room for one question at a time.
        if self.guards.are_asked() {
            return;
        }
        let is_unknown =
            |number: &u32| self.guards.get(*number).is_some_and(|guard| guard.standing == Standing::Unknown);
        let Some(number) = self.slots.ready_guards().find(is_unknown).or_else(|| self.guards.to_ask()) else { return };
        self.guards.set(number, Standing::Asking);
        if let Some(guard) = self.guards.get_mut(number) {
            guard.found = Identity::default();
        }
        self.ask(number, Question::Names, now);
    }

    fn ask(&mut self, number: u32, question: Question, now: Instant) {
        let Some(lun) = self.guards.get(number).map(|guard| guard.lun) else { return };
        let mut command = Command::new(u64::MAX, lun, question.cdb());
        command.data_in = Some(Payload::Buf(Buf::zeroed(question.room())));
        self.enter(command, 0, question.room() as u32, Some(Errand::Ask(number, question)), now);
    }

    /// A question is answered, or has no answer.
    pub(super) fn told(
        &mut self,
        (number, question): (u32, Question),
        result: Result<Outcome, Failure>,
        data: &[u8],
        now: Instant,
    ) {
        let Some(guard) = self.guards.get_mut(number).filter(|guard| guard.standing == Standing::Asking) else {
            return;
        };
        // What the unit did not tell when it was opened, it need not tell.
        let is_wanted = match question {
            Question::Names => !guard.expected.names.is_empty(),
            Question::Serial => guard.expected.serial.is_some(),
            Question::Capacity16 | Question::Capacity10 => true,
        };
        match take_down(&mut guard.found, question, is_wanted, result, data) {
            Told::Next(question) => self.ask(number, question, now),
            Told::Nothing(result) => {
                self.guards.set(number, Standing::Unknown);
                self.end_guarded(number, result, now);
            }
            Told::All => self.compare(number, now),
        }
    }

    fn compare(&mut self, number: u32, now: Instant) {
        let Some(guard) = self.guards.get_mut(number) else { return };
        let lun = guard.lun;
        if let Some(difference) = guard.expected.differs(&guard.found) {
            self.guards.set(number, Standing::Other);
            self.app.event(Event::OtherDisk { guard: number, lun, difference: &difference });
            self.end_guarded(number, Err(Failure::OtherDisk), now);
            return;
        }
        if guard.found.blocks > guard.expected.blocks {
            guard.expected.blocks = guard.found.blocks;
            let Identity { blocks, block_size, .. } = guard.found;
            self.app.event(Event::Resized { guard: number, lun, blocks, block_size });
        }
        self.guards.set(number, Standing::Known);
    }

    /// Ends the commands of a guard that wait to be sent.
    pub(super) fn end_guarded(&mut self, number: u32, result: Result<Outcome, Failure>, now: Instant) {
        for index in 0..self.slots.size() {
            if let Some(task) = self.slots.get_mut(index)
                && task.command.guard == Some(number)
                && task.state.is_waiting()
            {
                self.finish(index, result, Moved::NOTHING, now);
            }
        }
    }

    /// A unit attention tells of something that a guard has to look at.
    pub(super) fn heed(&mut self, lun: Lun, code: AdditionalSense, now: Instant) {
        match code {
            // It says this of every new I_T nexus, as tgt does, and LIO without an access list: nobody knows whether its
            // power was off.
            AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED if self.guards.is_greeting(lun) => {
                for number in self.guards.power_may_have_been_off(lun) {
                    self.app.event(Event::LostWrites { guard: number, lun });
                }
                self.guards.doubt(Some(lun));
            }
            AdditionalSense::POWER_ON_OCCURRED
            | AdditionalSense::DEVICE_INTERNAL_RESET
            | AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED => {
                for number in self.guards.power_was_off(lun) {
                    self.app.event(Event::LostWrites { guard: number, lun });
                    self.end_guarded(number, Err(Failure::LostWrites), now);
                }
                self.guards.doubt(Some(lun));
            }
            AdditionalSense::INQUIRY_DATA_HAS_CHANGED | AdditionalSense::CAPACITY_DATA_HAS_CHANGED => {
                self.guards.changed(Some(lun));
            }
            AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED => self.guards.changed(None),
            _ => {}
        }
    }
}

/// Takes down what an answer tells.
fn take_down(
    found: &mut Identity,
    question: Question,
    is_wanted: bool,
    result: Result<Outcome, Failure>,
    data: &[u8],
) -> Told {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(failure) => return Told::Nothing(Err(failure)),
    };
    let good = outcome.is_good();
    let has_code = |code| outcome.sense.is_some_and(|sense| sense.code == code);
    let refused = !has_code(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED)
        && (!is_wanted || outcome.sense.is_some_and(|sense| sense.key == SenseKey::IllegalRequest));
    if !good && !refused {
        return Told::Nothing(Ok(outcome));
    }
    // A page that is refused, or that makes no sense, costs what it would have told.
    match question {
        Question::Names | Question::Serial => {
            // SPC-5 6.6.2: a PERIPHERAL QUALIFIER other than 0 means that no device is there.
            if good && data.first().is_some_and(|first| first >> 5 != 0) {
                return Told::Nothing(Ok(Outcome::no_unit()));
            }
            let page = VpdPage::parse(data).ok().filter(|_| good);
            if question == Question::Names {
                page.iter().for_each(|page| found.set_names(page));
                return Told::Next(Question::Serial);
            }
            page.iter().for_each(|page| found.set_serial(page));
            Told::Next(Question::Capacity16)
        }
        Question::Capacity16 if refused => Told::Next(Question::Capacity10),
        Question::Capacity16 => {
            match ReadCapacity16::parse(data).ok().and_then(|told| Some((told.blocks()?, told.block_length))) {
                Some((blocks, block_size)) => {
                    (found.blocks, found.block_size) = (blocks, block_size);
                    Told::All
                }
                None => Told::Nothing(Err(Failure::TargetFailure(0))),
            }
        }
        Question::Capacity10 => match ReadCapacity10::parse(data) {
            Ok(told) if good => {
                (found.blocks, found.block_size) = (u64::from(told.last_lba) + 1, told.block_length);
                Told::All
            }
            _ => Told::Nothing(Err(Failure::TargetFailure(0))),
        },
    }
}
