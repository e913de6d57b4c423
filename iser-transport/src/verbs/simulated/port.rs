//! One end's way to its device.
#![allow(unsafe_code, reason = "a device reads memory by its address")]

use std::sync::{Arc, Mutex};

use iscsi_memory::{DevicePiece, Registrar};
use iscsi_proto::time::Instant;

use super::super::connection::Parameters;
use super::super::fake_domain::FakeDomain;
use super::super::port::{Batch, Capacity, Port, PortEvent, Refused, WorkCompletion};
use super::wire::Wire;
use super::{Device, lock};
use crate::loopback::End;
use crate::queue::EndCause;

/// The [`Port`] of a simulated device.
#[derive(Debug)]
pub(in crate::verbs) struct SimulatedPort {
    pub(super) wire: Arc<Mutex<Wire>>,
    domain: Option<Arc<FakeDomain>>,
    end: End,
}

impl SimulatedPort {
    pub(super) fn new(wire: Arc<Mutex<Wire>>, device: &Device, end: End) -> Self {
        Self { wire, domain: Some(device.domain.clone()), end }
    }
}

impl Port for SimulatedPort {
    fn now(&self) -> Instant {
        lock(&self.wire).now
    }

    fn capacity(&self) -> Capacity {
        lock(&self.wire).capacity(self.end)
    }

    fn told(&self) -> Option<Parameters> {
        (self.end == End::Passive).then(|| lock(&self.wire).parameters(self.end))
    }

    fn registrar(&self) -> Option<&dyn Registrar> {
        self.domain.as_deref().map(|domain| domain as &dyn Registrar)
    }

    fn establish(&mut self) -> Result<(), EndCause> {
        lock(&self.wire).establish(self.end)
    }

    unsafe fn post(&mut self, batch: &Batch) -> Result<(), Refused> {
        lock(&self.wire).post(self.end, batch)
    }

    unsafe fn post_receives(&mut self, receives: &[(u64, Option<DevicePiece>)]) -> Result<(), Refused> {
        lock(&self.wire).post_receives(self.end, receives);
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<WorkCompletion>) -> Result<(), ()> {
        lock(&self.wire).poll(self.end, completions);
        Ok(())
    }

    fn poll_event(&mut self) -> Option<PortEvent> {
        lock(&self.wire).poll_event(self.end)
    }

    fn disconnect(&mut self) {
        lock(&self.wire).leave(self.end);
    }

    fn fail(&mut self) {
        let mut wire = lock(&self.wire);
        wire.fail(self.end);
        wire.was_used = true;
    }

    fn destroy(&mut self) -> bool {
        let mut wire = lock(&self.wire);
        wire.destroy(self.end);
        wire.was_used = true;
        drop(wire);
        self.domain = None;
        true
    }
}
