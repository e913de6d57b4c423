//! Where a session's target may be: the portals of its configuration, and where the target sent it.

use crate::url::Portal;

/// Redirections that are followed without a login between them.
const REDIRECTIONS: usize = 4;

/// The portals of one session, and which of them the next attempt goes to.
///
/// Attempts go round: from the one that worked last through all others, until each has failed once; then the session
/// waits, and goes round again.
#[derive(Debug)]
pub(super) struct Portals {
    configured: Vec<Portal>,
    /// Where the target moved for good (RFC 7143 11.13.5, status 0102h): the first of the list.
    moved: Option<Portal>,
    /// Where the target is for now (status 0101h).
    aside: Option<Portal>,
    /// The place of the next attempt in the list.
    at: usize,
    /// Attempts of this round that came to nothing.
    failed: usize,
    redirections: usize,
}

impl Portals {
    pub(super) fn new(first: &Portal, more: &[Portal]) -> Self {
        let mut configured = vec![first.clone()];
        for portal in more {
            if !configured.contains(portal) {
                configured.push(portal.clone());
            }
        }
        Self { configured, moved: None, aside: None, at: 0, failed: 0, redirections: 0 }
    }

    fn list(&self) -> impl Iterator<Item = &Portal> {
        let moved = self.moved.as_ref();
        moved.into_iter().chain(self.configured.iter().filter(move |portal| Some(*portal) != moved))
    }

    /// Where the next attempt goes.
    pub(super) fn current(&self) -> &Portal {
        self.aside.as_ref().or_else(|| self.list().nth(self.at)).unwrap_or(&self.configured[0])
    }

    /// The target sends the login to another portal. False when it has been sent about too often.
    pub(super) fn redirected(&mut self, to: Portal, permanent: bool) -> bool {
        if self.redirections >= REDIRECTIONS {
            return false;
        }
        self.redirections += 1;
        if permanent && self.aside.is_none() {
            self.moved = Some(to);
            self.at = 0;
        } else {
            self.aside = Some(to);
        }
        true
    }

    /// There was a login. What holds for now holds no longer: the portal that is lost was asked for this once.
    pub(super) fn logged_in(&mut self) {
        self.aside = None;
        self.failed = 0;
        self.redirections = 0;
    }

    /// There was none: the next attempt goes to the next portal. Whether there is one that has not failed in this
    /// round.
    pub(super) fn failed(&mut self) -> bool {
        self.aside = None;
        self.redirections = 0;
        let all = self.list().count();
        self.at = (self.at + 1) % all;
        self.failed = (self.failed + 1) % all;
        self.failed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portal(host: &str) -> Portal {
        Portal { host: host.into(), port: 3260 }
    }

    #[test]
    fn a_permanent_redirection_is_where_later_logins_go() {
        let mut portals = Portals::new(&portal("old"), &[]);
        assert!(portals.redirected(portal("new"), true));
        assert_eq!(*portals.current(), portal("new"));
        portals.logged_in();
        assert_eq!(*portals.current(), portal("new"));
        // Gone: the configuration's portal may know more.
        assert!(portals.failed());
        assert_eq!(*portals.current(), portal("old"));
        assert!(!portals.failed(), "each has failed");
        assert_eq!(*portals.current(), portal("new"));
    }

    #[test]
    fn a_temporary_redirection_holds_for_one_login() {
        let mut portals = Portals::new(&portal("home"), &[]);
        assert!(portals.redirected(portal("guest"), false));
        assert_eq!(*portals.current(), portal("guest"));
        portals.logged_in();
        assert_eq!(*portals.current(), portal("home"));
        assert!(portals.redirected(portal("gone"), false));
        assert!(!portals.failed());
        assert_eq!(*portals.current(), portal("home"));
        // What is there for now does not say where the target is for good.
        assert!(portals.redirected(portal("guest"), false) && portals.redirected(portal("other guest"), true));
        assert_eq!(*portals.current(), portal("other guest"));
        portals.logged_in();
        assert_eq!(*portals.current(), portal("home"));
    }

    #[test]
    fn a_portal_that_is_gone_is_left_for_the_others() {
        let mut portals = Portals::new(&portal("a"), &[portal("b"), portal("a"), portal("c")]);
        assert!(portals.failed());
        assert_eq!(*portals.current(), portal("b"));
        portals.logged_in();
        // The one that worked last is tried first.
        assert_eq!(*portals.current(), portal("b"));
        assert!(portals.failed() && portals.failed());
        assert_eq!(*portals.current(), portal("a"));
        assert!(!portals.failed());
        assert_eq!(*portals.current(), portal("b"));
    }

    #[test]
    fn redirections_in_a_circle_end() {
        let mut portals = Portals::new(&portal("a"), &[]);
        let rounds = (0..100).take_while(|n| portals.redirected(portal(["b", "a"][n % 2]), true)).count();
        assert_eq!(rounds, REDIRECTIONS);
        while portals.failed() {}
        assert!(portals.redirected(portal("b"), false));
    }
}
