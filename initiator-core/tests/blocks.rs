//! A logical block is old or new, never torn: writers and readers of the same blocks on several workers of a real
//! target.

#[expect(dead_code, reason = "other tests use the rest")]
mod server;

use initiator_core::{Disk, Session};
use target_core::session::Limits;

use server::{config, serve_with};

/// All meet in these.
const AREA: usize = 192 << 10;
const BLOCK: usize = 512;

/// Blocks full of one number each.
fn content(len: usize, value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(len / 8)
}

fn check(data: &[u8], who: &str) {
    for (at, block) in data.chunks(BLOCK).enumerate() {
        let (first, rest) = block.split_at(8);
        assert!(rest.chunks(8).all(|word| word == first), "{who}: block {at} of the read is torn");
    }
}

/// Blocks of the area, of another place and number each round.
fn range(round: u64, len: usize) -> u64 {
    (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % ((AREA - len) / BLOCK + 1) as u64 * BLOCK as u64
}

async fn write(disk: Disk, writer: u64, rounds: u64) {
    // Immediate data alone; with unsolicited data; several bursts.
    const LENGTHS: [usize; 6] = [512, 65_536, 3 * 512, 131_072 + 512, 8192, 20_480];
    for round in 1..=rounds {
        let len = LENGTHS[(round + writer) as usize % LENGTHS.len()];
        let at = range(round * 8 + writer, len);
        if round % 16 == writer {
            disk.unmap(at, len as u64).await.unwrap();
        } else {
            disk.write(at, &content(len, round << 8 | writer)).await.unwrap();
        }
    }
}

async fn read(disk: Disk, reader: u64, rounds: u64) {
    const LENGTHS: [usize; 4] = [AREA, 4096, 65_536 + 512, 512];
    let mut data = vec![0; AREA];
    for round in 1..=rounds {
        let len = LENGTHS[round as usize % LENGTHS.len()];
        disk.read(range(round * 8 + reader, len), &mut data[..len]).await.unwrap();
        check(&data[..len], "a reader");
    }
}

/// `segment`: the longest data segment that each side takes.
async fn meet(segment: u32, rounds: u64) {
    let mut limits = Limits::default();
    limits.offer.max_recv_data_segment_length = segment;
    let (_server, portal, _) = serve_with(None, limits);
    let mut disks = Vec::new();
    for number in 0..4 {
        let mut config = config(&portal);
        config.initiator_name = Some(format!("iqn.2026-11.example:{number}"));
        config.offer.max_recv_data_segment_length = segment;
        disks.push(Session::connect(config).await.unwrap().disk(0).await.unwrap());
    }
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..2u64 {
        // Several at a time of each session.
        for lane in 0..2 {
            tasks.spawn(write(disks[writer as usize].clone(), 2 * lane + writer, rounds));
            tasks.spawn(read(disks[2 + writer as usize].clone(), 4 + 2 * lane + writer, rounds));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let mut data = vec![0; AREA];
    disks[0].read(0, &mut data).await.unwrap();
    check(&data, "what the writers left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_readers_see_whole_blocks() {
    meet(256 << 10, 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pdus_that_end_inside_blocks_tear_none() {
    meet(1000, 500).await;
}
