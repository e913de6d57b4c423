//! Files and block devices as the ends of a copy: opened with care, with their holes.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use examples::ending::{Ending, failed, no_file, usage};
use iscsi_memory::Buf;
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom as Place, fadvise, fallocate, major, minor, seek};
use rustix::io::Errno;

/// An open file and its name.
#[derive(Debug, Clone)]
pub(super) struct NamedFile {
    file: Arc<File>,
    name: String,
    is_device: bool,
    /// It was made for this copy.
    is_new: bool,
}

/// A piece that was read.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Buf),
    /// So many bytes of zeroes, which nobody had to read.
    Hole(usize),
}

/// The first bytes of a qcow2 image, in QEMU's docs/interop/qcow2.txt.
const QCOW: &[u8; 4] = b"QFI\xfb";

/// Refuses an image that holds a disk in another form than block by block.
pub(super) fn refuse_images(name: &str, first: &[u8], raw: bool) -> Result<(), Ending> {
    if raw || !first.starts_with(QCOW) {
        return Ok(());
    }
    Err(failed(format!(
        "{name} is a qcow2 image, not the disk that is in it: convert it first with `qemu-img convert -O raw`, or copy \
         the image itself with --raw"
    )))
}

fn sizeless(name: &str, what: &str) -> Ending {
    failed(format!("{name} has no size, so {what}: give a regular file, a block device, a URL, or - for a pipe"))
}

fn has_size(metadata: &Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

/// An error of a file that has lost what was to be read.
fn shrunk() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter while it was read")
}

/// A file goes at least so far.
fn reaches(mut file: &File, end: u64) -> io::Result<()> {
    if file.seek(SeekFrom::End(0))? < end { Err(shrunk()) } else { Ok(()) }
}

/// Whether a block device can only be read. It may be opened for writing all the same, and each write fails.
fn is_read_only(device: &File) -> io::Result<bool> {
    let number = device.metadata()?.rdev();
    // Where the system does not tell, the first write does.
    let told = std::fs::read_to_string(format!("/sys/dev/block/{}:{}/ro", major(number), minor(number)));
    Ok(told.is_ok_and(|told| told.trim() == "1"))
}

impl NamedFile {
    /// Opens a source, and says how long it is.
    pub(super) fn source(name: &str, raw: bool) -> Result<(Self, u64), Ending> {
        let fail = |error| no_file(name, &error);
        // Before it is opened: that would wait for the other end of a named pipe.
        if !has_size(&std::fs::metadata(name).map_err(fail)?) {
            return Err(sizeless(name, "it cannot be copied"));
        }
        let mut file = File::open(name).map_err(fail)?;
        let mut first = [0; 4];
        let n = file.read(&mut first).map_err(fail)?;
        refuse_images(name, &first[..n], raw)?;
        let is_device = file.metadata().map_err(fail)?.file_type().is_block_device();
        // A block device says its size only by seeking.
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok((Self { file: Arc::new(file), name: name.to_owned(), is_device, is_new: false }, size))
    }

