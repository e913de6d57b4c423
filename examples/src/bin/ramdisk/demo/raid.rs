//! Step 18: four remote disks as one RAID 0 and as one linear disk.

use std::sync::Arc;
use std::time::Instant;

use backstore::{Backstore, LinearStore, StripeStore};
use examples::ending::{Ending, Why, failed};
use examples::pattern;
use examples::report::bytes;
use futures::stream::{self, TryStreamExt};
use initiator_core::{RemoteStore, Session, Transport};

use super::layouts::serve;
use super::{Stage, attach, sector, tell};

/// Bytes written and compared through each composition.
const VERIFIED: u64 = 256 << 20;
const REQUEST: u64 = 256 << 10;

pub(super) fn tie(stage: &Stage, over: Transport) -> Result<(), Ending> {
    let (server, places) = serve(&[1, 1, 1, 1], false)?;
    let result = stage.runtime.block_on(async {
        let mut sessions: Vec<Session> = Vec::new();
        let mut disks: Vec<Arc<dyn Backstore>> = Vec::new();
        for place in &places {
            let (session, disk) = attach(place.portal, &place.target, place.lun, over).await?;
            sessions.push(session);
            disks.push(Arc::new(RemoteStore::new(disk).map_err(failed)?));
        }
        let stripe = StripeStore::new(disks.clone(), 64 << 10).map_err(failed)?;
        use_it("RAID 0, 64 KiB chunks", Arc::new(stripe), 0).await?;
        let linear = LinearStore::new(disks).map_err(failed)?;
        let border = linear.geometry().bytes() / 4 - VERIFIED / 2;
        use_it("linear, over the border of two disks", Arc::new(linear), border).await?;
        for session in sessions {
            session.logout().await.map_err(failed)?;
        }
        Ok(())
    });
    server.stop(crate::serve::GRACE);
    result
}

/// Writes the pattern through a composition from `start` on, reads it back and compares.
async fn use_it(what: &str, store: Arc<dyn Backstore>, start: u64) -> Result<(), Ending> {
    let pieces = || stream::iter((0..VERIFIED / REQUEST).map(|n| Ok(start + n * REQUEST)));
    let began = Instant::now();
    pieces()
        .try_for_each_concurrent(16, |offset| {
            let store = &store;
            async move {
                let mut data = vec![0; REQUEST as usize];
                pattern::fill(&mut data, 13, sector(offset), 1);
                store.write(sector(offset), &data).await.map_err(failed)
            }
        })
        .await?;
    store.flush().await.map_err(failed)?;
    let wrote = began.elapsed().as_secs_f64();
    let began = Instant::now();
    pieces()
        .try_for_each_concurrent(16, |offset| {
            let store = &store;
            async move {
                let mut data = vec![0; REQUEST as usize];
                store.read(sector(offset), &mut data).await.map_err(failed)?;
                pattern::check(&data, 13, sector(offset), 1).map_err(|error| Ending::new(Why::Mismatch, error))
            }
        })
        .await?;
    let read = began.elapsed().as_secs_f64();
    tell(format!(
        "{what}: {} in all; {} written at {}/s, read back at {}/s and compared",
        bytes(store.geometry().bytes()),
        bytes(VERIFIED),
        bytes((VERIFIED as f64 / wrote) as u64),
        bytes((VERIFIED as f64 / read) as u64)
    ))?;
    Ok(())
}
