//! The stash file on a real file system.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock, fstatfs};

use crate::limits::{FILE_HEADER_SLOTS, RECORD_ALIGN, SLOT_LEN};
use crate::storage::Storage;

/// A file that this process alone has open as a stash.
pub struct FileStorage {
    file: File,
    /// Whether holes of single blocks give their space back.
    can_punch: bool,
}

/// File systems on which they do not: btrfs keeps an extent as long as any part of it is used (`linux/magic.h`).
const KEEPS_EXTENTS: &[i64] = &[0x9123_683e];

impl FileStorage {
    /// Open or create.
    ///
    /// # Errors
    /// The file system's; `WouldBlock` if another process serves this stash.
    pub fn open(path: &Path, create: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(create).mode(0o600).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let about = fstatfs(&file)?;
        let can_punch = about.f_bsize as u64 <= RECORD_ALIGN && !KEEPS_EXTENTS.contains(&(about.f_type as i64));
        Ok(Self { file, can_punch })
    }
}

impl FileStorage {
    /// Whether there is a file that gives what says whose it is; it stays as it is.
    ///
    /// # Errors
    /// Why not.
    pub fn look(path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let mut reads = FILE_HEADER_SLOTS.map(|at| file.read_exact_at(&mut [0; SLOT_LEN as usize], at)).into_iter();
        let first = reads.next().expect("four slots");
        if first.is_err() && reads.any(|read| read.is_ok()) { Ok(()) } else { first }
    }

    /// Whether a new file has its space. Some file systems cannot reserve any, and make up how many blocks a file has (sshfs); others reserve
    /// nothing and say that they did, and their blocks tell (SMB).
    #[must_use]
    pub fn is_reserved(path: &Path) -> bool {
        let file = OpenOptions::new().write(true).open(path);
        // What is there already is reserved once more, which changes nothing.
        let can = file.is_ok_and(|file| fallocate(&file, FallocateFlags::empty(), 0, SLOT_LEN).is_ok());
        // All or almost nothing of it: no need to know how a file system counts its own blocks.
        can && std::fs::metadata(path).is_ok_and(|about| about.blocks() * 512 >= about.len() / 2)
    }

    /// Whether others on this machine may open a file, as far as its own mode says: not every file system keeps that.
    #[must_use]
    pub fn is_open_to_others(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|about| about.mode() & 0o066 != 0)
    }

    /// Whether this is the file that lies there.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let identity = |about: Metadata| (about.dev(), about.ino());
        let lies = std::fs::metadata(path).ok().map(identity);
        lies.is_some() && lies == self.file.metadata().ok().map(identity)
    }

    /// Whether the medium gives any of the blocks that say whose file it is.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        FILE_HEADER_SLOTS.into_iter().any(|at| {
            self.forget(at, SLOT_LEN);
            self.read_exact_at(at, &mut [0; SLOT_LEN as usize]).is_ok()
        })
    }
}

/// Leave it out of dumps, and of copies on write where a file system makes them: what is rewritten in place must not need new space.
/// File systems that know neither do without.
pub fn hide(path: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let Ok(file) = File::open(path) else { return };
    if let Ok(flags) = ioctl_getflags(&file) {
        let _ = ioctl_setflags(&file, flags | IFlags::NODUMP | IFlags::NOCOW)
            .or_else(|_| ioctl_setflags(&file, flags | IFlags::NODUMP));
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            // Some network file systems cannot reserve; the file still has to have its length.
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(self.file.metadata()?.len().max(offset + len)),
            result => Ok(result?),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        if !self.can_punch {
            return Ok(false);
        }
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    fn forget(&self, offset: u64, len: u64) {
        // Where that is not possible, what is remembered is at least what was written.
        let _ = fadvise(&self.file, offset, std::num::NonZeroU64::new(len), Advice::DontNeed);
    }

    fn will_read(&self, offset: u64, len: u64) {
        let _ = fadvise(&self.file, offset, std::num::NonZeroU64::new(len), Advice::WillNeed);
    }

    fn will_sync(&self, offset: u64, len: u64) {
        // Linux begins to write what is dirty in the range, and drops what is clean (mm/fadvise.c).
        let _ = fadvise(&self.file, offset, std::num::NonZeroU64::new(len), Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_contract_and_is_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stash");
        let storage = FileStorage::open(&path, true).unwrap();
        crate::storage::contract(&storage);
        storage.allocate(0, 1 << 20).unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        if storage.punch(65_536, 131_072).unwrap() {
            assert!(blocks() < before, "the file system has its blocks again");
        }
        let second = FileStorage::open(&path, false).err().expect("a second opener is refused");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }
}
