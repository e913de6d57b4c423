//! What happens in a session, as a person at the terminal wants to hear it.

use std::net::SocketAddr;

use initiator_core::{Error, Session, SessionEvent};

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
                let reason = match reason {
                    Error::Broken { source, .. } => source.to_string(),
                    other => other.to_string(),
                };
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
            let program = std::env::args().next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            crate::tell!("{program}: {sentence}");
        }
    }
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
            "lost the target at 127.0.0.1:3260 (the target did not answer a NOP-Out: it is gone, or the network is), trying again for 120 s"
        );
        assert_eq!(watcher.sentence(&SessionEvent::AttemptFailed { reason, next_in, tried_for }), None);
        assert_eq!(watcher.sentence(&logged_in(1)).unwrap(), "the target is back, at 127.0.0.1:3260");
    }
}
