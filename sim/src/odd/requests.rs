//! What the odd target says beside the answers of commands: to requests that are no commands, and unasked.

use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, NopIn, RESERVED_TAG, TaskFunction, TaskManagementRequest, TaskManagementResponse,
    TaskResponse, TextRequest, TextResponse,
};

use super::plan::Farewell;
use super::target::{Connection, WINDOW};

impl Connection {
    /// Carries out a task management function.
    pub(super) fn manage(&mut self, request: &TaskManagementRequest) {
        let response = match request.function {
            Ok(TaskFunction::AbortTask) => match self.tasks.remove(&request.referenced_task_tag) {
                Some(_) => TaskResponse::Complete,
                None => TaskResponse::TaskDoesNotExist,
            },
            _ => {
                self.tasks.clear();
                self.has_reset = true;
                TaskResponse::Complete
            }
        };
        let answer = TaskManagementResponse {
            response,
            additional: 0,
            itt: request.itt,
            stat_sn: self.status_number(),
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        };
        self.say(answer.emit(), &[]);
    }

    /// Asks the initiator for the end of the connection.
    pub(super) fn say_farewell(&mut self, farewell: &Farewell) {
        self.has_parted = true;
        let (event, parameter2, parameter3) = match farewell {
            Farewell::AsksForLogout { within, .. } => (AsyncEvent::LogoutRequest, 0, *within),
            Farewell::Drops { time2wait } => (AsyncEvent::SessionDrop, *time2wait, 0),
        };
        let message = AsyncMessage {
            event,
            lun: 0,
            stat_sn: self.status_number(),
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
            parameter1: 0,
            parameter2,
            parameter3,
        };
        self.say(message.emit(), &[]);
        self.is_over |= event == AsyncEvent::SessionDrop;
    }

    /// The window opens that was closed at login, and the initiator hears of it.
    pub(super) fn open(&mut self) {
        self.opens_at = None;
        self.max_cmd_sn = self.exp_cmd_sn.advance(WINDOW - 1);
        let word = NopIn {
            lun: 0,
            itt: RESERVED_TAG,
            ttt: RESERVED_TAG,
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        };
        self.say(word.emit(), &[]);
    }

    pub(super) fn answer_text(&mut self, request: &TextRequest) {
        let answer = TextResponse {
            is_final: true,
            incomplete: false,
            lun: 0,
            itt: request.itt,
            ttt: RESERVED_TAG,
            stat_sn: self.status_number(),
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        };
        self.say(answer.emit(), b"TargetAlias=odd\0");
    }
}
