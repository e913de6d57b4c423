//! What a listener at the target's end of a TCP connection can tell: whether what the target says keeps to the order
//! that RFC 7143 gives it.
//!
//! - StatSN counts each response (4.2.2.2), DataSN and R2TSN each PDU of a task (11.7.5, 11.8.3).
//! - Nothing is asked for that was asked for or has come before: at error recovery level 0 nothing is sent twice (7.1.3).
//! - No status is told before the last of the data that the initiator owes: what comes unasked, and what an R2T asked
//!   for (11.4.2); but for data that do not come, and for tasks that a task management function ends.
//! - A command whose immediate data fail their digest is rejected, and not answered beside that (7.3, 7.8).

use std::collections::BTreeMap;
use std::time::Duration;

use iscsi_proto::digest::crc32c;
use iscsi_proto::time::Instant;

/// Bytes of a header without additional segments.
const BHS: usize = 48;

/// Data that have not got on for so long may have been given up.
const PATIENCE: Duration = Duration::from_millis(900);

/// No task: what a NOP-In that asks, or unsolicited data, have in the place of a tag.
const NO_TAG: u32 = u32::MAX;

const TASK_ABORTED: u8 = 0x40;

/// A command that the target has and has not answered.
#[derive(Debug)]
struct Task {
    /// Data that come unasked are still to come.
    owes_unasked: bool,
    /// R2Ts of which the last data have not come.
    asked: Vec<u32>,
    /// What has come unasked or was asked for, from where to where.
    known: Vec<(u32, u32)>,
    /// The number of its next Data-In or R2T.
    next: u32,
    /// Since when nothing of its data has come.
    since: Instant,
    /// They came when they may have been given up already.
    was_late: bool,
    /// It was rejected.
    is_rejected: bool,
    /// A function may have ended it.
    may_be_ended: bool,
}

/// The bytes of one direction that are no whole PDU yet.
#[derive(Debug, Default)]
struct Stream {
    held: Vec<u8>,
}

impl Stream {
    /// The next PDU with its data, if it is whole. An error is a header that its digest does not fit.
    fn next(&mut self, header_digest: bool, data_digest: bool) -> Result<Option<(Vec<u8>, usize)>, ()> {
        let Some(head) = self.held.first_chunk::<BHS>() else { return Ok(None) };
        let header = BHS + usize::from(head[4]) * 4;
        let data = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let with_digest = header + if header_digest { 4 } else { 0 };
        let total = with_digest + data.next_multiple_of(4) + if data_digest && data > 0 { 4 } else { 0 };
        if self.held.len() < total {
            return Ok(None);
        }
        if header_digest && crc32c(&self.held[..header]) != self.held[header..with_digest] {
            return Err(());
        }
        let mut pdu: Vec<u8> = self.held.drain(..total).collect();
        pdu.truncate(with_digest + data);
        Ok(Some((pdu, with_digest)))
    }
}

/// A listener at one connection.
#[derive(Debug)]
pub struct Watch {
    /// The target that it listens to.
    target: String,
    comes: Stream,
    goes: Stream,
    /// The login is over.
    is_full: bool,
    /// It listens; else there is nothing to be understood.
    listens: bool,
    digests: (bool, bool),
    stat_sn: Option<u32>,
    tasks: BTreeMap<u32, Task>,
}

