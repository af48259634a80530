//! The bytes at rest behind one small trait.

mod sim_disk;

pub use sim_disk::{Fault, SimDisk};

use std::io;

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

    /// Cut the file off. Durable only after the next [`Storage::sync`] that succeeds.
    ///
    /// # Errors
    /// The medium's.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Give back the space of whole blocks; from now on they read as zeros. Durable only after the next [`Storage::sync`] that succeeds.
    /// `false` if this medium cannot.
    ///
    /// # Errors
    /// The medium's; then some of it may be given back.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let _ = (offset, len);
        Ok(false)
    }

    /// Read this range from the medium next time, whatever is remembered of it.
    fn forget(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// This range was written and will be synced in a moment: the medium may begin.
    fn will_sync(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// This range will be read in a moment: the medium may begin.
    fn will_read(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

impl<T: Storage> Storage for std::sync::Arc<T> {
    fn len(&self) -> io::Result<u64> {
        T::len(self)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        T::read_exact_at(self, offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        T::write_all_at(self, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        T::sync(self)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        T::allocate(self, offset, len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        T::truncate(self, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        T::punch(self, offset, len)
    }

    fn forget(&self, offset: u64, len: u64) {
        T::forget(self, offset, len);
    }

    fn will_sync(&self, offset: u64, len: u64) {
        T::will_sync(self, offset, len);
    }

    fn will_read(&self, offset: u64, len: u64) {
        T::will_read(self, offset, len);
    }
}

/// What every [`Storage`] must do; run against the fake and against a real file in `io/file.rs`.
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
    storage.forget(0, 10_000);
    storage.read_exact_at(4090, &mut buffer).unwrap();
    assert_eq!(&buffer, b"0123456789", "what was synced is on the medium");
    storage.write_all_at(20_000, b"x").unwrap();
    assert_eq!(storage.len().unwrap(), 20_001, "a write extends the file");
    storage.allocate(0, 100).unwrap();
    assert_eq!(storage.len().unwrap(), 20_001, "allocating never shrinks");
    if storage.punch(4096, 8192).unwrap() {
        storage.read_exact_at(4090, &mut buffer).unwrap();
        assert_eq!(&buffer, b"012345\0\0\0\0", "what was given back reads as zero, and nothing else does");
        assert_eq!(storage.len().unwrap(), 20_001, "giving space back keeps the length");
        storage.write_all_at(4090, b"0123456789").unwrap();
    }
    storage.truncate(4095).unwrap();
    assert_eq!(storage.len().unwrap(), 4095);
    storage.allocate(0, 10_000).unwrap();
    storage.read_exact_at(4090, &mut buffer).unwrap();
    assert_eq!(&buffer, b"01234\0\0\0\0\0", "what was cut off does not come back");
}
