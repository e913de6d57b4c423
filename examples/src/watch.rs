//! What happens in a session, as a person at the terminal wants to hear it.

use std::net::SocketAddr;

use initiator_core::{Access, Error, Multipath, PathInfo, Session, SessionEvent};

use crate::report::plain;

/// Puts events into sentences. It remembers where the session was connected.
#[derive(Debug, Default)]
pub struct Watcher {
    portal: Option<SocketAddr>,
}

impl Watcher {
    /// The sentence for an event, where it is worth one.
    pub fn sentence(&mut self, event: &SessionEvent) -> Option<String> {
        let sentence = match event {
            SessionEvent::LoggedIn { portal, before, .. } => {
                self.portal = Some(*portal);
                if *before == 0 {
                    return None;
                }
                format!("the target is back, at {portal}")
            }
            SessionEvent::Lost { reason, tried_for, .. } => {
                let reason = short(reason);
                let at = self.portal.map_or_else(String::new, |portal| format!(" at {portal}"));
                format!("lost the target{at} ({reason}), trying again for {:.0} s", tried_for.as_secs_f64().ceil())
            }
            SessionEvent::Redirected { to, permanent } => {
                format!("the target sends us to {to}{}", if *permanent { ", for good" } else { "" })
            }
            SessionEvent::OddAnswer { command, reason } => {
                format!("the target's answer to {command} makes no sense: {reason}")
            }
            SessionEvent::Resized { lun, blocks, block_size } => {
                let bytes = blocks.saturating_mul(u64::from(*block_size));
                format!("LUN {} has {bytes} bytes now", lun.number().unwrap_or_default())
            }
            _ => return None,
        };
        Some(plain(&sentence))
    }

    /// Prints the sentence for an event to standard error.
    pub fn tell(&mut self, event: &SessionEvent) {
        if let Some(sentence) = self.sentence(event) {
            tell(&sentence);
        }
    }
}

fn tell(sentence: &str) {
    let program = std::env::args().next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    crate::tell!("{program}: {sentence}");
}

