//! When a lost connection is tried again, and when the session is given up.

use core::time::Duration;

use iscsi_proto::time::Instant;

use crate::config::ReconnectPolicy;
use crate::connection::ConnectionEnd;
use crate::jitter::Jitter;

/// Why a session that is lost is not connected again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// [`ReconnectPolicy::deadline`] has passed.
    Deadline,
    /// The target asked to be left alone (Time2Wait, RFC 7143 7.5) for longer than is left of the deadline.
    Time2Wait {
        /// What it asked for.
        asked: Duration,
        /// What is left.
        left: Duration,
    },
}

/// What a connection has done for its session ([`Engine::service`](crate::Engine::service)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Commands waited for their answers, and none came.
    Nothing,
    /// There was a time when no command waited.
    Idle,
    /// Commands were answered, with whatever status.
    Answers,
}

/// The attempts to bring one session back, sans-IO: it says how long to wait before each.
///
/// ```
/// use std::time::Duration;
/// use initiator_core::{ReconnectPolicy, Recovery, Service};
/// use iscsi_proto::time::Instant;
/// let policy = ReconnectPolicy { deadline: Duration::from_secs(10), ..ReconnectPolicy::default() };
/// let mut recovery = Recovery::new(policy, 7);
/// let lost = Instant::ZERO;
/// assert_eq!(recovery.lost(Some(Duration::from_secs(2)), Service::Idle, lost), Ok(Duration::from_secs(2)));
/// let tenth = (0..10).map(|_| recovery.failed(lost)).last().unwrap().unwrap();
/// assert!(tenth <= policy.longest_delay);
/// assert_eq!(recovery.failed(lost + Duration::from_secs(11)), None);
/// ```
#[derive(Debug)]
pub struct Recovery {
    policy: ReconnectPolicy,
    jitter: Jitter,
    since: Option<Instant>,
    attempt: u32,
    logged_in_at: Option<Instant>,
}

impl Recovery {
    /// By a policy; `seed` spreads the delays where the policy has no seed of its own.
    #[must_use]
    pub fn new(policy: ReconnectPolicy, seed: u64) -> Self {
        let jitter = Jitter::new(policy.seed.unwrap_or(seed));
        Self { policy, jitter, since: None, attempt: 0, logged_in_at: None }
    }

    /// The connection stood from then on.
    pub const fn connected(&mut self, at: Instant) {
        self.logged_in_at = Some(at);
    }

    /// A connection that stood is lost: how long to wait before the first attempt. `time2wait` is what the target asked
    /// for; `service`, what the connection has done.
    ///
    /// # Errors
    /// [`GivenUp`]: the session is over.
    pub fn lost(&mut self, time2wait: Option<Duration>, service: Service, now: Instant) -> Result<Duration, GivenUp> {
        // A connection that breaks as soon as it stands goes on with the back-off of the one before: a loop of logins
        // helps nobody.
        let stood = self.logged_in_at.take().is_none_or(|at| now - at >= self.policy.longest_delay);
        if stood {
            self.attempt = 0;
        }
        // A session that gets its commands done is not to be given up, however short-lived its connections are; one that
        // gets none done is, however long a target keeps the connections on which it is silent.
        if service == Service::Answers || stood && service == Service::Idle {
            self.since = None;
        }
        let since = *self.since.get_or_insert(now);
        let left = self.policy.deadline.saturating_sub(now - since);
        if left.is_zero() {
            return Err(GivenUp::Deadline);
        }
        let wait = time2wait.filter(|_| self.policy.honour_time2wait).unwrap_or(Duration::ZERO);
        if wait > left {
            return Err(GivenUp::Time2Wait { asked: wait, left });
        }
        if stood {
            return Ok(wait);
        }
        Ok(self.delay().min(left).max(wait))
    }

    /// An attempt failed: how long to wait before the next one, or `None` once the deadline has passed.
    pub fn failed(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let elapsed = now - since;
        if elapsed >= self.policy.deadline {
            return None;
        }
        Some(self.delay().min(self.policy.deadline - elapsed))
    }

    /// How long attempts go on after a connection was lost.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.since.map_or(self.policy.deadline, |since| self.policy.deadline.saturating_sub(now - since))
    }

    fn delay(&mut self) -> Duration {
        let delay = self.jitter.back_off(self.policy.first_delay, self.policy.longest_delay, self.attempt);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }
}

