//! A region that several threads read and write at the same time.

use std::sync::Arc;

use iscsi_memory::Region;
use iscsi_memory::turns;

use super::{SharedModel, World, event, join, spawn};
use crate::rng::Rng;
use crate::world::Report;

/// Blocks of the region: more than one piece of it, with blocks of 4096 bytes.
const BLOCKS: u64 = 40;

pub(super) fn live(world: &mut World) -> Report {
    let rng = &mut world.rng;
    let block_size = rng.pick(&[512, 1024, 4096]);
    let region = Region::heap(BLOCKS as usize * block_size);
    region.set_block_size(block_size as u32);
    let model = SharedModel::new(BLOCKS, block_size);
    let (threads, each) = (rng.between(2, 4), rng.between(5, 30));
    event(&world.trace, format_args!("a region with blocks of {block_size}, {threads} threads, {each} operations"));
    let mut running = Vec::new();
    for number in 0..threads {
        let (region, model, fault) = (region.clone(), model.clone(), world.fault.clone());
        let mut rng = Rng::new(rng.u64(), number);
        running.push(spawn("memory", move || {
            for command in 0..each {
                if let Err(wrong) = operation(&region, &model, (number, command), &mut rng) {
                    return fault.found(format!("thread {number}, operation {command} of a region: {wrong}"));
                }
                turns::point();
            }
        }));
    }
    join(running, &world.fault);
    let read = model.begin_read(0, BLOCKS);
    let mut data = vec![0; BLOCKS as usize * block_size];
    region.read(0, &mut data);
    if let Err(wrong) = model.end_read(read, &data) {
        world.fault.found(format!("at rest a region has {wrong}"));
    }
    Report { commands: threads * each, ..Report::default() }
}

fn operation(
    region: &Arc<Region>,
    model: &SharedModel,
    (thread, command): (u64, u64),
    rng: &mut Rng,
) -> Result<(), String> {
    let size = model.block_size as u64;
    let blocks = rng.between(1, 4);
    // Two places where all meet, and the rest.
    let lba = if rng.permille(700) { rng.below(3) } else { rng.below(BLOCKS - blocks + 1) };
    match rng.below(10) {
        0..5 => {
            let read = model.begin_read(lba, blocks);
            let mut data = vec![0; (blocks * size) as usize];
            region.read(lba * size, &mut data);
            model.end_read(read, &data)
        }
        5..9 => {
            let (write, data) = model.begin_write((lba, blocks), thread, command);
            region.reserve_for_write(lba * size, blocks * size).map_err(|error| error.to_string())?;
            region.write(lba * size, &data);
            model.end_write(write);
            Ok(())
        }
        _ => {
            let write = model.begin_zero((lba, blocks));
            region.discard(lba * size, blocks * size);
            model.end_write(write);
            Ok(())
        }
    }
}
