//! `iscsi info`, `iscsi luns` and `iscsi login-test`: what the disk is, and what the session settled on.

use examples::ending::Ending;
use examples::report::{bytes, plain};
use examples::say;
use initiator_core::{Authentication, DiskInfo, SessionInfo};
use iscsi_proto::parameters::{Digest, Parameters};
use serde_json::{Value, json};

use crate::args::Cli;
use crate::attach::{attach, connect, ending};

fn on_off(state: Option<bool>) -> &'static str {
    match state {
        Some(true) => "enabled",
        Some(false) => "disabled",
        None => "unknown",
    }
}

fn digest(digest: Digest) -> &'static str {
    match digest {
        Digest::None => "None",
        Digest::Crc32c => "CRC32C",
    }
}

fn yes_no(state: bool) -> &'static str {
    if state { "Yes" } else { "No" }
}

/// The disk's lines: name and value.
pub(crate) fn disk_lines(disk: &DiskInfo) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("Vendor", disk.vendor.clone()),
        ("Product", disk.product.clone()),
        ("Revision", disk.revision.clone()),
        ("Size", format!("{} ({} blocks of {} bytes)", bytes(disk.size()), disk.blocks, disk.block_size)),
        ("Physical block", format!("{} bytes", disk.physical_block_size)),
        ("Write protect", if disk.write_protected { "on" } else { "off" }.into()),
        ("Write cache", on_off(disk.write_cache).into()),
        ("Read cache", on_off(disk.read_cache).into()),
        ("DPO and FUA", if disk.dpo_fua { "supported" } else { "not supported" }.into()),
        ("Provisioning", if disk.thin { "thin" } else { "full" }.into()),
    ];
    if let Some(serial) = &disk.serial {
        lines.push(("Serial number", serial.clone()));
    }
    for designator in &disk.designators {
        lines.push(("Designator", designator.clone()));
    }
    lines
}

/// The session's lines: name and value.
pub(crate) fn session_lines(session: &SessionInfo) -> Vec<(&'static str, String)> {
    let keys = &session.parameters;
    let isid: String = session.isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut lines = vec![
        ("Target", session.target_name.clone()),
        ("Target alias", session.target_alias.clone().unwrap_or_else(|| "none".into())),
        (
            "Portal",
            format!("{}, group {}", session.portal, session.tpgt.map_or("unknown".into(), |tag| tag.to_string())),
        ),
        ("Transport", session.transport.into()),
    ];
    if let Some(depth) = session.read_depth {
        lines.push(("Provider", session.provider.into()));
        lines.push(("RDMA device", session.device.clone().unwrap_or_else(|| "none, in user space".into())));
        lines.push(("RDMA Read depth", depth.to_string()));
    }
    lines.extend([
        ("Initiator", session.initiator_name.clone()),
        ("ISID, TSIH, CID", format!("{isid}, {}, {}", session.tsih, session.cid)),
        (
            "Authentication",
            match session.authentication {
                Authentication::None => "none",
                Authentication::Chap => "CHAP",
                Authentication::MutualChap => "CHAP, both ways",
            }
            .into(),
        ),
    ]);
    lines.extend(if keys.rdma_extensions { iser_keys(keys) } else { tcp_keys(keys) });
    lines.extend([
        ("MaxBurstLength", keys.max_burst_length.to_string()),
        ("FirstBurstLength", keys.first_burst_length.to_string()),
        ("InitialR2T", yes_no(keys.initial_r2t).into()),
        ("ImmediateData", yes_no(keys.immediate_data).into()),
        ("MaxOutstandingR2T", keys.max_outstanding_r2t.to_string()),
        ("MaxConnections", keys.max_connections.to_string()),
        ("ErrorRecoveryLevel", keys.error_recovery_level.to_string()),
        ("DefaultTime2Wait", format!("{} s", keys.default_time2wait)),
        ("DefaultTime2Retain", format!("{} s", keys.default_time2retain)),
        ("iSCSIProtocolLevel", keys.iscsi_protocol_level.to_string()),
    ]);
    lines
}

/// The keys that only TCP has use for.
fn tcp_keys(keys: &Parameters) -> Vec<(&'static str, String)> {
    vec![
        ("HeaderDigest", digest(keys.header_digest).into()),
        ("DataDigest", digest(keys.data_digest).into()),
        (
            "MaxRecvDataSegmentLength",
            format!(
                "{} (ours), {} (target's)",
                keys.max_recv_data_segment_length, keys.peer_max_recv_data_segment_length
            ),
        ),
    ]
}

