//! Which commands the target was done with of late: what a command that is overdue is judged by.

use core::time::Duration;

use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

/// Commands that were answered within some time.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// The first of them by CmdSN.
    first: Serial,
    since: Instant,
    until: Instant,
}

/// The commands that were answered of late after they had moved data. Commands are answered in any order: one that was
/// sent later and is answered first does not hide that earlier ones get on.
#[derive(Debug, Default)]
pub(super) struct Served {
    now: Option<Span>,
    before: Option<Span>,
}

impl Served {
    /// The target was done with this command. Half of the time that counts as of late is one span.
    pub(super) fn note(&mut self, cmd_sn: Serial, now: Instant, of_late: Duration) {
        match &mut self.now {
            Some(span) if now - span.since <= of_late / 2 => {
                span.until = now;
                if cmd_sn < span.first {
                    span.first = cmd_sn;
                }
            }
            _ => self.before = self.now.replace(Span { first: cmd_sn, since: now, until: now }),
        }
    }

    /// Whether of late one was answered that was sent before the one with this CmdSN.
    pub(super) fn has_one_before(&self, cmd_sn: Serial, now: Instant, of_late: Duration) -> bool {
        let is_before = |span: &Span| span.first < cmd_sn && now - span.until <= of_late;
        self.now.iter().chain(&self.before).any(is_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_LATE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_later_command_that_is_answered_does_not_hide_an_earlier_one() {
        let mut served = Served::default();
        served.note(Serial(5), at(1), OF_LATE);
        served.note(Serial(31), at(3), OF_LATE);
        served.note(Serial(50), at(8), OF_LATE);
        assert!(served.has_one_before(Serial(24), at(9), OF_LATE));
        assert!(!served.has_one_before(Serial(5), at(9), OF_LATE), "it waits behind none of them");
        assert!(!served.has_one_before(Serial(24), at(14), OF_LATE), "that was long ago");
        assert!(served.has_one_before(Serial(51), at(18), OF_LATE));
        assert!(!served.has_one_before(Serial(51), at(19), OF_LATE));
    }
}