/// Whether trying again can help. Refusals by name, secret or access list do not heal by themselves, but a target that
/// restarts may not know its names yet, so only those are final that a person has to mend.
#[must_use]
pub fn may_heal(end: &ConnectionEnd) -> bool {
    use iscsi_proto::pdu::LoginStatus;
    match end {
        ConnectionEnd::Login(error) => !matches!(
            error.status(),
            LoginStatus::AUTHENTICATION_FAILURE
                | LoginStatus::AUTHORIZATION_FAILURE
                | LoginStatus::TARGET_REMOVED
                | LoginStatus::UNSUPPORTED_VERSION
        ),
        ConnectionEnd::LoggedOut | ConnectionEnd::LogoutTimeout => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_breaks_at_once_keeps_backing_off() {
        let policy = ReconnectPolicy { seed: Some(1), ..ReconnectPolicy::default() };
        let mut recovery = Recovery::new(policy, 0);
        let mut now = Instant::ZERO;
        recovery.connected(now);
        now = now + Duration::from_secs(60);
        assert_eq!(recovery.lost(None, Service::Idle, now), Ok(Duration::ZERO));
        let mut delays = [Duration::ZERO; 8];
        for delay in &mut delays {
            recovery.connected(now);
            *delay = recovery.lost(None, Service::Idle, now).unwrap();
            now = now + *delay;
        }
        assert!(delays[7] > delays[0] * 8, "{delays:?}");
        recovery.connected(now);
        assert_eq!(
            recovery.lost(Some(Duration::from_secs(2)), Service::Idle, now + Duration::from_secs(60)),
            Ok(Duration::from_secs(2))
        );
    }

    #[test]
    fn a_session_that_gets_on_is_not_given_up() {
        let policy = ReconnectPolicy { seed: Some(1), ..ReconnectPolicy::default() };
        let mut recovery = Recovery::new(policy, 0);
        let mut now = Instant::ZERO;
        for _ in 1..100 {
            recovery.connected(now);
            let wait = recovery.lost(None, Service::Answers, now).expect("commands were answered");
            now = now + wait.max(Duration::from_secs(2));
        }
        assert!(now - Instant::ZERO > policy.deadline);
        recovery.connected(now);
        assert!(recovery.lost(None, Service::Nothing, now).is_ok(), "from now on nothing is answered");
        now = now + policy.deadline;
        recovery.connected(now);
        assert_eq!(recovery.lost(None, Service::Nothing, now), Err(GivenUp::Deadline));
    }

    #[test]
    fn a_target_that_is_silent_after_each_login_is_given_up() {
        let policy = ReconnectPolicy { seed: Some(1), ..ReconnectPolicy::default() };
        let stands = policy.longest_delay * 2;
        let end = |service| {
            let mut recovery = Recovery::new(policy, 0);
            let mut now = Instant::ZERO;
            (0..100).find_map(|_| {
                recovery.connected(now);
                now = now + stands;
                match recovery.lost(None, service, now) {
                    Ok(wait) => now = now + wait,
                    Err(given_up) => return Some((given_up, now - Instant::ZERO)),
                }
                None
            })
        };
        let (given_up, after) = end(Service::Nothing).expect("an end");
        assert_eq!(given_up, GivenUp::Deadline);
        assert!(after <= policy.deadline + stands * 2, "{after:?}");
        assert_eq!(end(Service::Idle), None, "nobody has asked anything");
    }

    #[test]
    fn a_deadline_of_zero_never_reconnects() {
        let policy = ReconnectPolicy { deadline: Duration::ZERO, ..ReconnectPolicy::default() };
        assert_eq!(Recovery::new(policy, 0).lost(None, Service::Idle, Instant::ZERO), Err(GivenUp::Deadline));
    }

    #[test]
    fn a_time2wait_beyond_the_deadline_gives_up_at_once() {
        let policy = ReconnectPolicy { seed: Some(1), ..ReconnectPolicy::default() };
        let seconds = Duration::from_secs;
        let mut recovery = Recovery::new(policy, 0);
        assert_eq!(recovery.lost(Some(policy.deadline), Service::Nothing, Instant::ZERO), Ok(policy.deadline));
        let given_up = GivenUp::Time2Wait { asked: seconds(111), left: seconds(110) };
        let now = Instant::ZERO + seconds(10);
        recovery.connected(now);
        assert_eq!(recovery.lost(Some(seconds(111)), Service::Nothing, now), Err(given_up));
        let heedless = ReconnectPolicy { honour_time2wait: false, ..policy };
        assert_eq!(Recovery::new(heedless, 0).lost(Some(seconds(3600)), Service::Nothing, now), Ok(Duration::ZERO));
    }
}