/// The keys of RFC 7145 section 6.
fn iser_keys(keys: &Parameters) -> Vec<(&'static str, String)> {
    let limit = |value: u32| if value == 0 { "no limit".to_owned() } else { value.to_string() };
    vec![
        ("RDMAExtensions", yes_no(keys.rdma_extensions).into()),
        ("InitiatorRecvDataSegmentLength", keys.initiator_recv_data_segment_length.to_string()),
        ("TargetRecvDataSegmentLength", keys.target_recv_data_segment_length.to_string()),
        ("MaxOutstandingUnexpectedPDUs", limit(keys.max_outstanding_unexpected_pdus)),
        ("MaxAHSLength", limit(keys.max_ahs_length)),
        (
            "TaggedBufferForSolicitedDataOnly",
            keys.tagged_buffer_for_solicited_data_only.map_or("not declared", yes_no).into(),
        ),
        ("iSERHelloRequired", yes_no(keys.iser_hello_required).into()),
    ]
}

fn print(title: &str, lines: &[(&str, String)]) -> Result<(), Ending> {
    say!("{title}")?;
    let width = lines.iter().map(|(name, _)| name.len() + 2).max().unwrap_or(0).max(26);
    for (name, value) in lines {
        say!("  {name:<width$}{}", plain(value))?;
    }
    Ok(())
}

fn as_json(lines: &[(&str, String)]) -> Value {
    // A name that comes again (designators) keeps all its values.
    let mut object = serde_json::Map::new();
    for (name, value) in lines {
        match object.get_mut(*name) {
            None => {
                object.insert((*name).to_owned(), json!(value));
            }
            Some(Value::Array(list)) => list.push(json!(value)),
            Some(first) => *first = json!([first.clone(), value]),
        }
    }
    Value::Object(object)
}

/// Shows the disk and the session.
pub(crate) async fn info(cli: &Cli, url: &str) -> Result<(), Ending> {
    let (session, disk) = attach(cli, url).await?;
    let (disk_lines, session_lines) = (disk_lines(&disk.info()), session_lines(&session.info()));
    if cli.json {
        say!("{:#}", json!({ "disk": as_json(&disk_lines), "session": as_json(&session_lines) }))?;
    } else {
        print(&format!("Disk at LUN {}", disk.info().lun), &disk_lines)?;
        say!("")?;
        print("Session", &session_lines)?;
    }
    session.logout().await.map_err(ending)
}

/// Lists the LUNs with what each is.
pub(crate) async fn luns(cli: &Cli, url: &str) -> Result<(), Ending> {
    let (session, _) = connect(cli, url).await?;
    let mut list = Vec::new();
    for lun in session.luns().await.map_err(ending)? {
        match session.disk(lun).await {
            Ok(disk) => {
                let disk = disk.info();
                list.push(json!({
                    "lun": lun, "vendor": disk.vendor, "product": disk.product, "revision": disk.revision,
                    "bytes": disk.size(), "block_size": disk.block_size, "write_protected": disk.write_protected,
                }));
                if !cli.json {
                    let protect = if disk.write_protected { ", write protected" } else { "" };
                    say!(
                        "LUN {lun}: {} {} {}, {}{protect}",
                        disk.vendor,
                        disk.product,
                        disk.revision,
                        bytes(disk.size())
                    )?;
                }
            }
            Err(error) => {
                list.push(json!({ "lun": lun, "error": error.to_string() }));
                if !cli.json {
                    say!("LUN {lun}: {error}")?;
                }
            }
        }
    }
    if cli.json {
        say!("{:#}", json!({ "luns": list }))?;
    }
    session.logout().await.map_err(ending)
}

/// Logs in and out, and says how it went.
pub(crate) async fn login_test(cli: &Cli, url: &str) -> Result<(), Ending> {
    let started = std::time::Instant::now();
    let (session, _) = connect(cli, url).await?;
    let took = started.elapsed();
    let lines = session_lines(&session.info());
    if cli.json {
        say!("{:#}", json!({ "login_ms": took.as_secs_f64() * 1e3, "session": as_json(&lines) }))?;
    } else {
        print(&format!("Logged in within {:.1} ms", took.as_secs_f64() * 1e3), &lines)?;
    }
    session.logout().await.map_err(ending)
}
