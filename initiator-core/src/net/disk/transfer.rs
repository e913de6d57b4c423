//! Reads and writes.

use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use iscsi_memory::{Buf, Payload};

use scsi_proto::{BlockIo, CdbBuf};

use super::super::session::{into_buf, short_error};
use super::Disk;
use crate::command::{Command, Short};
use crate::error::Error;

/// Commands under way at a time for one operation that is longer than a command may be.
const SIDE_BY_SIDE: usize = 8;

impl Disk {
    /// Reads whole blocks.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Scsi`], [`Error::Command`], or the session's end; the content of `data` is then
    /// unspecified.
    pub async fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, data.len() as u64)?;
        self.within(self.read_blocks(lba, blocks, data)).await
    }

    async fn read_blocks(&self, lba: u64, blocks: u64, data: &mut [u8]) -> Result<(), Error> {
        if blocks <= self.most_blocks.into() {
            return self.read_piece(lba, data).await;
        }
        let (step, most) = (u64::from(self.most_blocks), self.most_blocks as usize * self.block_size as usize);
        let mut running = FuturesUnordered::new();
        for (i, piece) in (0u64..).zip(data.chunks_mut(most)) {
            if running.len() == SIDE_BY_SIDE {
                running.next().await.transpose()?;
            }
            running.push(self.read_piece(lba + i * step, piece));
        }
        running.try_collect().await
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// As [`Disk::read`]; the blocks then hold old data, new data, or some of each.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let (lba, blocks) = self.blocks(offset, data.len() as u64)?;
        self.within(self.write_blocks(lba, blocks, data)).await
    }

    async fn write_blocks(&self, lba: u64, blocks: u64, data: &[u8]) -> Result<(), Error> {
        if blocks <= self.most_blocks.into() {
            return self.write_piece(lba, data).await;
        }
        let (step, most) = (u64::from(self.most_blocks), self.most_blocks as usize * self.block_size as usize);
        let (mut running, mut result) = (FuturesUnordered::new(), Ok(()));
        for (i, piece) in (0u64..).zip(data.chunks(most)) {
            if running.len() == SIDE_BY_SIDE {
                let ended = running.next().await;
                result = result.and(ended.unwrap_or(Ok(())));
                if result.is_err() {
                    break;
                }
            }
            running.push(self.write_piece(lba + i * step, piece));
        }
        // Nothing of a write that has ended, be it with an error, is under way.
        while let Some(ended) = running.next().await {
            result = result.and(ended);
        }
        result
    }

    /// Reads into an own buffer, which comes back with the result, be it an error; nothing is copied if one command can
    /// hold it. The buffer of a future that is dropped, or whose time limit passes, goes to the session's pool once the
    /// target is done with it, where [`Disk::buf`] finds it; an empty one comes back with [`Error::TimedOut`], and
    /// where the session's runtime goes away.
    ///
    /// ```no_run
    /// # async fn example(disk: initiator_core::Disk) -> Result<(), initiator_core::Error> {
    /// let buf = disk.buf(4096);
    /// let (buf, result) = disk.read_buf(0, buf).await;
    /// result?;
    /// disk.give(buf);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn read_buf(&self, offset: u64, mut buf: Buf) -> (Buf, Result<(), Error>) {
        match self.blocks(offset, buf.len() as u64) {
            Err(error) => (buf, Err(error)),
            Ok((lba, blocks)) if (1..=u64::from(self.most_blocks)).contains(&blocks) => {
                self.within_buf(self.read_whole(lba, buf)).await
            }
            Ok(_) => {
                let result = self.read(offset, &mut buf).await;
                (buf, result)
            }
        }
    }

    /// Writes from an own buffer, which comes back; as [`Disk::read_buf`].
    pub async fn write_buf(&self, offset: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        match self.blocks(offset, buf.len() as u64) {
            Err(error) => (buf, Err(error)),
            Ok((lba, blocks)) if (1..=u64::from(self.most_blocks)).contains(&blocks) => {
                self.within_buf(self.write_whole(lba, buf)).await
            }
            Ok(_) => {
                let result = self.write(offset, &buf).await;
                (buf, result)
            }
        }
    }

    /// A buffer out of the session's pool, where those of dropped operations come back to. Its content is unspecified.
    #[must_use]
    pub fn buf(&self, len: usize) -> Buf {
        self.session.shared().take_buf(len)
    }

    /// Gives a buffer to the session's pool, which keeps as many bytes as
    /// [`Limits::pool_bytes`](crate::Limits::pool_bytes) says.
    pub fn give(&self, buf: Buf) {
        self.session.shared().give_buf(buf);
    }

    async fn read_piece(&self, lba: u64, data: &mut [u8]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let buf = self.session.shared().take_buf(data.len());
        let (buf, result) = self.read_whole(lba, buf).await;
        if result.is_ok() {
            data.copy_from_slice(&buf);
        }
        self.session.shared().give_buf(buf);
        result
    }

    async fn write_piece(&self, lba: u64, data: &[u8]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let mut buf = self.session.shared().take_buf(data.len());
        buf.copy_from_slice(data);
        let (buf, result) = self.write_whole(lba, buf).await;
        self.session.shared().give_buf(buf);
        result
    }

    fn io(&self, lba: u64, len: usize) -> BlockIo {
        BlockIo::new(lba, (len / self.block_size as usize) as u32)
    }

    async fn read_whole(&self, lba: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        let cdb = self.io(lba, buf.len()).read();
        let mut command = self.guarded(cdb);
        command.data_in = Some(Payload::Buf(buf));
        self.finish(cdb, command).await
    }

    async fn write_whole(&self, lba: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        let cdb = self.io(lba, buf.len()).write();
        let mut command = self.guarded(cdb);
        command.data_out = Some(Payload::Buf(buf));
        match self.finish(cdb, command).await {
            (buf, Err(Error::Short { short, .. })) => self.write_rest(lba, buf, short).await,
            other => other,
        }
    }

    /// The target took less of a write than its GOOD says: the blocks that it did not take whole are written anew, as
    /// long as it takes any.
    async fn write_rest(&self, lba: u64, buf: Buf, mut short: Short) -> (Buf, Result<(), Error>) {
        let block = self.block_size as usize;
        let (mut done, mut cdb) = (0, self.io(lba, buf.len()).write());
        loop {
            let taken = short.moved as usize / block * block;
            let rest = buf.get(done + taken..).unwrap_or_default();
            if taken == 0 || rest.is_empty() {
                short = Short { moved: (done + taken) as u32, of: buf.len() };
                return (buf, Err(short_error(&cdb, self.lun, short)));
            }
            done += taken;
            cdb = self.io(lba + (done / block) as u64, rest.len()).write();
            let mut piece = self.session.shared().take_buf(rest.len());
            piece.copy_from_slice(rest);
            let mut command = self.guarded(cdb);
            command.data_out = Some(Payload::Buf(piece));
            let (piece, result) = self.finish(cdb, command).await;
            self.session.shared().give_buf(piece);
            match result {
                Err(Error::Short { short: again, .. }) => short = again,
                result => return (buf, result),
            }
        }
    }

    async fn finish(&self, cdb: CdbBuf, command: Command) -> (Buf, Result<(), Error>) {
        let completion = match self.perform(command).await {
            Ok(completion) => completion,
            Err(error) => return (Buf::zeroed(0), Err(error)),
        };
        let mut result = self.session.good(&cdb, self.lun, &completion).map_err(|error| self.explain(error));
        // GOOD with fewer bytes than the blocks hold would leave old bytes in the buffer for data.
        if let Some(short) = completion.short_in()
            && result.is_ok()
        {
            result = Err(short_error(&cdb, self.lun, short));
        }
        (into_buf(completion).unwrap_or_else(|| Buf::zeroed(0)), result)
    }
}