    /// Opens a destination, and says how much it holds, if that is fixed. Nothing is written to it yet.
    pub(super) fn destination(name: &str) -> Result<(Self, Option<u64>), Ending> {
        let fail = |error| no_file(name, &error);
        let metadata = match std::fs::metadata(name) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(usage(format!("{name} is a directory: name the file in it that is to be written")));
            }
            Ok(metadata) if !has_size(&metadata) => return Err(sizeless(name, "nothing can be copied to it")),
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        let is_new = metadata.is_none();
        // Read as well: what was written may be compared.
        let mut options = File::options();
        options.read(true).write(true);
        let is_device = metadata.is_some_and(|metadata| metadata.file_type().is_block_device());
        let opened = if is_device {
            // The kernel refuses a device that is mounted, or that another program has for itself (open(2)).
            options.custom_flags(OFlags::EXCL.bits().cast_signed()).open(name)
        } else {
            options.create(true).truncate(false).open(name)
        };
        let mut file = opened.map_err(fail)?;
        if is_device && is_read_only(&file).map_err(fail)? {
            return Err(no_file(name, &io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let holds = if is_device { Some(file.seek(SeekFrom::End(0)).map_err(fail)?) } else { None };
        Ok((Self { file: Arc::new(file), name: name.to_owned(), is_device, is_new }, holds))
    }

    /// Whether both are one file, or one block device, which may have several names.
    pub(super) fn is(&self, other: &Self) -> bool {
        let place = |file: &Self| {
            let metadata = file.file.metadata().ok()?;
            Some(if file.is_device { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
        };
        place(self).is_some() && place(self) == place(other)
    }

    /// A regular file gets this length.
    pub(super) fn set_len(&self, size: u64) -> Result<(), Ending> {
        if self.is_device { Ok(()) } else { self.file.set_len(size).map_err(|error| no_file(&self.name, &error)) }
    }

    /// Work that blocks goes on beside the session's thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Ending> {
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || work(&file)).await.map_err(failed)?;
        done.map_err(|error| no_file(&self.name, &error))
    }

    pub(super) async fn read(&self, offset: u64, mut buf: Buf) -> Result<Piece, Ending> {
        self.run(move |file| {
            // Where the file system does not tell holes, there are none.
            let data = match seek(file, Place::Data(offset)) {
                Ok(data) => data,
                // No data up to the end: a hole, unless the end has come nearer since the file was opened.
                Err(Errno::NXIO) => {
                    reaches(file, offset + buf.len() as u64)?;
                    u64::MAX
                }
                Err(_) => offset,
            };
            if data >= offset + buf.len() as u64 {
                return Ok(Piece::Hole(buf.len()));
            }
            match file.read_exact_at(&mut buf, offset) {
                Ok(()) => Ok(Piece::Data(buf)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(shrunk()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Writes a part of a buffer, and gives the buffer back.
    pub(super) async fn write(&self, offset: u64, buf: Buf, part: std::ops::Range<usize>) -> Result<Buf, Ending> {
        self.run(move |file| file.write_all_at(&buf[part], offset).map(|()| buf)).await
    }

    /// Writes zeroes, as a hole where the file system makes one.
    pub(super) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Ending> {
        self.run(move |file| {
            loop {
                match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            let zeroes = vec![0; len.min(1 << 20) as usize];
            let end = offset + len;
            let mut at = offset;
            while at < end {
                let some = (end - at).min(zeroes.len() as u64);
                file.write_all_at(&zeroes[..some as usize], at)?;
                at += some;
            }
            Ok(())
        })
        .await
    }

    /// Makes durable what was written, and the name of a new file.
    pub(super) async fn flush(&self) -> Result<(), Ending> {
        let directory = Path::new(&self.name).parent().filter(|path| !path.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_path_buf();
        let is_new = self.is_new;
        self.run(move |file| {
            file.sync_all()?;
            // What is read to be compared is to come from the medium. This is advice: nothing depends on it.
            let _ = fadvise(file, 0, None, Advice::DontNeed);
            if is_new {
                File::open(&directory)?.sync_all()?;
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_become_shorter_has_no_hole_where_it_had_data() {
        let name = std::env::temp_dir().join(format!("copy-shrunk-{}", std::process::id()));
        std::fs::write(&name, [7; 8192]).unwrap();
        let (source, size) = NamedFile::source(name.to_str().unwrap(), false).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |offset| runtime.block_on(source.read(offset, Buf::zeroed(4096)));
        File::options().write(true).open(&name).unwrap().set_len(8192 + 4096).unwrap();
        assert!(matches!(read(8192), Ok(Piece::Hole(4096))), "one that has grown has one");
        File::options().write(true).open(&name).unwrap().set_len(2048).unwrap();
        let told = [0, 4096].map(|offset| read(offset).unwrap_err().to_string());
        std::fs::remove_file(&name).unwrap();
        assert_eq!(size, 8192);
        assert!(told.iter().all(|told| told.contains("it has become shorter while it was read")), "{told:?}");
    }

    #[test]
    fn images_are_known_by_their_first_bytes() {
        let told = refuse_images("a.img", b"QFI\xfb\0\0\0\x03", false).unwrap_err().to_string();
        assert!(told.contains("qemu-img convert -O raw"), "{told}");
        assert!(refuse_images("a.img", b"QFI\xfb", true).is_ok());
        assert!(refuse_images("a.img", b"QFI", false).is_ok() && refuse_images("a.img", b"", false).is_ok());
    }
}