fn word(pdu: &[u8], at: usize) -> u32 {
    pdu[at..at + 4].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

impl Watch {
    /// A listener that hears sessions with one target node.
    #[must_use]
    pub fn new(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            comes: Stream::default(),
            goes: Stream::default(),
            is_full: false,
            listens: true,
            digests: (false, false),
            stat_sn: None,
            tasks: BTreeMap::new(),
        }
    }

    /// Bytes come to the target.
    pub fn comes(&mut self, bytes: &[u8], now: Instant) {
        if !self.listens {
            return;
        }
        self.comes.held.extend_from_slice(bytes);
        // What comes during the login is looked at when it was answered: digests count from there on.
        while self.listens {
            let (header, data) = if self.is_full { self.digests } else { (false, false) };
            match self.comes.next(header, data) {
                Ok(Some((pdu, start))) => self.request(&pdu, start, now),
                Ok(None) => return,
                Err(()) => self.listens = false,
            }
        }
    }

    /// The target sends bytes.
    ///
    /// # Errors
    /// What it may not say then.
    pub fn goes(&mut self, bytes: &[u8], now: Instant) -> Result<(), String> {
        if !self.listens {
            return Ok(());
        }
        self.goes.held.extend_from_slice(bytes);
        while self.listens {
            let (header, data) = if self.is_full { self.digests } else { (false, false) };
            match self.goes.next(header, data) {
                Ok(Some((pdu, start))) => self.response(&pdu, start, now)?,
                Ok(None) => break,
                Err(()) => return Err("a header of the target does not fit its digest".into()),
            }
        }
        Ok(())
    }

    fn keys(&mut self, text: &[u8]) {
        for pair in text.split(|byte| *byte == 0) {
            let pair = String::from_utf8_lossy(pair);
            let Some((key, value)) = pair.split_once('=') else { continue };
            // A list is an offer.
            let chosen = (!value.contains(',')).then_some(value == "CRC32C");
            match (key, chosen) {
                ("HeaderDigest", Some(on)) => self.digests.0 = on,
                ("DataDigest", Some(on)) => self.digests.1 = on,
                ("TargetName", _) => self.listens &= value == self.target,
                _ => {}
            }
        }
    }

    fn request(&mut self, pdu: &[u8], start: usize, now: Instant) {
        let (flags, tag) = (pdu[1], word(pdu, 16));
        match pdu[0] & 0x3f {
            0x01 => {
                let task = Task {
                    owes_unasked: flags & 0xa0 == 0x20,
                    asked: Vec::new(),
                    // Immediate data.
                    known: vec![(0, (pdu.len() - start) as u32)],
                    next: 0,
                    since: now,
                    was_late: false,
                    is_rejected: false,
                    may_be_ended: false,
                };
                self.tasks.insert(tag, task);
            }
            0x02 => self.tasks.values_mut().for_each(|task| task.may_be_ended = true),
            0x03 if !self.is_full => self.keys(&pdu[start..]),
            0x05 => {
                let asked = word(pdu, 20);
                if let Some(task) = self.tasks.get_mut(&tag) {
                    task.was_late |= now.saturating_since(task.since) >= PATIENCE;
                    task.since = now;
                    if asked == NO_TAG {
                        let from = word(pdu, 40);
                        task.known.push((from, from + (pdu.len() - start) as u32));
                    }
                    if flags & 0x80 != 0 {
                        task.owes_unasked &= asked != NO_TAG;
                        task.asked.retain(|other| *other != asked);
                    }
                }
            }
            // Not iSCSI at all, such as an MPA request.
            code if !self.is_full && code != 0x03 => self.listens = false,
            _ => {}
        }
    }

    fn response(&mut self, pdu: &[u8], start: usize, now: Instant) -> Result<(), String> {
        let (code, flags, tag) = (pdu[0] & 0x3f, pdu[1], word(pdu, 16));
        let has_status = match code {
            // R2Ts, NOP-Ins that ask, and Data-Ins without a status take no number.
            0x31 => false,
            0x20 => tag != NO_TAG,
            0x25 => flags & 1 != 0,
            _ => true,
        };
        if has_status {
            let found = word(pdu, 24);
            if let Some(expected) = self.stat_sn.filter(|expected| *expected != found) {
                return Err(format!("StatSN {found} of a PDU {code:#x}, and it is the turn of {expected}"));
            }
            self.stat_sn = Some(found.wrapping_add(1));
        }
        match code {
            0x23 => {
                self.keys(&pdu[start..]);
                // T=1, NSG=FullFeaturePhase.
                self.is_full |= flags & 0x83 == 0x83 && pdu[36] == 0;
            }
            0x25 | 0x31 => {
                let Some(task) = self.tasks.get_mut(&tag) else { return Ok(()) };
                let number = word(pdu, 36);
                if number != task.next {
                    return Err(format!(
                        "PDU {code:#x} {number} of task {tag:#x}, and it is the turn of {}",
                        task.next
                    ));
                }
                task.next += 1;
                if code == 0x31 {
                    let (from, to) = (word(pdu, 40), word(pdu, 40) + word(pdu, 44));
                    if let Some(before) = task.known.iter().find(|before| from < before.1 && before.0 < to) {
                        return Err(format!("bytes {from} to {to} of task {tag:#x} are asked for, after {before:?}"));
                    }
                    task.known.push((from, to));
                    task.asked.push(word(pdu, 20));
                }
                if has_status {
                    return self.ends(tag, pdu[3], now);
                }
            }
            0x21 => return self.ends(tag, pdu[3], now),
            // A data digest error of a command: what is rejected is in the data.
            0x3f if pdu[2] == 0x02 && pdu.len() >= start + BHS && pdu[start] & 0x3f == 0x01 => {
                if let Some(task) = self.tasks.get_mut(&word(&pdu[start..], 16)) {
                    task.is_rejected = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A status is told.
    fn ends(&mut self, tag: u32, status: u8, now: Instant) -> Result<(), String> {
        let Some(task) = self.tasks.remove(&tag) else { return Ok(()) };
        if task.is_rejected {
            return Err(format!("task {tag:#x} was rejected, and is answered with status {status:#x}"));
        }
        // The header of the last may have come, with its data still on their way.
        let last = self.comes.held.first_chunk::<BHS>().filter(|head| head[0] & 0x3f == 0x05 && head[1] & 0x80 != 0);
        let last = last.filter(|head| word(&head[..], 16) == tag).map(|head| word(&head[..], 20));
        let owes = task.owes_unasked && last != Some(NO_TAG) || task.asked.iter().any(|asked| last != Some(*asked));
        let is_late = task.was_late || now.saturating_since(task.since) >= PATIENCE;
        if owes && !task.may_be_ended && !is_late && status != TASK_ABORTED {
            return Err(format!("status {status:#x} of task {tag:#x} is told while data of it are owed: {task:?}"));
        }
        Ok(())
    }
}
