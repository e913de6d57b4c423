//! The order of writes that overlap, over all paths.
//!
//! A write waits for those before it that overlap it. One that was under way on a path that was lost may still be
//! carried out by the target: what it may touch stays claimed until the target has ended it, so that nothing later is
//! written there before.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
struct Held {
    number: u64,
    blocks: Range<u64>,
    /// Paths on which it may still be under way at the target.
    doubts: Vec<usize>,
    done: bool,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    held: Vec<Held>,
}

/// What is being written, and what may still be.
#[derive(Debug, Default)]
pub(super) struct Claims {
    book: Mutex<Book>,
    changed: Notify,
}

/// Blocks that one write holds.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    number: u64,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a write in its turn; [`Claim::granted`] waits for those before it.
    pub(super) fn enter(self: &Arc<Self>, blocks: Range<u64>) -> Claim {
        let mut book = self.lock();
        let number = book.next;
        book.next += 1;
        book.held.push(Held { number, blocks, doubts: Vec::new(), done: false });
        drop(book);
        Claim { claims: self.clone(), number }
    }

    /// The target has ended what was under way on a path.
    pub(super) fn resolve(&self, path: usize) {
        let mut book = self.lock();
        for held in &mut book.held {
            held.doubts.retain(|other| *other != path);
        }
        book.held.retain(|held| !held.done || !held.doubts.is_empty());
        drop(book);
        self.changed.notify_waiters();
    }

    /// Whether something may still be under way on a path that was lost.
    pub(super) fn is_in_doubt(&self, path: usize) -> bool {
        self.lock().held.iter().any(|held| held.doubts.contains(&path))
    }
}

impl Claim {
    /// Waits for the writes before it that overlap it.
    pub(super) async fn granted(&self) {
        loop {
            let changed = self.claims.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_first() {
                return;
            }
            changed.await;
        }
    }

    fn is_first(&self) -> bool {
        let book = self.claims.lock();
        let Some(own) = book.held.iter().find(|held| held.number == self.number) else { return true };
        !book.held.iter().any(|held| held.number < self.number && overlap(&held.blocks, &own.blocks))
    }

    /// It was under way on a path that is lost.
    pub(super) fn doubt(&self, path: usize) {
        if let Some(held) = self.claims.lock().held.iter_mut().find(|held| held.number == self.number)
            && !held.doubts.contains(&path)
        {
            held.doubts.push(path);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut book = self.claims.lock();
        if let Some(at) = book.held.iter().position(|held| held.number == self.number) {
            if book.held[at].doubts.is_empty() {
                book.held.remove(at);
            } else {
                book.held[at].done = true;
            }
        }
        drop(book);
        self.claims.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_waits_for_what_came_before_and_for_what_may_still_be_carried_out() {
        let claims = Arc::new(Claims::default());
        let first = claims.enter(0..8);
        let (second, beside) = (claims.enter(7..9), claims.enter(9..10));
        assert!(first.is_first() && beside.is_first() && !second.is_first());
        first.doubt(1);
        drop(first);
        assert!(claims.is_in_doubt(1) && !second.is_first(), "the target may still write it");
        claims.resolve(0);
        assert!(!second.is_first(), "that was another path");
        claims.resolve(1);
        assert!(second.is_first() && !claims.is_in_doubt(1));
        drop((second, beside));
        assert!(claims.lock().held.is_empty());
    }
}
