//! The command window: which CmdSNs a session takes, in what order, and what it tells about it (RFC 7143 4.2.2.1).

use iscsi_proto::serial::Serial;

/// ExpCmdSN and MaxCmdSN of a session.
///
/// MaxCmdSN grows by one each time a numbered request is done, so the initiator never has more requests with us than
/// the task table has slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommandWindow {
    expected: Serial,
    max: Serial,
}

/// Where a numbered request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the next one.
    Next,
    /// It is in the window, ahead of one that has not come.
    Ahead,
    /// It is outside the window: it is dropped without a word.
    Outside,
}

impl CommandWindow {
    /// A window of `size` requests that begins with `first`.
    pub(super) fn new(first: Serial, size: u16) -> Self {
        Self { expected: first, max: first.advance(u32::from(size)).advance(u32::MAX) }
    }

    /// ExpCmdSN.
    #[inline]
    pub(super) fn expected(&self) -> Serial {
        self.expected
    }

    /// MaxCmdSN.
    #[inline]
    pub(super) fn max(&self) -> Serial {
        self.max
    }

    /// Whether `cmd_sn` is between ExpCmdSN and MaxCmdSN, both included.
    pub(super) fn contains(&self, cmd_sn: Serial) -> bool {
        let ahead = self.expected.distance(cmd_sn);
        ahead >= 0 && ahead <= self.expected.distance(self.max)
    }

    /// Where a numbered request stands.
    #[inline]
    pub(super) fn place(&self, cmd_sn: Serial) -> Place {
        // A closed window (MaxCmdSN one behind ExpCmdSN) takes not even the next.
        if cmd_sn == self.expected && self.expected != self.max.next() {
            Place::Next
        } else if self.contains(cmd_sn) {
            Place::Ahead
        } else {
            Place::Outside
        }
    }

    /// The next request is taken.
    #[inline]
    pub(super) fn take(&mut self) {
        self.expected = self.expected.next();
    }

    /// A request that was taken is done.
    #[inline]
    pub(super) fn done(&mut self) {
        self.max = self.max.next();
    }

    /// Takes what is before `cmd_sn` for received and done. Nothing, if no request could have that number: it is at
    /// most the one behind MaxCmdSN, which a request for immediate delivery has when the window is closed.
    pub(super) fn pass_to(&mut self, cmd_sn: Serial) {
        if self.contains(cmd_sn) || cmd_sn == self.max.next() {
            while self.expected < cmd_sn {
                self.pass();
            }
        }
    }

    /// A request that leaves nothing behind: taken and done at once.
    pub(super) fn pass(&mut self) {
        self.take();
        self.done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_window_is_closed_until_a_request_is_done() {
        let mut window = CommandWindow::new(Serial(0xffff_fffe), 3);
        assert_eq!(window.max(), Serial(0));
        for sn in [0xffff_fffe, 0xffff_ffff, 0] {
            assert_eq!(window.place(Serial(sn)), Place::Next);
            window.take();
        }
        assert_eq!(window.max(), window.expected().advance(u32::MAX));
        assert_eq!(window.place(Serial(1)), Place::Outside);
        window.done();
        assert_eq!(window.place(Serial(1)), Place::Next);
        assert_eq!(window.place(Serial(2)), Place::Outside);
    }

    proptest! {
        #[test]
        fn places_agree_with_the_distance(first: u32, size in 1u16..1000, at: u32) {
            let window = CommandWindow::new(Serial(first), size);
            let ahead = at.wrapping_sub(first);
            let expected = match ahead {
                0 => Place::Next,
                1.. if ahead < u32::from(size) => Place::Ahead,
                _ => Place::Outside,
            };
            prop_assert_eq!(window.place(Serial(at)), expected);
        }
    }
}
