//! What a session keeps of each logical unit it sees.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use iscsi_memory::RegionSlice;

use super::Nexus;
use super::executor::Bell;
use super::landing::UnitLanding;
use super::progress::cost;
use crate::lu::{Attentions, FlushesHeard, LogicalUnit, LunMap, UnitAttention};
use backstore::queue::EasyQueue;
use backstore::{Backstore, StoreCompletion, StoreOp, StoreQueue, StoreRequest};

/// One LUN of a session.
pub(super) struct Lun {
    pub(super) number: u16,
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) read_only: bool,
    pub(super) attentions: Attentions,
    pub(super) flushes: FlushesHeard,
    /// Tasks in the table.
    pub(super) active: u32,
    /// Of these, ORDERED and HEAD OF QUEUE ones.
    pub(super) barriers: u32,
    /// Of these, tasks that wait for others.
    pub(super) waiting: u32,
    /// Store operations of aborted tasks.
    pub(super) orphans: u32,
    /// Store operations submitted or gathered.
    in_flight: u32,
    queue: Option<Box<dyn StoreQueue>>,
    batch: Vec<StoreRequest>,
    landing: Option<Arc<UnitLanding>>,
    /// The first of the batch, on their way to the queue.
    part: Vec<StoreRequest>,
    /// The map no longer has it; it goes when its last task does.
    gone: bool,
}

impl Lun {
    pub(super) fn push(&mut self, token: u64, op: StoreOp) {
        self.in_flight += 1;
        self.batch.push(StoreRequest { token, op });
    }

    /// Bytes of the unit's memory in which data land that are asked for, by way of its gate: see [`UnitLanding`].
    pub(super) fn land(&mut self, slice: RegionSlice, bell: &Arc<Bell>) -> RegionSlice {
        let landing = self.landing.get_or_insert_with(|| Arc::new(UnitLanding::new(self.unit.clone(), bell.clone())));
        slice.with_landing(landing.clone())
    }

    /// See [`TaskExecutor::end_turns`](super::TaskExecutor::end_turns). True if bytes have a place in line still.
    pub(super) fn end_turn(&self) -> bool {
        self.landing.as_ref().is_some_and(|landing| landing.end_turn())
    }

    /// Operations gathered that no turn had room for.
    pub(super) fn is_behind(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Hands over what was gathered, as much of it as the turn has room for. True if there was something.
    pub(super) fn submit(&mut self, waker: &Waker, turn: &mut usize) -> bool {
        let (mut now, shift) = (0, self.unit.block_shift());
        while *turn > 0
            && let Some(request) = self.batch.get(now)
        {
            *turn = turn.saturating_sub(cost(&request.op, shift));
            now += 1;
        }
        if now == 0 {
            return false;
        }
        let store: &Arc<dyn Backstore> = self.unit.store();
        let queue = self.queue.get_or_insert_with(|| {
            let easy = || Box::new(EasyQueue::new(store.clone(), waker.clone())) as Box<dyn StoreQueue>;
            store.clone().open_queue(waker.clone()).unwrap_or_else(easy)
        });
        if now == self.batch.len() {
            queue.submit(&mut self.batch);
        } else {
            self.part.extend(self.batch.drain(..now));
            queue.submit(&mut self.part);
        }
        true
    }

    pub(super) fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        if self.in_flight != 0
            && let Some(queue) = &mut self.queue
        {
            let before = completions.len();
            queue.poll(completions);
            self.in_flight = self.in_flight.saturating_sub((completions.len() - before) as u32);
        }
    }
}

/// All LUNs of a session. Positions do not change while a LUN has tasks.
#[derive(Default)]
pub(super) struct Luns {
    luns: Vec<Lun>,
    /// Numbers and positions, sorted.
    order: Vec<(u16, u16)>,
    generation: u64,
    /// Whose operations were handed over first.
    first: usize,
    /// What names the I_T nexus over logins.
    nexus: u64,
    /// It is told of a power on by the code that stands for resets as well.
    plain: bool,
}

impl Luns {
    pub(super) fn new(map: &LunMap, nexus: &Nexus) -> Self {
        let mut luns = Self { nexus: nexus.port_key(), plain: nexus.knows_no_power_on(), ..Self::default() };
        luns.adopt(map);
        luns
    }

    /// Whether the map is still what it was.
    #[inline]
    pub(super) fn is_fresh(&self, map: &LunMap) -> bool {
        self.generation == map.generation()
    }

