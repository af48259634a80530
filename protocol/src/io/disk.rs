//! Disks and disk images on this machine: reading them without reading their holes.

use std::fs::File;
use std::io::{self, Seek as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use images::disk::ReadAt;
use images::limits::{BLOCK_LEN, SPAN_LEN};
use images::span::{Span, span_of};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// A file or a block device, open for reading.
pub struct DiskFile {
    file: File,
    len: u64,
}

impl DiskFile {
    /// Open.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// Use an open file.
    ///
    /// # Errors
    /// The file system's.
    pub fn from_file(mut file: File) -> io::Result<Self> {
        // Of a block device, metadata tells nothing; its end does.
        let len = file.seek(io::SeekFrom::End(0))?;
        Ok(Self { file, len })
    }

    /// The next range that may hold data, at or behind `from`, on block boundaries. Where holes are unknown, as on a block device,
    /// that is everything.
    ///
    /// # Errors
    /// The file system's.
    pub fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        if from >= self.len {
            return Ok(None);
        }
        let block = BLOCK_LEN as u64;
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(at) => at / block * block,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..self.len)),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start.max(from)))?;
        Ok(Some(start.max(from)..end.next_multiple_of(block).min(self.len)))
    }

    /// Whether a range lies wholly in holes.
    fn is_hole(&self, range: &Range<u64>) -> io::Result<bool> {
        Ok(self.next_data(range.start)?.is_none_or(|data| data.start >= range.end))
    }

    /// Spans `which` that are not all zero, read on all cores. `done` counts bytes looked at.
    ///
    /// # Errors
    /// The medium's.
    ///
    /// # Panics
    /// If hashing panics, which would be a bug.
    pub fn spans(&self, which: Range<u64>, done: &AtomicU64) -> io::Result<Vec<Span>> {
        let next = AtomicU64::new(which.start);
        let worker = || -> io::Result<Vec<Span>> {
            let mut found = Vec::new();
            let mut buffer = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= which.end {
                    return Ok(found);
                }
                let range = index * SPAN_LEN..((index + 1) * SPAN_LEN).min(self.len);
                if !self.is_hole(&range)? {
                    buffer.resize((range.end - range.start) as usize, 0);
                    self.file.read_exact_at(&mut buffer, range.start)?;
                    found.extend(span_of(index, &buffer));
                }
                done.fetch_add(range.end - range.start, Ordering::Relaxed);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<io::Result<Vec<Span>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
            threads.into_iter().map(|t| t.join().expect("hashing does not panic")).collect()
        });
        let mut spans = Vec::new();
        for result in results {
            spans.extend(result?);
        }
        spans.sort_by_key(|span| span.index);
        Ok(spans)
    }

    /// Number of spans.
    #[must_use]
    pub fn span_count(&self) -> u64 {
        self.len.div_ceil(SPAN_LEN)
    }
}

impl ReadAt for DiskFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
