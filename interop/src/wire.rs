//! tshark's dissector as a second opinion on every PDU that passes.
//!
//! It shares no code with ours, so a PDU that both ends of this workspace agree on and that is wrong
//! all the same shows here: a length that does not fit, a key without `=`, a digest that does not match.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::{self, Running};
use crate::{Context, Failure, Result, packages};

const LIMIT: Duration = Duration::from_secs(120);

/// Has tshark put segments into their order before it looks into them. On the loopback interface of a
/// machine with several processors they may pass each other: each processor has a queue of its own, and a
/// sender that moves from one to another leaves segments in both.
const IN_SEQUENCE: [&str; 2] = ["-o", "tcp.reassemble_out_of_order:TRUE"];

/// Has tshark list, for each TCP segment: connection, port of its sender, sequence number (0 is the SYN's),
/// bytes of payload and flags.
const SEGMENTS: [&str; 14] = [
    "-Y",
    "tcp",
    "-T",
    "fields",
    "-e",
    "tcp.stream",
    "-e",
    "tcp.srcport",
    "-e",
    "tcp.seq",
    "-e",
    "tcp.len",
    "-e",
    "tcp.flags",
];

/// A capture of loopback traffic on one TCP port, under way.
#[derive(Debug)]
pub struct Capture {
    running: Running,
    port: u16,
    file: PathBuf,
}

/// What the dissector found in a capture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// How often each opcode was seen.
    pub opcodes: BTreeMap<u8, usize>,
    /// One line for each PDU that is malformed, has a bad `key=value`, an unknown opcode or a bad digest.
    pub complaints: Vec<String>,
    /// Digests that the dissector checked and found right.
    pub good_digests: usize,
    /// Bytes of TCP's streams that the capture itself missed. Above 0 the verdict says nothing.
    pub missed: u64,
}

impl Capture {
    /// Starts to capture what passes over a TCP port of the loopback interface. Needs root, or `sudo`
    /// without a password.
    ///
    /// # Errors
    /// When tcpdump or tshark is not installed, or the capture is not allowed.
    pub fn start(port: u16) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        packages::program("tshark")?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("interop-wire-{}-{number}.pcap", std::process::id()));
        let tcpdump = packages::program("tcpdump")?;
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new(tcpdump)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("-n").arg(tcpdump);
            sudo
        };
        // -U writes each packet at once; -B is in KiB, large enough that a burst is not lost.
        command.args(["-i", "lo", "-U", "-B", "131072", "-s", "0", "-Z", "root", "-w"]).arg(&file);
        command.arg(format!("tcp port {port}"));
        let mut running = Running::start(&command)?;
        running.wait_for_text("listening on", Duration::from_secs(20))?;
        Ok(Self { running, port, file })
    }

    /// Ends the capture and has it judged.
    ///
    /// # Errors
    /// When tcpdump or tshark fails. What the dissector finds wrong is in the verdict.
    pub fn judge(self) -> Result<Verdict> {
        let port = self.port;
        self.judge_by(|file| judge(file, port))
    }

    /// Ends the capture and has its iWARP connections judged.
    ///
    /// # Errors
    /// As for [`judge`](Self::judge).
    pub fn judge_iwarp(self) -> Result<IwarpVerdict> {
        self.judge_by(judge_iwarp)
    }

    fn judge_by<T>(self, by: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        // What was sent last may still be on its way to tcpdump.
        std::thread::sleep(Duration::from_millis(500));
        self.running.interrupt(Duration::from_secs(20))?.success()?;
        let verdict = by(&self.file);
        let _ = std::fs::remove_file(&self.file);
        verdict
    }
}

/// Has tshark judge a capture file.
///
/// # Errors
/// When tshark fails.
pub fn judge(file: &Path, port: u16) -> Result<Verdict> {
    let tshark = |arguments: &[&str]| -> Result<String> {
        let mut command = packages::command("tshark")?;
        command.arg("-r").arg(file).args(["-d", &format!("tcp.port=={port},iscsi")]).args(IN_SEQUENCE).args(arguments);
        // It warns about being root on stderr.
        Ok(process::run(&command, LIMIT)?.success()?.stdout)
    };
    let mut verdict = Verdict::default();
    for line in tshark(&["-Y", "iscsi", "-T", "fields", "-e", "iscsi.opcode"])?.lines() {
        for opcode in line.split(',').filter(|opcode| !opcode.is_empty()) {
            let digits = opcode.trim_start_matches("0x");
            let value = u8::from_str_radix(digits, 16).context(format!("tshark's opcode {opcode:?}"))?;
            *verdict.opcodes.entry(value).or_default() += 1;
        }
    }
    // The SCSI dissector also calls an answer malformed that the allocation length cut short, as the
    // standard wants it; only what the iSCSI dissector itself cannot read is a fault.
    let malformed =
        tshark(&["-Y", "_ws.malformed && iscsi", "-T", "fields", "-e", "frame.number", "-e", "_ws.malformed"])?;
    let malformed = malformed.lines().filter(|line| line.contains("iSCSI"));
    verdict.complaints.extend(malformed.map(|line| format!("malformed: frame {line}")));
    for (what, filter) in [("bad key=value", "iscsi.keyvalue.invalid"), ("unknown opcode", "iscsi.opcode.invalid")] {
        verdict.complaints.extend(tshark(&["-Y", filter])?.lines().map(|line| format!("{what}: {}", line.trim())));
    }
    for line in tshark(&["-Y", "iscsi", "-V"])?.lines().filter(|line| line.contains("Digest: 0x")) {
        match digest_verdict(line) {
            Some(true) => verdict.good_digests += 1,
            Some(false) => verdict.complaints.push(format!("bad digest: {}", line.trim())),
            None => {}
        }
    }
    verdict.missed = missed(&tshark(&SEGMENTS)?)?;
    Ok(verdict)
}

