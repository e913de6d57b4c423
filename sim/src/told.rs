//! What the operators of a world's servers hear, and what they have to hear.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iscsi_proto::pdu::TaskFunction;
use iscsi_proto::time::Instant;
use target_core::registry::{Event, Registry};

/// That a store holds back what this session's initiator has had there since.
#[derive(Debug)]
struct Wanted {
    number: u64,
    since: Instant,
    function: TaskFunction,
}

#[derive(Debug, Default)]
struct Heard {
    now: Instant,
    /// Who holds operations back, and when that was told last.
    overdue: BTreeMap<String, Instant>,
    /// Sessions without a connection of which that was told, and not yet that they have ended.
    unfinished: BTreeMap<(String, String), u64>,
    /// The names of the initiators, by the numbers of their sessions.
    names: BTreeMap<u64, String>,
    /// What is to be told by the end of this instant.
    wanted: Vec<Wanted>,
    broken: Option<String>,
}

/// What they have heard. All servers of a world tell the same operator.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<Mutex<Heard>>);

impl Told {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is `now`.
    pub fn at(&self, now: Instant) {
        self.heard().now = now;
    }

    /// Hears what a server tells from now on.
    pub fn listen(&self, registry: &Registry) {
        let told = self.clone();
        registry.set_on_event(move |event| told.hear(event));
    }

    fn hear(&self, event: &Event) {
        let heard = &mut *self.heard();
        match event {
            Event::OperationsOverdue { initiator_name, target_name, connection_ended, .. } => {
                heard.overdue.insert(initiator_name.clone(), heard.now);
                if *connection_ended {
                    *heard.unfinished.entry((initiator_name.clone(), target_name.clone())).or_default() += 1;
                }
            }
            Event::OperationsEnded { initiator_name, target_name } => {
                let told = heard.unfinished.get_mut(&(initiator_name.clone(), target_name.clone()));
                match told.filter(|told| **told > 0) {
                    Some(told) => *told -= 1,
                    None => {
                        let what = format!("{event}, of which nobody was told that it held them back");
                        heard.broken.get_or_insert(what);
                    }
                }
            }
            _ => {}
        }
    }

    /// Session `number` is one of this initiator.
    pub fn name(&self, number: u64, initiator: &str) {
        self.heard().names.insert(number, initiator.into());
    }

    /// A function is rejected: by the end of this instant it is to be told, if it was not at `since` or later, that a
    /// store holds operations of this session's initiator back. The session may have its turn after that of the answer.
    pub fn must_tell(&self, function: TaskFunction, number: u64, since: Instant) {
        self.heard().wanted.push(Wanted { number, since, function });
    }

    /// What was told without what has to come before it, and what was not told: to be asked when an instant is over.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let heard = &mut *self.heard();
        for Wanted { number, since, function } in std::mem::take(&mut heard.wanted) {
            let told = heard.names.get(&number).and_then(|name| heard.overdue.get(name));
            if told.is_none_or(|at| *at < since) {
                let what = format!("nothing of what session {number} has at the store, and {function:?} is rejected");
                heard.broken.get_or_insert(what);
            }
        }
        heard.broken.clone()
    }
}
