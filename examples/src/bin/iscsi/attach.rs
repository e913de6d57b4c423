//! From a URL to a session and a disk, and from the library's errors to endings.

use std::time::Duration;

use examples::ending::{Ending, Why, usage};
use examples::watch::watch;
use initiator_core::{Disk, Error, Session, SessionConfig, Timeouts, Url};

use crate::args::Cli;
use crate::secrets;

/// The exit code that an error of the library stands for.
pub(crate) fn ending(error: Error) -> Ending {
    let why = match &error {
        Error::Url(_) | Error::Config(_) => Why::Usage,
        Error::LoginRefused { .. } | Error::Login { .. } => Why::Refused,
        Error::Resolve { .. }
        | Error::Refused { .. }
        | Error::Unreachable { .. }
        | Error::ConnectTimeout { .. }
        | Error::NotIscsi { .. }
        | Error::NoIser { .. }
        | Error::NoRdma { .. }
        | Error::RdmaUnusable { .. }
        | Error::Silent { .. }
        | Error::ClosedInLogin { .. } => Why::Unreachable,
        // Later than at the beginning it is the work that fails, as it does with one session.
        Error::NoPath { after, .. } if after.is_zero() => Why::Unreachable,
        _ => Why::Failed,
    };
    Ending::new(why, error)
}

/// How long to wait for a portal and its target.
pub(crate) fn timeouts(cli: &Cli) -> Timeouts {
    let timeout = Duration::from_secs(cli.timeout);
    Timeouts {
        connect: timeout,
        login: timeout,
        keepalive_interval: Duration::from_secs(cli.noop_interval),
        keepalive: Duration::from_secs(cli.noop_timeout),
        ..Timeouts::default()
    }
}

/// The session that a URL and the global options describe, and the URL's LUN.
pub(crate) fn session_config(cli: &Cli, url: &str) -> Result<(SessionConfig, Option<u16>), Ending> {
    let url: Url = url.parse().map_err(usage)?;
    let mut config = SessionConfig::from_url(&url);
    if let Some(initiator) = &cli.initiator {
        config.initiator_name = Some(initiator.clone());
    }
    (config.credentials, config.target_credentials) =
        secrets::complete(cli, false, config.credentials, config.target_credentials)?;
    config.timeouts = timeouts(cli);
    config.reconnect.deadline = Duration::from_secs(cli.retry);
    Ok((config, url.lun))
}

/// Logs in to a URL's target.
pub(crate) async fn connect(cli: &Cli, url: &str) -> Result<(Session, Option<u16>), Ending> {
    let (config, lun) = session_config(cli, url)?;
    let session = Session::connect(config).await.map_err(ending)?;
    watch(&session);
    Ok((session, lun))
}

/// Logs in to a URL's target and attaches its LUN; 0 if the URL names none.
pub(crate) async fn attach(cli: &Cli, url: &str) -> Result<(Session, Disk), Ending> {
    let (session, lun) = connect(cli, url).await?;
    match session.disk(lun.unwrap_or(0)).await {
        Ok(disk) => Ok((session, disk)),
        Err(error) => {
            // The error is what the user is to see, not how the farewell went.
            let _ = session.logout().await;
            Err(ending(error))
        }
    }
}