/// What tshark says of a digest. Only its words count: a value such as 0x19fbad16 has "bad" in its digits.
fn digest_verdict(line: &str) -> Option<bool> {
    let words = line.split_once('(')?.1.to_lowercase();
    if ["incorrect", "bad", "should be"].iter().any(|word| words.contains(word)) {
        return Some(false);
    }
    ["good", "correct"].iter().any(|word| words.contains(word)).then_some(true)
}

/// What the dissectors of MPA, DDP and RDMAP found in a capture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IwarpVerdict {
    /// How often each RDMAP opcode was seen (RFC 5040 4.3).
    pub opcodes: BTreeMap<u8, usize>,
    /// One line for each frame that is malformed, has a length that does not fit, or a wrong CRC.
    pub complaints: Vec<String>,
    /// CRCs that the dissector checked and found right.
    pub good_crcs: usize,
    /// Bytes of TCP's streams that the capture itself missed. Above 0 the verdict says nothing.
    pub missed: u64,
}

/// Has tshark judge the iWARP connections in a capture file.
///
/// # Errors
/// When tshark fails.
pub fn judge_iwarp(file: &Path) -> Result<IwarpVerdict> {
    let tshark = |arguments: &[&str]| -> Result<String> {
        let mut command = packages::command("tshark")?;
        // MPA is known by its first frames, not by a port.
        command.arg("-r").arg(file).args(["-o", "tcp.try_heuristic_first:TRUE"]).args(IN_SEQUENCE);
        // What guesses at the payload of a Send takes the one or other for its own, by the chance of an STag.
        command.args(["--disable-protocol", "rpcordma", "--disable-protocol", "smb_direct"]).args(arguments);
        Ok(process::run(&command, LIMIT)?.success()?.stdout)
    };
    let mut verdict = IwarpVerdict::default();
    let opcodes = tshark(&["-Y", "iwarp_ddp_rdmap", "-T", "fields", "-e", "iwarp_rdma.opcode"])?;
    for opcode in opcodes.lines().flat_map(|line| line.split(',')).filter(|opcode| !opcode.is_empty()) {
        let digits = opcode.trim_start_matches("0x");
        let value = u8::from_str_radix(digits, 16).context(format!("tshark's opcode {opcode:?}"))?;
        *verdict.opcodes.entry(value).or_default() += 1;
    }
    // The dissector knows revision 1 only, and says so of the revision 2 of RFC 6581: that is no fault.
    let filters = [
        ("malformed", "_ws.malformed && iwarp_mpa"),
        ("bad length", "iwarp_mpa.bad_length"),
        ("reserved bits", "iwarp_mpa.res.not_set0"),
        ("reject bit", "iwarp_mpa.reject_bit_responder"),
    ];
    for (what, filter) in filters {
        verdict.complaints.extend(tshark(&["-Y", filter])?.lines().map(|line| format!("{what}: {}", line.trim())));
    }
    for line in tshark(&["-Y", "iwarp_mpa.fpdu", "-V"])?.lines().filter(|line| line.trim().starts_with("CRC: 0x")) {
        match digest_verdict(line) {
            Some(true) => verdict.good_crcs += 1,
            Some(false) => verdict.complaints.push(format!("bad CRC: {}", line.trim())),
            None => {}
        }
    }
    verdict.missed = missed(&tshark(&SEGMENTS)?)?;
    Ok(verdict)
}

