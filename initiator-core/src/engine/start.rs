//! Units that wait for START STOP UNIT (SBC-4 5.31): NOT READY, INITIALIZING COMMAND REQUIRED (04h/02h).
//!
//! A command that meets it has not run. The unit is started, once, and the command sent again; what it then meets is
//! its answer. Commands of one unit share one START STOP UNIT.

use iscsi_proto::time::Instant;
use scsi_proto::Lun;
use scsi_proto::command::StartStopUnit;

use super::Engine;
use super::slots::{Errand, State};
use crate::application::Application;
use crate::command::Command;

impl<A: Application> Engine<A> {
    /// Sends START STOP UNIT to the next unit whose commands wait for it. There is room for one at a time.
    pub(super) fn start_units(&mut self, now: Instant) {
        if self.slots.starting() == 0 {
            return;
        }
        let is_start = |errand: &Option<Errand>| matches!(errand, Some(Errand::Start));
        if self.slots.iter().any(|(_, task)| is_start(&task.errand)) {
            return;
        }
        let waits = self.slots.iter().find(|(_, task)| task.state == State::Starting);
        let Some(lun) = waits.map(|(_, task)| task.command.lun) else { return };
        let command = Command::new(u64::MAX, lun, StartStopUnit { start: true, ..StartStopUnit::default() }.to_cdb());
        self.enter(command, 0, 0, Some(Errand::Start), now);
    }

    /// A unit has answered its START STOP UNIT, or could not be asked: its commands try once more, and tell what they
    /// meet.
    pub(super) fn start_answered(&mut self, lun: Lun) {
        for index in 0..self.slots.size() {
            if let Some(task) = self.slots.get_mut(index)
                && task.state == State::Starting
                && task.command.lun == lun
            {
                task.start_tried = true;
                self.slots.set_state(index, State::Ready);
            }
        }
    }
}
