//! The executor itself.

use alloc::sync::Arc;
use core::task::Waker;

use iscsi_memory::{Buf, BufPool};
use iscsi_proto::datamover::{DataError, Sink, Source, TaskHandle, TaskStatus};
use iscsi_proto::pdu::Residual;
use iscsi_proto::scsi::{AdditionalSense, Sense, SenseBytes, SenseFormat, Status};

use super::{ExecutorConfig, NewTask, Nexus, Step};
use crate::lu::LunMap;

/// Runs the tasks of one session.
pub struct TaskExecutor {
    luns: Arc<LunMap>,
    nexus: Nexus,
    pool: BufPool,
    waker: Waker,
    sense: SenseBytes,
}

impl TaskExecutor {
    /// An executor for the session `nexus`, which sees `luns`.
    #[must_use]
    pub fn new(config: ExecutorConfig, luns: Arc<LunMap>, nexus: Nexus) -> Self {
        let pool = BufPool::new(config.max_idle);
        Self { luns, nexus, pool, waker: Waker::noop().clone(), sense: SenseBytes::default() }
    }

    /// The session that it serves.
    #[must_use]
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// A command came.
    pub fn start(&mut self, new: NewTask<'_>) -> Step<'_> {
        let code = match u16::try_from(new.lun >> 48).ok().and_then(|number| self.luns.get(number)) {
            Some(_) => AdditionalSense::INVALID_COMMAND_OPERATION_CODE,
            None => AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED,
        };
        self.sense = Sense::illegal_request(code).to_bytes(SenseFormat::Fixed);
        Step::Respond {
            data: Source::None,
            status: TaskStatus {
                status: Status::CheckCondition.to_byte(),
                residual: Residual::between(new.expected_data_transfer_length, 0),
                bidirectional_read_residual: Residual::None,
                sense: &self.sense,
            },
        }
    }

    /// The data of [`Step::GetData`] are in place.
    pub fn data_arrived(&mut self, task: TaskHandle, sink: Sink) -> Step<'_> {
        let _ = task;
        if let Sink::Buf(buf) = sink {
            self.give(buf);
        }
        Step::Pending
    }

    /// The data of [`Step::GetData`] did not come in whole.
    pub fn data_failed(&mut self, task: TaskHandle, sink: Sink, error: DataError) -> Step<'_> {
        let _ = error;
        self.data_arrived(task, sink)
    }

    /// Hands the gathered store requests to their stores: once per wake.
    pub fn submit(&mut self) {}

    /// What has become of tasks since.
    pub fn poll(&mut self) -> Option<(TaskHandle, Step<'_>)> {
        None
    }

    /// Forgets the task: no step follows. Store operations under way end unseen; [`busy`](Self::busy) counts them.
    pub fn abort(&mut self, task: TaskHandle) {
        let _ = task;
    }

    /// Who is woken when a store has something to say.
    pub fn set_waker(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
    }

    /// Store operations of aborted tasks that are still under way, for one LUN (by its eight bytes) or for all.
    #[must_use]
    pub fn busy(&self, lun: Option<u64>) -> usize {
        let _ = lun;
        0
    }

    /// Takes back a buffer that was sent ([`iscsi_proto::datamover::Notification::Released`]) or that a task had given to the mover.
    pub fn give(&mut self, buf: Buf) {
        self.pool.give(buf);
    }
}