/// Why a connection is gone, without where it led: the sentence says that.
fn short(reason: &Error) -> String {
    match reason {
        Error::Broken { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// How a path was last told of.
#[derive(Debug, Clone, Copy)]
struct Told {
    up: bool,
    access: Access,
    losses: u64,
}

/// Puts what becomes of a disk's paths into sentences. It remembers what it told of each.
#[derive(Debug)]
pub struct PathWatcher {
    told: Vec<Told>,
}

impl Default for PathWatcher {
    fn default() -> Self {
        Self::new()
    }
}

impl PathWatcher {
    /// One that takes every path for up and active/optimized: it tells of the others at once.
    #[must_use]
    pub fn new() -> Self {
        Self { told: Vec::new() }
    }

    /// The sentences for what is otherwise than when it was last asked.
    pub fn sentences(&mut self, paths: &[PathInfo]) -> Vec<String> {
        self.told.resize(paths.len(), Told { up: true, access: Access::Optimized, losses: 0 });
        let up = paths.iter().filter(|path| path.up).count();
        let mut sentences = Vec::new();
        for (path, told) in paths.iter().zip(&mut self.told) {
            let at = format!("{}:{}", path.portal.host, path.portal.port);
            let lost = path.losses > told.losses;
            if lost || told.up && !path.up {
                let reason = path.last_error.as_ref().map_or_else(String::new, |error| format!(" ({})", short(error)));
                let what = if lost { "lost the path" } else { "no path" };
                sentences.push(format!("{what} by {at}{reason}, {up} of {} paths are up", paths.len()));
            }
            if path.up && (lost || !told.up) {
                sentences.push(format!("the path by {at} is back"));
            }
            if path.up && path.access != told.access {
                sentences.push(format!("the port of the path by {at} is {} now", in_words(path.access)));
            }
            let access = if path.up { path.access } else { told.access };
            *told = Told { up: path.up, access, losses: path.losses };
        }
        sentences.iter().map(|sentence| plain(sentence)).collect()
    }
}

/// An access state in the words of SPC-5 5.15.2.
fn in_words(access: Access) -> &'static str {
    match access {
        Access::Optimized => "active/optimized",
        Access::NonOptimized => "active/non-optimized",
        Access::Transitioning => "in transition",
        Access::Standby => "standby",
        Access::Unavailable => "unavailable",
    }
}

/// Tells what becomes of a disk's paths, at standard error, until the runtime ends.
pub fn watch_paths(disk: &Multipath) {
    let disk = disk.clone();
    tokio::spawn(async move {
        let mut watcher = PathWatcher::new();
        loop {
            let changed = disk.changed();
            watcher.sentences(&disk.paths()).iter().for_each(|sentence| tell(sentence));
            changed.await;
        }
    });
}

/// Tells what happens in a session as long as it lasts, at standard error.
pub fn watch(session: &Session) {
    let mut events = session.events();
    tokio::spawn(async move {
        let mut watcher = Watcher::default();
        while let Some(event) = events.next().await {
            watcher.tell(&event);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use initiator_core::{ConnectionEnd, Portal};

    use super::*;

    #[test]
    fn paths_are_told_of_once_as_they_change() {
        let path = |port, up, access, losses| PathInfo {
            portal: Portal { host: "192.0.2.1".into(), port },
            up,
            access,
            under_way: 0,
            losses,
            last_error: (losses > 0 || !up).then_some(Error::LoggedOut),
        };
        let mut watcher = PathWatcher::new();
        let mut told = |one, other| watcher.sentences(&[one, other]);
        let good = || path(1, true, Access::Optimized, 0);
        assert!(told(good(), path(2, true, Access::Optimized, 0)).is_empty());
        let lost = told(good(), path(2, false, Access::Optimized, 1));
        let because = Error::LoggedOut.to_string();
        assert_eq!(lost, [format!("lost the path by 192.0.2.1:2 ({because}), 1 of 2 paths are up")]);
        assert!(told(good(), path(2, false, Access::Optimized, 1)).is_empty());
        assert_eq!(told(good(), path(2, true, Access::Optimized, 1)), ["the path by 192.0.2.1:2 is back"]);
        // Lost and back between two looks.
        assert_eq!(told(good(), path(2, true, Access::Optimized, 2)).len(), 2);
        let aside = told(path(1, true, Access::Standby, 0), path(2, true, Access::Optimized, 2));
        assert_eq!(aside, ["the port of the path by 192.0.2.1:1 is standby now"]);
        assert_eq!(PathWatcher::new().sentences(&[path(1, false, Access::Optimized, 0)]).len(), 1);
    }

    #[test]
    fn a_loss_and_a_return_are_told_and_attempts_between_are_not() {
        let mut watcher = Watcher::default();
        let portal = "127.0.0.1:3260".parse().unwrap();
        let logged_in = |before| SessionEvent::LoggedIn { portal, transport: "tcp", before };
        assert_eq!(watcher.sentence(&logged_in(0)), None);
        let reason = Error::Broken {
            portal: Portal { host: "127.0.0.1".into(), port: 3260 },
            source: ConnectionEnd::KeepaliveTimeout,
        };
        let (next_in, tried_for) = (Duration::ZERO, Duration::from_millis(119_990));
        let lost = SessionEvent::Lost { reason: reason.clone(), next_in, tried_for };
        assert_eq!(
            watcher.sentence(&lost).unwrap(),
            "lost the target at 127.0.0.1:3260 (the target did not answer a NOP-Out: it is gone, or the network is), \
             trying again for 120 s"
        );
        assert_eq!(watcher.sentence(&SessionEvent::AttemptFailed { reason, next_in, tried_for }), None);
        assert_eq!(watcher.sentence(&logged_in(1)).unwrap(), "the target is back, at 127.0.0.1:3260");
    }
}
