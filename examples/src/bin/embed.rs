//! A store of one's own as a LUN: a `Vec<u8>` behind a lock. Run it, then look at it with
//! `iscsi info iscsi://127.0.0.1:3260/iqn.2026-11.example.embed:vec/0`.

use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use backstore::{Backstore, Geometry, StoreError};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{TargetConfig, TargetNode};
use target_core::server::Server;

struct VecStore(RwLock<Vec<u8>>);

#[async_trait]
impl Backstore for VecStore {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.0.read().map_or(0, |data| data.len() as u64))
    }

    async fn read(&self, lba: u64, to: &mut [u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        to.copy_from_slice(&self.0.read().map_err(|_| StoreError::Failed)?[at..at + to.len()]);
        Ok(())
    }

    async fn write(&self, lba: u64, from: &[u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        self.0.write().map_err(|_| StoreError::Failed)?[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let portal = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3260".into()).parse()?;
    let store = Arc::new(VecStore(RwLock::new(vec![0; 64 << 20])));
    let unit = Arc::new(LogicalUnit::new(store, Identity::from_seed("embed"))?);
    let node = TargetNode::builder().name("iqn.2026-11.example.embed:vec").open().portal(portal).lun(0, unit);
    let server = Server::builder(TargetConfig::builder().node(node).build()?).start()?;
    println!("{}\nServing. Press Enter to end it.", server.target().config());
    std::io::stdin().read_line(&mut String::new())?;
    server.stop(std::time::Duration::from_secs(5));
    Ok(())
}
