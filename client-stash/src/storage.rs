//! The bytes at rest behind one small trait, and a fake disk that keeps written and durable bytes apart.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

/// A file, as far as the store needs one.
pub trait Storage: Send + Sync + 'static {
    /// Length in bytes.
    ///
    /// # Errors
    /// The medium's.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// The medium's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fill `buffer` from `offset`.
    ///
    /// # Errors
    /// The medium's, or `UnexpectedEof` beyond the end.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Write all of `bytes` at `offset`. Durable only after the next [`Storage::sync`] that succeeds.
    ///
    /// # Errors
    /// The medium's.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Make everything written durable.
    ///
    /// # Errors
    /// After an error, what was written since the last sync may or may not be there, now or later.
    fn sync(&self) -> io::Result<()>;

    /// Reserve a range, extending the file: later writes to it do not fail for want of space.
    ///
    /// # Errors
    /// `StorageFull`, or the medium's.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Read this range from the medium next time, whatever is remembered of it.
    fn forget(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

/// A disk in memory. Writes reach the medium at a sync, or, at a crash, in part and torn at 512 bytes.
#[derive(Default)]
pub struct SimDisk(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    durable: BTreeMap<u64, Box<[u8; PAGE]>>,
    written: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// (offset, bytes) since the last sync, in order.
    unsynced: Vec<(u64, Vec<u8>)>,
    len: u64,
    fail_syncs: u32,
}

const PAGE: usize = 4096;
const TEAR: usize = 512;

type Pages = BTreeMap<u64, Box<[u8; PAGE]>>;

fn write_pages(pages: &mut Pages, mut offset: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let within = (offset % PAGE as u64) as usize;
        let (now, later) = bytes.split_at(bytes.len().min(PAGE - within));
        let page = pages.entry(offset / PAGE as u64).or_insert_with(|| Box::new([0; PAGE]));
        page[within..within + now.len()].copy_from_slice(now);
        offset += now.len() as u64;
        bytes = later;
    }
}

impl SimDisk {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lose power: of what was not synced, `keep` decides for each 512-byte sector whether it reached the medium.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut inner = self.inner();
        for (offset, bytes) in std::mem::take(&mut inner.unsynced) {
            for (i, sector) in bytes.chunks(TEAR).enumerate() {
                if keep() {
                    write_pages(&mut inner.durable, offset + (i * TEAR) as u64, sector);
                }
            }
        }
        inner.written = inner.durable.clone();
    }

    /// Let the next `count` syncs fail; what they should have saved is lost.
    pub fn fail_syncs(&self, count: u32) {
        self.inner().fail_syncs = count;
    }

    /// Flip bits on the medium, as rot does.
    pub fn rot(&self, offset: u64, mask: u8) {
        let mut byte = [0];
        self.read_exact_at(offset, &mut byte).expect("rot within the disk");
        let mut inner = self.inner();
        write_pages(&mut inner.durable, offset, &[byte[0] ^ mask]);
        write_pages(&mut inner.written, offset, &[byte[0] ^ mask]);
    }
}

impl Storage for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().len)
    }

    fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.inner();
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > inner.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buffer.is_empty() {
            let within = (offset % PAGE as u64) as usize;
            let len = buffer.len().min(PAGE - within);
            let (now, later) = buffer.split_at_mut(len);
            match inner.written.get(&(offset / PAGE as u64)) {
                Some(page) => now.copy_from_slice(&page[within..within + len]),
                None => now.fill(0),
            }
            offset += len as u64;
            buffer = later;
        }
        Ok(())
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        inner.len = inner.len.max(offset + bytes.len() as u64);
        write_pages(&mut inner.written, offset, bytes);
        inner.unsynced.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let writes = std::mem::take(&mut inner.unsynced);
        if inner.fail_syncs > 0 {
            inner.fail_syncs -= 1;
            return Err(io::Error::other("simulated sync failure"));
        }
        for (offset, bytes) in writes {
            write_pages(&mut inner.durable, offset, &bytes);
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.len = inner.len.max(offset + len);
        Ok(())
    }
}

/// What every [`Storage`] must do; run against the fake here and against a real file in `io/file.rs`.
#[cfg(test)]
pub(crate) fn contract(storage: &impl Storage) {
    storage.allocate(0, 10_000).unwrap();
    assert_eq!(storage.len().unwrap(), 10_000);
    let mut buffer = [1; 10];
    storage.read_exact_at(9_990, &mut buffer).unwrap();
    assert_eq!(buffer, [0; 10], "allocated bytes read as zero");
    assert!(storage.read_exact_at(9_991, &mut buffer).is_err(), "reads beyond the end fail");
    storage.write_all_at(4090, b"0123456789").unwrap();
    storage.read_exact_at(4090, &mut buffer).unwrap();
    assert_eq!(&buffer, b"0123456789", "a write is seen at once");
    storage.sync().unwrap();
    storage.write_all_at(20_000, b"x").unwrap();
    assert_eq!(storage.len().unwrap(), 20_001, "a write extends the file");
    storage.allocate(0, 100).unwrap();
    assert_eq!(storage.len().unwrap(), 20_001, "allocating never shrinks");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_disk_keeps_the_contract() {
        contract(&SimDisk::default());
    }

    #[test]
    fn only_synced_bytes_survive_a_crash() {
        let disk = SimDisk::default();
        disk.write_all_at(0, &[1; 1024]).unwrap();
        disk.sync().unwrap();
        disk.write_all_at(0, &[2; 1024]).unwrap();
        let mut sectors = [true, false].into_iter();
        disk.crash(|| sectors.next().unwrap());
        let mut after = [0; 1024];
        disk.read_exact_at(0, &mut after).unwrap();
        assert_eq!((after[0], after[511], after[512], after[1023]), (2, 2, 1, 1), "torn at 512 bytes");
    }
}