    /// Takes over a changed map; every LUN then reports REPORTED LUNS DATA HAS CHANGED.
    #[inline]
    pub(super) fn refresh(&mut self, map: &LunMap) {
        if !self.is_fresh(map) {
            self.change(map);
        }
    }

    #[cold]
    fn change(&mut self, map: &LunMap) {
        self.adopt(map);
        for lun in &mut self.luns {
            lun.attentions.add(UnitAttention::ReportedLunsChanged);
        }
    }

    fn adopt(&mut self, map: &LunMap) {
        self.generation = map.generation();
        let mapped = map.snapshot();
        for lun in &mut self.luns {
            let still = mapped.iter().find(|new| new.number == lun.number && Arc::ptr_eq(&new.unit, &lun.unit));
            lun.gone = still.is_none();
            if let Some(still) = still {
                lun.read_only = still.read_only;
            }
        }
        for new in mapped.iter() {
            if self.luns.iter().any(|lun| !lun.gone && lun.number == new.number) {
                continue;
            }
            let key = self.nexus ^ u64::from(new.number);
            let lun = Lun {
                number: new.number,
                unit: new.unit.clone(),
                read_only: new.read_only,
                // First: it is what makes the nexus known.
                attentions: Attentions::of_nexus(new.unit.attentions(), key, self.plain),
                flushes: FlushesHeard::of_nexus(&new.unit, key),
                active: 0,
                barriers: 0,
                waiting: 0,
                orphans: 0,
                in_flight: 0,
                queue: None,
                batch: Vec::new(),
                landing: None,
                part: Vec::new(),
                gone: false,
            };
            match self
                .luns
                .iter_mut()
                .find(|lun| lun.gone && lun.active == 0 && lun.barriers == 0 && lun.in_flight == 0)
            {
                Some(place) => *place = lun,
                None => self.luns.push(lun),
            }
        }
        self.order.clear();
        let all = self.luns.iter().enumerate().filter(|(_, lun)| !lun.gone);
        self.order.extend(all.map(|(position, lun)| (lun.number, position as u16)));
        self.order.sort_unstable();
    }

    /// Position of the LUN that the eight bytes name.
    #[inline]
    pub(super) fn find(&self, lun: u64) -> Option<u16> {
        // LUN n is nearly always the n-th one, in peripheral addressing.
        if lun << 16 == 0
            && let number @ 0..=0xff = (lun >> 48) as u16
            && let Some((at, position)) = self.order.get(usize::from(number))
            && *at == number
        {
            return Some(*position);
        }
        self.search(lun)
    }

    fn search(&self, lun: u64) -> Option<u16> {
        let number = scsi_proto::Lun::parse(lun.to_be_bytes()).ok()?.number()?;
        let at = self.order.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.order.get(at).map(|(_, position)| *position)
    }

    #[inline]
    pub(super) fn get(&self, position: u16) -> Option<&Lun> {
        self.luns.get(usize::from(position))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, position: u16) -> Option<&mut Lun> {
        self.luns.get_mut(usize::from(position))
    }

    /// All of them, with another one first each time.
    pub(super) fn next_first(&mut self) -> impl Iterator<Item = &mut Lun> {
        self.first = if self.first + 1 < self.luns.len() { self.first + 1 } else { 0 };
        let (last, first) = self.luns.split_at_mut_checked(self.first).unwrap_or_default();
        first.iter_mut().chain(last)
    }

    /// Whether operations are gathered that no turn had room for.
    pub(super) fn is_behind(&self) -> bool {
        self.luns.iter().any(Lun::is_behind)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lun> {
        self.luns.iter_mut()
    }

    /// The units on which operations of aborted tasks are under way.
    pub(super) fn orphaned(&self) -> impl Iterator<Item = Arc<LogicalUnit>> + '_ {
        self.luns.iter().filter(|lun| lun.orphans != 0).map(|lun| lun.unit.clone())
    }

    /// The number that a LUN field names, if it can be one.
    pub(super) fn number(lun: u64) -> Option<u16> {
        scsi_proto::Lun::parse(lun.to_be_bytes()).ok()?.number()
    }

    /// Operations of aborted tasks under way for one LUN number, also of a unit that had the number before.
    pub(super) fn orphans(&self, lun: u64) -> usize {
        let number = Self::number(lun);
        let of_number = self.luns.iter().filter(|lun| number == Some(lun.number));
        of_number.map(|lun| lun.orphans as usize).sum()
    }
}
