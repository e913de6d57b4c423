//! Steps 13 to 16: the same disk over iSER. The target stays as it is; only the initiator asks for another transport.

use examples::ending::{Ending, failed};
use examples::report::bytes;
use initiator_core::{Session, Transport};
use iscsi_proto::datamover::MoverReport;

use super::story::{SEED, Scene, tell_session};
use super::{Stage, check_pattern, session_config, step, tell, write_pattern};

/// Tells steps 13 to 16, and ends the target.
pub(super) fn switch(stage: &Stage, scene: Scene) -> Result<(), Ending> {
    let result = stage.runtime.block_on(use_it(&scene));
    scene.server.stop(crate::serve::GRACE);
    result
}

async fn use_it(scene: &Scene) -> Result<(), Ending> {
    step(13, "The same target again, over iSER: only the initiator changes")?;
    let (at, target) = (scene.at, scene.target.as_str());
    tell(format!("iscsi://{at}/{target}/0 becomes"))?;
    tell(format!("iser://{at}/{target}/0"))?;
    let session = Session::connect(session_config(at, target, Transport::Iser)).await.map_err(failed)?;
    tell(format!("{target}: logged in"))?;
    step(14, "The session")?;
    let info = session.info();
    tell_session(&info)?;
    let keys = &info.parameters;
    tell(format!(
        "RDMAExtensions {}, InitiatorRecvDataSegmentLength {}, TargetRecvDataSegmentLength {}",
        if keys.rdma_extensions { "Yes" } else { "No" },
        keys.initiator_recv_data_segment_length,
        keys.target_recv_data_segment_length
    ))?;
    if let Some(depth) = info.read_depth {
        tell(format!("at most {depth} RDMA Reads in flight"))?;
    }
    step(15, "The disk, with what was written over TCP")?;
    let disk = session.disk(0).await.map_err(failed)?;
    let before = moved(scene);
    check_pattern(&disk, scene.written, SEED).await?;
    tell(format!("{} read and compared", bytes(scene.written)))?;
    write_pattern(&disk, scene.written, SEED + 1).await?;
    check_pattern(&disk, scene.written, SEED + 1).await?;
    tell(format!("{} written anew, read back and compared", bytes(scene.written)))?;
    let after = moved(scene);
    let (written, read, copied) =
        (after.written - before.written, after.read - before.read, after.copied - before.copied);
    tell(format!("the target moved {} by RDMA Write and {} by RDMA Read", bytes(written), bytes(read)))?;
    tell(format!(
        "its processor copied {:.1} % of that: what came off the socket together with a header",
        copied as f64 * 100.0 / (written + read).max(1) as f64
    ))?;
    step(16, "Logout")?;
    session.logout().await.map_err(failed)?;
    tell(format!("{target}: logged out"))?;
    Ok(())
}

/// What the target's movers have done so far.
fn moved(scene: &Scene) -> MoverReport {
    let reports = scene.server.sessions().into_iter().filter_map(|session| session.mover);
    reports.fold(MoverReport::default(), |sum, report| sum.plus(&report))
}