/// Bytes that a capture missed: the holes in the sequence numbers of each connection's two directions.
///
/// The dissector's own remark "previous segment not captured" does not tell, because segments that only
/// changed places (see [`IN_SEQUENCE`]) earn it too.
fn missed(segments: &str) -> Result<u64> {
    const FIN: u64 = 1;
    let mut streams: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
    for line in segments.lines().filter(|line| !line.is_empty()) {
        let number = |field: &str| match field.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => field.parse(),
        };
        let numbers: std::result::Result<Vec<u64>, _> = line.split('\t').map(number).collect();
        let &[stream, from, sequence, length, flags] = &numbers.context(format!("tshark's segment {line:?}"))?[..]
        else {
            return Err(Failure::new(format!("tshark's segment {line:?} has not five fields")));
        };
        // A FIN takes a sequence number of its own.
        let end = sequence + length + (flags & FIN);
        streams.entry((stream, from)).or_default().push((sequence, end));
    }
    let mut holes = 0;
    for segments in streams.values_mut() {
        segments.sort_unstable();
        // 0 is the SYN's place and the first byte's is 1. A SYN was seen or the numbers mean nothing: they
        // count from the first segment of the capture then, which is behind what was missed.
        let mut next = 1;
        for &(begin, end) in segments.iter() {
            holes += begin.saturating_sub(next);
            next = next.max(end);
        }
    }
    Ok(holes)
}

/// That a capture missed nothing.
fn whole(missed: u64) -> Result<()> {
    if missed > 0 {
        return Err(Failure::new(format!("the capture missed {missed} bytes: run the test on a less busy machine")));
    }
    Ok(())
}

impl IwarpVerdict {
    /// Itself, when messages were seen and all of them are sound.
    ///
    /// # Errors
    /// Listing the first complaints otherwise.
    pub fn sound(self) -> Result<Self> {
        whole(self.missed)?;
        if self.opcodes.is_empty() {
            return Err(Failure::new("the capture has no RDMAP message"));
        }
        if self.complaints.is_empty() {
            return Ok(self);
        }
        let shown: Vec<&str> = self.complaints.iter().take(20).map(String::as_str).collect();
        Err(Failure::new(format!("tshark complains {} times:\n{}", self.complaints.len(), shown.join("\n"))))
    }
}

impl Verdict {
    /// How many PDUs were seen.
    pub fn pdus(&self) -> usize {
        self.opcodes.values().sum()
    }

    /// Itself, when PDUs were seen and all of them are sound.
    ///
    /// # Errors
    /// Listing the first complaints otherwise.
    pub fn sound(self) -> Result<Self> {
        whole(self.missed)?;
        if self.pdus() == 0 {
            return Err(Failure::new("the capture has no iSCSI PDU"));
        }
        if self.complaints.is_empty() {
            return Ok(self);
        }
        let shown: Vec<&str> = self.complaints.iter().take(20).map(String::as_str).collect();
        Err(Failure::new(format!(
            "tshark complains about {} of {} PDUs:\n{}",
            self.complaints.len(),
            self.pdus(),
            shown.join("\n")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::{digest_verdict, missed};

    #[test]
    fn a_digest_is_judged_by_words_not_by_its_digits() {
        assert_eq!(digest_verdict("    HeaderDigest: 0x19fbad16 (Good CRC32)"), Some(true));
        assert_eq!(digest_verdict("    DataDigest: 0x00000001 (Bad CRC32, should be 0x00000002)"), Some(false));
        assert_eq!(digest_verdict("    DataDigest: 0x00000001"), None);
    }

    /// Segments as tshark lists them, all of one port: connection, sequence number, length, flags.
    fn missed_of(segments: &[(u32, u32, u32, &str)]) -> u64 {
        let line = |&(stream, sequence, length, flags): &_| format!("{stream}\t5000\t{sequence}\t{length}\t{flags}\n");
        missed(&segments.iter().map(line).collect::<String>()).unwrap()
    }

    #[test]
    fn segments_in_another_order_or_twice_are_not_missed_ones() {
        let (syn, first, second) = ((0, 0, 0, "0x0002"), (0, 1, 100, "0x0010"), (0, 101, 50, "0x0018"));
        assert_eq!(missed_of(&[syn, second, first, first, (0, 151, 0, "0x0011"), (0, 152, 0, "0x0010")]), 0);
    }

    #[test]
    fn a_hole_is_counted_in_the_middle_and_before_the_end() {
        let (syn, first) = ((0, 0, 0, "0x0002"), (0, 1, 10, "0x0010"));
        assert_eq!(missed_of(&[syn, first, (0, 16, 10, "0x0010")]), 5);
        assert_eq!(missed_of(&[syn, first, (0, 31, 0, "0x0011")]), 20, "before the FIN");
        assert_eq!(missed_of(&[syn, first, (1, 0, 0, "0x0002"), (1, 3, 1, "0x0010")]), 2, "of another connection");
        missed("0\t5000\t0\t0\n").unwrap_err();
    }
}
