//! A disk of a world: what it is made of, the logical unit that serves it, and the model of what it holds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use backstore::{Backstore, LinearStore, StripeStore};
use futures::FutureExt as _;
use iscsi_proto::time::Instant;
use scsi_proto::Lun;
use target_core::lu::{Identity, LogicalUnit, UnitAttributes};

use crate::careless::CarelessWrites;
use crate::model::{Model, Value, fill_block, first_value};
use crate::rng::Rng;
use crate::store::{Door, SimStore, StorePlan};
use crate::transport::Transport;

/// Bytes that a device registers at a time.
const PIECE: usize = 1 << 20;

/// The session whose blocks are there from the start.
const FROM_THE_START: u64 = 40;

/// How a disk is made of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// It is one.
    Single,
    /// A stripe over so many, in chunks of so many blocks.
    Stripe(u64, u64),
    /// So many, one after the other.
    Linear(u64),
}

/// What a disk is like.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    /// Each of its stores; the blocks are those of all of them together.
    pub store: StorePlan,
    /// How they are put together.
    pub build: Build,
}

impl DiskPlan {
    /// Of a single store.
    #[must_use]
    pub const fn single(store: StorePlan) -> Self {
        Self { store, build: Build::Single }
    }

    fn parts(&self) -> u64 {
        match self.build {
            Build::Single => 1,
            Build::Stripe(parts, _) | Build::Linear(parts) => parts,
        }
    }
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its LUN.
    pub lun: Lun,
    /// Its number.
    pub number: u16,
    /// Another LUN that names the same unit.
    pub second_lun: Option<u16>,
    /// What it is like.
    pub plan: DiskPlan,
    /// Its stores.
    pub parts: Vec<SimStore>,
    /// What it may hold.
    pub model: RefCell<Model>,
    /// What careless initiators have written to it, or begun to.
    pub careless: CarelessWrites,
    /// Tasks that another I_T nexus ends are answered TASK ABORTED.
    pub tells_aborted: bool,
    /// It was taken away from the target node, at least for a time.
    pub was_away: Cell<bool>,
    /// Flushes that failed and dropped data, as the model knows of them.
    dropped: Cell<u64>,
    /// How often it has crashed, and the target with it, which then knows nothing of what was before.
    pub crashes: Cell<u64>,
}

/// A disk that several look at.
pub type SharedDisk = Rc<Disk>;

impl Disk {
    /// A disk of zeroes, for initiators that come over this transport, which answers tasks that others end or does not.
    ///
    /// # Panics
    /// If there is no such LUN.
    #[must_use]
    pub fn new(
        (number, second_lun): (u16, Option<u16>),
        plan: DiskPlan,
        (transport, tells_aborted): (Transport, bool),
        mut rng: Rng,
    ) -> SharedDisk {
        let parts = plan.parts();
        let of_part = StorePlan { blocks: plan.store.blocks / parts, ..plan.store.clone() };
        let parts: Vec<_> = if parts == 1 {
            vec![SimStore::new(of_part, rng)]
        } else {
            (0..parts).map(|_| SimStore::new(of_part.clone(), Rng::new(rng.u64(), 0))).collect()
        };
        let mut disk = Self {
            lun: Lun::new(number).expect("a LUN that exists"),
            number,
            second_lun,
            model: RefCell::new(Model::new(1, 512, false)),
            plan,
            parts,
            careless: CarelessWrites::default(),
            tells_aborted,
            was_away: Cell::new(false),
            dropped: Cell::new(0),
            crashes: Cell::new(0),
        };
        let geometry = disk.store().geometry();
        // The devices that iSER speaks of read lent memory when they like.
        let torn = disk.plan.store.door == Door::Memory && transport != Transport::Tcp;
        disk.model = RefCell::new(Model::new(geometry.blocks, geometry.block_size as usize, torn));
        if let (Some(written), Door::Memory) = (disk.plan.store.mapped, disk.plan.store.door) {
            disk.preset(written, &mut Rng::new(u64::from(number), 0));
        }
        Rc::new(disk)
    }

    /// Some pieces of the disk are written from the start: each as a whole, or here and there.
    fn preset(&self, written: u64, rng: &mut Rng) {
        let Build::Single = self.plan.build else { return };
        let model = &mut *self.model.borrow_mut();
        let (len, size) = (model.len(), model.block_size());
        let piece = (PIECE / size) as u64;
        for first in (0..len).step_by(piece as usize) {
            let density = if rng.permille(written) { 1000 } else { rng.pick(&[0, 0, 100]) };
            for lba in first..(first + piece).min(len) {
                if !rng.permille(density) {
                    continue;
                }
                let mut data = vec![0; size];
                let value = first_value(FROM_THE_START, lba);
                fill_block(value, &mut data);
                self.parts[0].preset(lba, &data);
                let write = model.begin_write(lba, 1, |_| value);
                model.acknowledge(write);
            }
        }
    }

