//! A remote disk as an application holds it.

mod identify;
mod limit;
mod replay;
mod transfer;

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use iscsi_memory::{Buf, Payload};
use portable_atomic::AtomicU64;

use scsi_proto::command::{GetLbaStatus, Unmap};
use scsi_proto::provisioning::{self, Provisioning};
use scsi_proto::{AdditionalSense, BlockIo, CdbBuf, Lun, SenseKey, opcode};

use super::mailbox::Shared;
use super::session::{declined, received};
use super::{DiskInfo, Extent, Session};
use crate::application::{Control, ControlAnswer};
use crate::command::{Command, Completion, Failure};
use crate::error::{Cause, Error, words};
use crate::identity::{Identity, KnownDisk};
use replay::Replay;

/// A disk: a logical unit of a session. Clones share it; any number of operations may be under way.
///
/// Offsets and lengths are in bytes and have to be whole blocks. An operation longer than the disk's MAXIMUM TRANSFER
/// LENGTH goes out in several commands side by side.
///
/// Dropping an operation's future (as a time limit around it does) is safe at any time: its memory belongs to the
/// session until the target is done with it. What was not sent is never sent. A write that was sent may or may not take
/// place, but never after a later one: the target is asked to abort it (ABORT TASK, RFC 7143 11.5.1), and what this
/// session is asked later for the same blocks waits until that is answered, or the write is.
/// [`with_timeout`](Self::with_timeout) gives each operation a limit of its own by the same rule.
///
/// # What a handle believes
///
/// After each new login the handle asks who is there before it sends anything: another disk, a smaller one or one of
/// another block length ends its operations with [`Error::OtherDisk`]. A disk with a volatile write cache that tells of
/// a power failure has lost what it acknowledged after the last [`flush`](Self::flush): each operation fails with
/// [`Error::LostWrites`] until [`take_lost_writes`](Self::take_lost_writes) is called. After a flush that failed, later
/// ones fail so, until then or until what it covered is written anew. [`with_replay`](Self::with_replay) has the
/// session write anew by itself what was lost. A disk that says that it has no such cache is believed.
///
/// One that tells of a power-on or a reset (29h/00h) at every login, as tgt does, and LIO without an access list, does
/// not tell whether it was switched off. After a new login to such a one what was not flushed may be lost, as after a
/// flush that failed: [`SessionEvent::LostWrites`](crate::SessionEvent::LostWrites) tells of it, reads and writes go
/// on, and flushes fail with [`Error::LostWrites`] until it is written anew or taken note of.
#[derive(Debug, Clone)]
pub struct Disk {
    session: Session,
    guard: Arc<Guard>,
    lun: Lun,
    block_size: u32,
    /// Blocks that one command moves at most.
    most_blocks: u32,
    info: Arc<RwLock<DiskInfo>>,
    /// How long an operation of this handle may take.
    limit: Option<Duration>,
    /// What is kept of what it writes.
    replay: Option<Arc<Replay>>,
}

/// Bytes that one command moves at most where the device tells no limit, or a larger one.
const MOST_BYTES: u32 = 4 << 20;
/// Blocks of one UNMAP or WRITE SAME where the device tells no limit.
const MOST_UNMAP_BLOCKS: u32 = 1 << 22;

/// The engine's guard for all clones of a disk.
#[derive(Debug)]
struct Guard {
    shared: Arc<Shared>,
    number: u32,
    identity: Identity,
    /// How often disks had grown when this one's size was last looked at.
    grown: AtomicU64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.unguard(self.number);
    }
}

impl Disk {
    pub(super) async fn open(session: Session, lun: Lun) -> Result<Self, Error> {
        let login = session.shared().logins();
        let (info, identity) = identify::identify(&session, lun).await?;
        let most = MOST_BYTES / info.block_size;
        let most_blocks = if info.max_transfer_blocks == 0 { most } else { most.min(info.max_transfer_blocks) };
        let known = known(lun, &info, identity.clone());
        let shared = session.shared_handle();
        let number = shared.guard(known, login).await?;
        let guard = Arc::new(Guard { shared, number, identity, grown: AtomicU64::new(0) });
        let (block_size, info) = (info.block_size, Arc::new(RwLock::new(info)));
        Ok(Self { session, guard, lun, block_size, most_blocks, info, limit: None, replay: None })
    }

