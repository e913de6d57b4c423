//! What a run did, and what it found.

use std::fmt;
use std::time::Duration;

use crate::scenario::Kind;
use crate::transport::Transport;

/// What a run did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Hash of its trace: two runs of one seed have the same.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Commands completed by honest sessions.
    pub commands: u64,
    /// Writes acknowledged to honest sessions.
    pub writes: u64,
    /// Logins of honest sessions.
    pub logins: u64,
    /// Links that were cut.
    pub cuts: u64,
    /// Bits that flipped under digests.
    pub flips: u64,
    /// Times that the target died and started again.
    pub crashes: u64,
    /// Changes to the LUNs while they were used.
    pub changes: u64,
    /// Links on which an initiator went deaf.
    pub deaf: u64,
    /// Virtual time that passed.
    pub time: Duration,
}

/// What a run found.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Its kind.
    pub kind: Kind,
    /// What carried its sessions.
    pub transport: Transport,
    /// What is wrong.
    pub what: String,
    /// The last lines of its trace.
    pub last: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.last {
            writeln!(f, "    {line}")?;
        }
        let name = self.transport.name();
        writeln!(f, "seed {} over {name}: {}", self.seed, self.what)?;
        let kind = self.kind.argument().map(|kind| format!(" {kind}")).unwrap_or_default();
        write!(f, "replay: cargo run -p sim -- --seed {} --transport {name}{kind} --trace", self.seed)
    }
}
