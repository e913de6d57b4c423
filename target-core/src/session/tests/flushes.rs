//! Flushes that fail: each I_T nexus hears of it, once, and again if it may not have heard.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;

use super::peer::Peer;
use super::{ME, OTHER, TARGET, World};
use crate::lu::{Identity, LogicalUnit};
use crate::session::Limits;
use backstore::{Abilities, Backstore, Geometry, StoreError};

/// Flushes that fail from now on.
#[derive(Default)]
struct Failing(AtomicU32);

#[async_trait]
impl Backstore for Failing {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(1 << 20)
    }
    fn abilities(&self) -> Abilities {
        Abilities { volatile_cache: true, ..Abilities::default() }
    }
    async fn read(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        Ok(())
    }
    async fn write(&self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
    async fn flush(&self) -> Result<(), StoreError> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_or(Ok(()), |_| Err(StoreError::NoSpace))
    }
}

const LUN: u16 = 2;
/// WRITE ERROR, and SPACE ALLOCATION FAILED WRITE PROTECT.
const LOST: Option<(u8, u8)> = Some((0x0c, 0));
const FULL: Option<(u8, u8)> = Some((0x27, 7));

fn world() -> (World, Arc<Failing>) {
    let store = Arc::new(Failing::default());
    let of_node = store.clone();
    let world = World::with(Limits::default(), move |node| {
        node.lun(LUN, Arc::new(LogicalUnit::new(of_node.clone(), Identity::from_seed("failing")).unwrap()))
    });
    (world, store)
}

fn logged_in(world: &World, initiator: &str) -> Peer {
    let mut peer = world.connect();
    peer.log_in(initiator, TARGET);
    peer.clear_attention(LUN);
    peer
}

/// Runs a command that acknowledges all that has come.
fn run(peer: &mut Peer, itt: u32, cdb: [u8; 16], data: &[u8]) -> Option<(u8, u8)> {
    let mut command = peer.command(itt, LUN, cdb, data.len() as u32);
    command.exp_stat_sn = peer.stat_sn.unwrap();
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), data);
    peer.sense(itt)
}

fn flush(peer: &mut Peer, itt: u32) -> Option<(u8, u8)> {
    let mut cdb = [0; 16];
    cdb[0] = 0x35;
    run(peer, itt, cdb, &[])
}

/// A command that acknowledges all that has come.
fn acknowledge(peer: &mut Peer, itt: u32) {
    let mut command = peer.command(itt, LUN, [0; 16], 0);
    command.exp_stat_sn = peer.stat_sn.unwrap();
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    assert_eq!(peer.status(itt), 0);
}

#[test]
fn each_nexus_hears_once_of_a_flush_that_failed() {
    let (world, store) = world();
    let (mut me, mut other) = (logged_in(&world, ME), logged_in(&world, OTHER));
    assert_eq!((flush(&mut me, 1), flush(&mut other, 1)), (None, None));
    store.0.store(1, Ordering::SeqCst);
    assert_eq!(flush(&mut me, 2), FULL);
    // It was sent before the answer to the first had come.
    let early = me.stat_sn.unwrap().advance(u32::MAX);
    let mut again = me.command(3, LUN, [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    again.exp_stat_sn = early;
    me.cmd_sn = me.cmd_sn.next();
    me.send(again.emit(), &[]);
    assert_eq!(me.sense(3), LOST);
    assert_eq!(flush(&mut me, 4), None);
    // What the other has written may have gone, too, whatever the store says from here on. A write with FUA is a flush.
    let mut durable = super::peer::write10(0, 1);
    durable[1] = 8;
    assert_eq!(run(&mut other, 2, durable, &[1; 512]), LOST);
    assert_eq!((flush(&mut other, 3), run(&mut other, 4, durable, &[1; 512])), (None, None));
    let mut late = world.connect();
    late.isid[5] = 9;
    late.log_in(ME, TARGET);
    late.clear_attention(LUN);
    assert_eq!(flush(&mut late, 1), None, "it was not here when it happened");
}

#[test]
fn a_nexus_that_may_not_have_heard_of_it_hears_again() {
    let (world, store) = world();
    let (mut me, mut other) = (logged_in(&world, ME), logged_in(&world, OTHER));
    store.0.store(1, Ordering::SeqCst);
    assert_eq!(flush(&mut me, 1), FULL);
    // One that is away when it happens, and comes back.
    other.close();
    let mut other = logged_in(&world, OTHER);
    assert_eq!(flush(&mut other, 1), LOST);
    // The answer is sent, and nobody says that it came.
    other.close();
    let mut other = logged_in(&world, OTHER);
    assert_eq!(flush(&mut other, 1), LOST);
    acknowledge(&mut other, 2);
    other.close();
    assert_eq!(flush(&mut logged_in(&world, OTHER), 1), None);
    // The one whose own flush it was is no exception.
    me.close();
    assert_eq!(flush(&mut logged_in(&world, ME), 1), LOST);
}