    /// The disk as another session may know it.
    #[must_use]
    pub fn known(&self) -> KnownDisk {
        known(self.lun, &self.info(), self.guard.identity.clone())
    }

    /// Takes note of what the disk has lost ([`Error::LostWrites`]), as ranges of bytes, at most 1024 of them, which
    /// may then cover more than was written. The disk's operations go on.
    ///
    /// # Errors
    /// The session's end.
    pub async fn take_lost_writes(&self) -> Result<Vec<Range<u64>>, Error> {
        let (guard, block) = (self.guard.number, u64::from(self.block_size));
        match self.within(self.session.shared().ask(|id| Control::TakeLost { id, guard })).await? {
            ControlAnswer::Lost(lost) => Ok(lost
                .into_iter()
                .map(|range| range.start.saturating_mul(block)..range.end.saturating_mul(block))
                .collect()),
            other => Err(declined("the list of lost writes", &other)),
        }
    }

    /// A command that stands behind the disk's guard.
    fn guarded(&self, cdb: CdbBuf) -> Command {
        Command { guard: Some(self.guard.number), ..Command::new(0, self.lun, cdb) }
    }

    /// An error of a guarded command, in the disk's own words.
    fn explain(&self, error: Error) -> Error {
        let lun = self.lun();
        match error {
            Error::Command { failure: Failure::OtherDisk, .. } => match self.guard.shared.difference(self.guard.number)
            {
                Some(difference) => Error::OtherDisk { lun, difference },
                None => error,
            },
            Error::Command { failure: Failure::LostWrites, .. } => Error::LostWrites { lun },
            error => error,
        }
    }

    /// What the disk told about itself when it was opened or refreshed.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its LUN as the target spells it.
    pub(in crate::net) const fn wire_lun(&self) -> Lun {
        self.lun
    }

    /// Its LUN.
    #[must_use]
    pub fn lun(&self) -> u16 {
        self.lun.number().unwrap_or_default()
    }

    /// Asks the disk anew what it is: its size may have changed.
    ///
    /// # Errors
    /// [`Error::OtherDisk`] where it is not the disk that was opened, or smaller than that: then no operation of the
    /// handle passes any more. Else see [`Error`].
    pub async fn refresh(&self) -> Result<DiskInfo, Error> {
        let (info, identity) = self.within(identify::identify(&self.session, self.lun)).await?;
        let known = Identity { blocks: self.size() / u64::from(self.block_size), ..self.guard.identity.clone() };
        if let Some(difference) = known.differs(&identity) {
            self.within(self.guard.shared.doubt(self.guard.number)).await?;
            return Err(Error::OtherDisk { lun: self.lun(), difference });
        }
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = info.clone();
        Ok(info)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let grown = self.guard.shared.grown.load(Ordering::Acquire);
        if self.guard.grown.swap(grown, Ordering::Relaxed) != grown
            && let Some(blocks) = self.guard.shared.grown_to(self.guard.number)
        {
            let mut info = self.info.write().unwrap_or_else(PoisonError::into_inner);
            info.blocks = info.blocks.max(blocks);
        }
        self.info.read().unwrap_or_else(PoisonError::into_inner).size()
    }