    fn compose(&self, parts: &[SimStore]) -> Arc<dyn Backstore> {
        let children = || parts.iter().map(|part| Arc::new(part.clone()) as Arc<dyn Backstore>).collect();
        match self.plan.build {
            Build::Single => Arc::new(parts[0].clone()),
            Build::Stripe(_, chunk) => {
                let chunk = chunk * u64::from(self.plan.store.block_size);
                Arc::new(StripeStore::new(children(), chunk).expect("parts that make a stripe"))
            }
            Build::Linear(_) => Arc::new(LinearStore::new(children()).expect("parts that make a linear store")),
        }
    }

    fn store(&self) -> Arc<dyn Backstore> {
        self.compose(&self.parts)
    }

    /// A logical unit that serves it, as after a start of the target.
    ///
    /// # Panics
    /// If no disk can be like that.
    #[must_use]
    pub fn unit(&self, name: &str) -> Arc<LogicalUnit> {
        let unit = LogicalUnit::new(self.store(), Identity::from_seed(name));
        let attributes = UnitAttributes { emulate_tas: self.tells_aborted, ..UnitAttributes::default() };
        Arc::new(unit.expect("a geometry that a disk can have").with_attributes(attributes))
    }

    /// What lies on the medium now. Only when it is calm.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        read_all(&*self.store())
    }

    /// What a crash would leave now at the least. None for a lent store.
    #[must_use]
    pub fn after_crash(&self) -> Option<Vec<u8>> {
        let left: Option<Vec<_>> = self.parts.iter().map(SimStore::after_crash).collect();
        let mut left = left?;
        if let (Build::Single, Some(left)) = (self.plan.build, left.pop_if(|_| self.parts.len() == 1)) {
            return Some(left);
        }
        let parts: Vec<_> = left.into_iter().zip(&self.parts).map(|(left, part)| part.of_content(left)).collect();
        Some(read_all(&*self.compose(&parts)))
    }

    /// The process that serves it dies, and its system with it.
    pub fn crash(&self) {
        self.crashes.set(self.crashes.get() + 1);
        self.parts.iter().for_each(SimStore::crash);
        self.model.borrow_mut().crash();
    }

    /// How many flushes have failed so far and dropped what they were to make durable, and whether something is dropped now
    /// that was not written again.
    #[must_use]
    pub fn has_dropped(&self) -> (u64, bool) {
        let add = |(all, any): (u64, bool), (one, now): (u64, bool)| (all + one, any | now);
        self.parts.iter().map(SimStore::dropped).fold((0, false), add)
    }

    /// The same, and the model hears of it.
    pub fn look_for_dropped(&self) -> (u64, bool) {
        let found = self.has_dropped();
        if self.dropped.replace(found.0) != found.0 {
            self.model.borrow_mut().dropped();
        }
        found
    }

    /// It has so many more blocks from now on, if it can grow. Returns whether it has.
    pub fn grow(&self, blocks: u64) -> bool {
        let can = self.plan.build == Build::Single && matches!(self.plan.store.door, Door::Queue | Door::Easy);
        if can {
            self.parts[0].grow(blocks);
            self.model.borrow_mut().grow(blocks);
        }
        can
    }

    /// A change of it under way that came before `since`, if there is one: of a session, or of anybody.
    #[must_use]
    pub fn older(&self, session: Option<u64>, since: Instant) -> Option<String> {
        self.parts.iter().find_map(|part| match session {
            Some(session) => part.older_of(session, since),
            None => part.older(since),
        })
    }

    /// Whether a block holds this, as far as that can be seen at any time: only where the store lends its memory.
    #[must_use]
    pub fn holds(&self, lba: u64, value: Value) -> bool {
        if self.plan.store.door != Door::Memory || self.plan.build != Build::Single {
            return true;
        }
        let size = self.plan.store.block_size as usize;
        let (mut data, mut wanted) = (vec![0; size], vec![0; size]);
        self.parts[0].peek(lba, &mut data);
        fill_block(value, &mut wanted);
        data == wanted
    }

    /// What came to it before `since`, of a session or of anybody, is of tasks that are aborted: nobody writes over it.
    pub fn aborted(&self, session: Option<u64>, since: Instant) {
        self.parts.iter().for_each(|part| part.aborted(session, since));
    }

    /// Whether something was under way at it not long before `now` that had come by `since`, or not long after.
    #[must_use]
    pub fn was_busy(&self, since: Instant, now: Instant) -> bool {
        self.parts.iter().any(|part| part.was_busy(since, now))
    }

    /// Sessions that have a write under way which came before `since`, and when that came: of one, or all.
    #[must_use]
    pub fn holders(&self, session: Option<u64>, since: Instant) -> Vec<(u64, Instant)> {
        let all = self.parts.iter().flat_map(|part| part.holders(since));
        all.filter(|(holder, _)| session.is_none_or(|session| *holder == session)).collect()
    }

    /// Commands, by [`crate::model::command_of`], that had a write under way at `since` which has ended, and when that
    /// came.
    #[must_use]
    pub fn ended_since(&self, since: Instant) -> Vec<(u64, Instant)> {
        self.parts.iter().flat_map(|part| part.ended_since(since)).collect()
    }
}

fn read_all(store: &dyn Backstore) -> Vec<u8> {
    let geometry = store.geometry();
    let mut data = vec![0; geometry.bytes() as usize];
    let read = store.read(0, &mut data).now_or_never();
    read.expect("a calm store takes no time").expect("a calm store does not fail");
    data
}
