//! A store of which a small part is kept, and the rest is room for big commands: what is written there is counted, and
//! zeroes are read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{Abilities, Backstore, Geometry, StoreError};
use tokio::time::sleep;

use super::work::Meter;
use crate::rng::Rng;

/// How it behaves.
#[derive(Debug, Clone, Copy)]
pub struct StorePlan {
    /// Blocks of 512 bytes that are kept.
    pub kept: u64,
    /// Blocks behind them.
    pub room: u64,
    /// Operations in 1000 that take time, and how much at most; the others are done at once.
    pub delay: (u64, Duration),
    /// Operations in 1000 that take very long, and how long at most.
    pub slow: (u64, Duration),
}

#[derive(Debug)]
struct Medium {
    bytes: Vec<u8>,
    rng: Rng,
}

/// The store.
#[derive(Debug)]
pub struct WorkStore {
    plan: StorePlan,
    meter: Meter,
    medium: Mutex<Medium>,
    under_way: AtomicUsize,
}

/// An operation under way.
struct Operation<'a>(&'a AtomicUsize);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkStore {
    /// All zeroes.
    #[must_use]
    pub fn new(plan: StorePlan, meter: &Meter, rng: Rng) -> Arc<Self> {
        let medium = Mutex::new(Medium { bytes: vec![0; plan.kept as usize * 512], rng });
        Arc::new(Self { plan, meter: meter.clone(), medium, under_way: AtomicUsize::new(0) })
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Does the work of an operation that moves so many bytes, and waits as long as it takes.
    async fn begin(&self, bytes: usize) -> Operation<'_> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let operation = Operation(&self.under_way);
        self.meter.spend(bytes);
        let delay = {
            let rng = &mut self.medium().rng;
            let is_slow = rng.permille(self.plan.slow.0);
            let is_late = rng.permille(self.plan.delay.0);
            let most = match (is_slow, is_late) {
                (true, _) => self.plan.slow.1,
                (_, true) => self.plan.delay.1,
                _ => Duration::ZERO,
            };
            most.mul_f64(rng.below(1000) as f64 / 1000.0)
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        operation
    }

    /// What is kept of `len` bytes from a block on: where it lies.
    fn kept(&self, lba: u64, len: usize) -> std::ops::Range<usize> {
        let end = self.plan.kept as usize * 512;
        let at = (lba as usize * 512).min(end);
        at..(at + len).min(end)
    }

    /// What is kept.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.medium().bytes.clone()
    }
}

#[async_trait]
impl Backstore for WorkStore {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes((self.plan.kept + self.plan.room) * 512)
    }

    fn abilities(&self) -> Abilities {
        Abilities { unmap: true, unmapped_reads_zero: true, ..Abilities::default() }
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let _operation = self.begin(data.len()).await;
        let kept = self.kept(lba, data.len());
        let (now, rest) = data.split_at_mut(kept.len());
        now.copy_from_slice(&self.medium().bytes[kept]);
        rest.fill(0);
        Ok(())
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let _operation = self.begin(data.len()).await;
        let kept = self.kept(lba, data.len());
        self.medium().bytes[kept.clone()].copy_from_slice(&data[..kept.len()]);
        Ok(())
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        let _operation = self.begin(0).await;
        let kept = self.kept(lba, blocks as usize * 512);
        self.medium().bytes[kept].fill(0);
        Ok(())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let _operation = self.begin(0).await;
        Ok(())
    }
}