    /// Logical block length in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The blocks of a range: first block and their number.
    fn blocks(&self, offset: u64, len: u64) -> Result<(u64, u64), Error> {
        let (size, block) = (self.size(), u64::from(self.block_size));
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        if whole && offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok((offset / block, len / block));
        }
        Err(Error::Range { offset, len, size, block_size: self.block_size })
    }

    /// Makes durable what was written before (SYNCHRONIZE CACHE). One that fails is remembered: on most systems the
    /// data that it was to make durable are gone then, and the next flush would be good without them.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`Error::LostWrites`] where a flush before has failed, and not all of what it covered was
    /// written anew since.
    pub async fn flush(&self) -> Result<(), Error> {
        let result = self.within(self.run(self.guarded(BlockIo::new(0, 0).synchronize_cache()), None)).await;
        let has_no_cache = || self.info.read().unwrap_or_else(PoisonError::into_inner).write_cache == Some(false);
        match result {
            // A disk without a volatile cache need not know the command: there is nothing to be done.
            Err(Error::Scsi { outcome, .. })
                if outcome.sense.is_some_and(|sense| sense.code == AdditionalSense::INVALID_COMMAND_OPERATION_CODE)
                    && has_no_cache() =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Gives the blocks' space back (UNMAP, or WRITE SAME with the UNMAP bit).
    ///
    /// # Errors
    /// As [`Disk::read`]; [`Error::Unsupported`] on a disk that cannot.
    pub async fn unmap(&self, offset: u64, len: u64) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, len)?;
        self.within(self.unmap_blocks(lba, blocks)).await
    }

    async fn unmap_blocks(&self, mut lba: u64, mut blocks: u64) -> Result<(), Error> {
        let (by_unmap, by_write_same, most) = {
            let info = self.info.read().unwrap_or_else(PoisonError::into_inner);
            (info.unmap, info.write_same_unmap, info.max_unmap_blocks)
        };
        if !by_unmap && by_write_same {
            let block = vec![0; self.block_size as usize];
            return self.same(lba, blocks, &block, true).await;
        }
        if !by_unmap {
            return Err(Error::Unsupported("giving blocks back: it is not thin provisioned"));
        }
        let most = if most == 0 { MOST_UNMAP_BLOCKS } else { most };
        while blocks > 0 {
            let now = blocks.min(most.into()) as u32;
            let list = provisioning::unmap_list(&[provisioning::Extent { lba, blocks: now }]);
            let cdb = Unmap { anchor: false, parameter_list_length: list.len() as u16 }.to_cdb();
            let command = Command { blocks: Some(lba..lba + u64::from(now)), ..self.guarded(cdb) };
            self.run(command, Some(&list)).await?;
            lba += u64::from(now);
            blocks -= u64::from(now);
        }
        Ok(())
    }

    /// Writes one block's content over a range (WRITE SAME(16)).
    ///
    /// # Errors
    /// As [`Disk::read`]; [`Error::Range`] if `block` is not one block.
    pub async fn write_same(&self, offset: u64, len: u64, block: &[u8]) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, len)?;
        if block.len() != self.block_size as usize {
            return Err(Error::Range {
                offset,
                len: block.len() as u64,
                size: self.size(),
                block_size: self.block_size,
            });
        }
        self.within(self.same(lba, blocks, block, false)).await
    }

    /// Writes zeros over a range, without sending them (WRITE SAME(16)). Where the disk gives space back by it and
    /// reads zeros after that (LBPWS and LBPRZ), it gives the blocks' space back; they read as zeros whether it
    /// does or not (SBC-4 5.49).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, len)?;
        let unmap = {
            let info = self.info.read().unwrap_or_else(PoisonError::into_inner);
            info.write_same_unmap && info.unmapped_reads_zero
        };
        let block = vec![0; self.block_size as usize];
        self.within(self.same(lba, blocks, &block, unmap)).await
    }

    async fn same(&self, mut lba: u64, mut blocks: u64, block: &[u8], unmap: bool) -> Result<(), Error> {
        let most = self.info.read().unwrap_or_else(PoisonError::into_inner).max_write_same_blocks;
        let most = if most == 0 { u64::from(MOST_UNMAP_BLOCKS) } else { most.min(u32::MAX.into()) };
        while blocks > 0 {
            let now = blocks.min(most) as u32;
            let io = BlockIo::new(lba, now).with_flags(if unmap { 0x08 } else { 0 });
            let cdb = io.to_cdb(opcode::WRITE_SAME_16).ok_or(Error::Unsupported("WRITE SAME(16)"))?;
            self.run(self.guarded(cdb), Some(block)).await?;
            lba += u64::from(now);
            blocks -= u64::from(now);
        }
        Ok(())
    }

    /// Writes `new` if the blocks hold `expected`, in one step (COMPARE AND WRITE).
    ///
    /// # Errors
    /// [`Error::Miscompare`]; else as [`Disk::read`]. After a lost connection the outcome is unknown, and
    /// [`Error::Command`] says so.
    pub async fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, new.len() as u64)?;
        let most = self.info.read().unwrap_or_else(PoisonError::into_inner).max_compare_and_write_blocks;
        if expected.len() != new.len() || blocks == 0 {
            let len = expected.len() as u64;
            return Err(Error::Range { offset, len, size: self.size(), block_size: self.block_size });
        }
        if blocks > most.into() {
            return Err(Error::Unsupported("COMPARE AND WRITE over so many blocks"));
        }
        let cdb = BlockIo::new(lba, blocks as u32)
            .to_cdb(opcode::COMPARE_AND_WRITE)
            .ok_or(Error::Unsupported("COMPARE AND WRITE over so many blocks"))?;
        let both = [expected, new].concat();
        match self.within(self.run(self.guarded(cdb), Some(&both))).await {
            Err(Error::Scsi { outcome, .. })
                if outcome.sense.is_some_and(|sense| sense.key == SenseKey::Miscompare) =>
            {
                // SBC-4 5.3: INFORMATION holds the offset of the first difference.
                Err(Error::Miscompare(outcome.sense.and_then(|sense| sense.information).unwrap_or(0)))
            }
            result => result,
        }
    }

    /// The run of blocks of one provisioning status that begins at `offset` (GET LBA STATUS).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn lba_status(&self, offset: u64) -> Result<Extent, Error> {
        let block = u64::from(self.block_size);
        let (lba, _) = self.blocks(offset, block)?;
        let cdb = GetLbaStatus { lba, allocation_length: 24, report_type: 0 }.to_cdb();
        let mut command = self.guarded(cdb);
        command.data_in = Some(Payload::Buf(self.session.shared().take_buf(24)));
        let ask = async {
            let completion = self.perform(command).await?;
            let answer = self.session.good(&cdb, self.lun, &completion).map(|()| received(&completion).to_vec());
            self.session.shared().give_back(completion);
            answer
        };
        let answer = self.within(ask).await.map_err(|error| self.explain(error))?;
        let bad = |source: Cause| Error::BadAnswer { command: "GET LBA STATUS", source };
        let runs = provisioning::parse_lba_status_data(&answer).map_err(|error| bad(Arc::new(error)))?;
        let run = runs
            .iter()
            .find(|run| run.extent.lba <= lba && lba - run.extent.lba < run.extent.blocks.into())
            .ok_or_else(|| bad(words("it does not tell of the block that was asked for")))?;
        let blocks = u64::from(run.extent.blocks) - (lba - run.extent.lba);
        let mapped = !matches!(run.provisioning, Provisioning::Deallocated | Provisioning::Anchored);
        Ok(Extent { offset, len: blocks.saturating_mul(block).min(self.size() - offset), mapped })
    }

    /// Has a command done, and what the disk has lost before it written anew, where that is kept.
    async fn perform(&self, command: Command) -> Result<Completion, Error> {
        match &self.replay {
            None => Ok(self.session.execute(command).await),
            Some(replay) => replay.perform(self, command).await,
        }
    }

    /// A command of this disk with data for the target, or none.
    async fn run(&self, mut command: Command, data: Option<&[u8]>) -> Result<(), Error> {
        if let Some(data) = data {
            let mut buf: Buf = self.session.shared().take_buf(data.len());
            buf.copy_from_slice(data);
            command.data_out = Some(Payload::Buf(buf));
        }
        let cdb = command.cdb;
        let completion = self.perform(command).await?;
        let result = self.session.good(&cdb, self.lun, &completion);
        self.session.shared().give_back(completion);
        result.map_err(|error| self.explain(error))
    }
}

fn known(lun: Lun, info: &DiskInfo, identity: Identity) -> KnownDisk {
    // A disk that does not tell may have a volatile cache.
    KnownDisk { lun, identity, volatile: info.write_cache.unwrap_or(true) }
}
