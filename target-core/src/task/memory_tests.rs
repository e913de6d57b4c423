//! Writes to lent memory that come by way of a buffer.

use std::sync::atomic::AtomicUsize;

use super::*;

/// Lent memory before a medium.
struct Cache {
    region: Arc<Region>,
    flushes: AtomicUsize,
}

#[async_trait::async_trait]
impl Backstore for Cache {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.region.len())
    }
    fn abilities(&self) -> Abilities {
        Abilities { volatile_cache: true, ..Abilities::default() }
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.region.read(lba * 512, data);
        Ok(())
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.region.write(lba * 512, data);
        Ok(())
    }
    async fn flush(&self) -> Result<(), StoreError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn memory(&self) -> Option<&Arc<Region>> {
        Some(&self.region)
    }
}

/// A mover that cannot land whole blocks: the data of a long write come into a buffer, and nobody waits for them.
#[test]
fn data_that_may_not_land_get_one_turn() {
    let store = Arc::new(Cache { region: Region::heap(1 << 20), flushes: AtomicUsize::new(0) });
    let map = &Arc::new(LunMap::builder().insert(0, unit(store), false).build());
    let (unit, mut session) = (map.get(0).unwrap().unit, Session::new(map, 1));
    let gate = unit.gate();
    let alone = || gate.enter(Access::Alone, Blocks::new(0, 8), Waker::noop());
    for lands in [false, true] {
        let mut field = [0; 16];
        field[..10].copy_from_slice(io(opcode::WRITE_10, 0, 8, 0).as_slice());
        let task = TaskHandle { slot: 3, generation: u16::from(lands) };
        let new = NewTask {
            task,
            lun: 0,
            itt: 1,
            cdb: &field,
            attribute: TaskAttribute::Simple,
            read: false,
            write: true,
            immediate: false,
            unsolicited: false,
            expected_data_transfer_length: 4096,
            bidirectional_read_length: None,
            direct_placement: true,
        };
        let Asked::Data(Payload::Region(slice)) = asked(session.executor.start(new)) else { panic!("no memory") };
        let first = alone();
        assert!(gate.has_passed(&first) && !slice.try_write(512, &[5; 512]));
        let second = alone();
        gate.leave(first);
        assert!(!gate.has_passed(&second), "the data came before it");
        session.executor.end_turns();
        assert!(!gate.has_passed(&second), "they may not have been looked at since");
        if lands {
            assert!(slice.try_write(512, &[5; 512]));
            assert!(!slice.try_write(1024, &[5; 512]), "it is the other one's turn");
        } else {
            session.executor.end_turns();
        }
        assert!(gate.has_passed(&second));
        gate.leave(second);
        session.executor.abort(task);
        session.executor.end_turns();
        session.executor.end_turns();
        assert!(gate.is_idle());
    }
}

#[test]
fn data_that_a_device_places_are_copied_when_they_are_there() {
    const LEN: usize = 3 << 20;
    let store = Arc::new(Cache { region: Region::heap(LEN), flushes: AtomicUsize::new(0) });
    let map = &Arc::new(LunMap::builder().insert(0, unit(store.clone()), false).build());
    let (unit, mut one, mut two) = (map.get(0).unwrap().unit, Session::new(map, 1), Session::new(map, 2));
    one.executor.set_asks_to_land(false);
    for flags in [0, 8] {
        let mut field = [0; 16];
        field[..10].copy_from_slice(io(opcode::WRITE_10, 0, (LEN / 512) as u32, flags).as_slice());
        let task = TaskHandle { slot: 3, generation: u16::from(flags) };
        let new = NewTask {
            task,
            lun: 0,
            itt: 1,
            cdb: &field,
            attribute: TaskAttribute::Simple,
            read: false,
            write: true,
            immediate: false,
            unsolicited: false,
            expected_data_transfer_length: LEN as u32,
            bidirectional_read_length: None,
            direct_placement: true,
        };
        let Asked::Data(Payload::Buf(mut buf)) = asked(one.executor.start(new)) else { panic!("no buffer") };
        two.send(&io(opcode::WRITE_10, 0, 1, 0), &[6; 512]).good();
        two.send(&io(opcode::COMPARE_AND_WRITE, 0, 1, 0), &[[6; 512], [9; 512]].concat()).good();
        buf.fill(7 + flags);
        one.executor.set_waker(Waker::noop());
        let step = asked(one.executor.data_arrived(task, Payload::Buf(buf)));
        assert!(matches!(step, Asked::Pending), "too long for a turn");
        let mut turns = 0;
        let (_, done) = loop {
            turns += 1;
            if let Some(finished) = one.finished().pop() {
                break finished;
            }
        };
        done.good();
        assert!(turns >= LEN / TURN, "it gives way");
        assert_eq!(one.executor.buffered(), 0);
        assert!(unit.gate().is_idle(), "blocks are still held");
        assert_eq!(store.flushes.load(Ordering::Relaxed), usize::from(flags) / 8);
        assert!(two.receive(&io(opcode::READ_10, 0, 128, 0), 65_536).good().iter().all(|byte| *byte == 7 + flags));
    }
}
