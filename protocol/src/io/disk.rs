//! Disks and disk images on this machine: reading them without reading their holes.

use std::fs::File;
use std::io::{self, Seek as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use images::disk::ReadAt;
use images::extent::in_use;
use images::limits::{BLOCK_LEN, SPAN_LEN};
use images::span::{Span, SpanHasher};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::stage::Stage;

/// Read at once: large enough for a disk to stream, small enough for two buffers a core.
const READ_LEN: usize = 4 * 1024 * 1024;

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

    /// One span, or `None` where it is all zero; `buffer` is scratch.
    fn span(&self, index: u64, buffer: &mut [u8]) -> io::Result<Option<Span>> {
        let mut hasher = SpanHasher::default();
        let end = ((index + 1) * SPAN_LEN).min(self.len);
        let mut at = index * SPAN_LEN;
        while let Some(data) = self.next_data(at)?.filter(|data| data.start < end) {
            at = data.start;
            while at < data.end.min(end) {
                let len = (data.end.min(end) - at).min(buffer.len() as u64) as usize;
                self.file.read_exact_at(&mut buffer[..len], at)?;
                for extent in in_use(&buffer[..len]) {
                    hasher.push(at + extent.start as u64, &buffer[extent]);
                }
                at += len as u64;
            }
        }
        Ok(hasher.finish().pop())
    }

    /// Those of the spans `which` that are not all zero, read and hashed on all cores. `done` counts bytes looked at, `stage` the CPU.
    ///
    /// # Errors
    /// The medium's.
    ///
    /// # Panics
    /// If hashing panics, which would be a bug.
    pub fn spans(&self, which: &[u64], done: &AtomicU64, stage: &Stage) -> io::Result<Vec<Span>> {
        let next = AtomicUsize::new(0);
        let worker = || -> io::Result<Vec<Span>> {
            let mut found = Vec::new();
            let mut buffer = vec![0; READ_LEN];
            loop {
                let Some(&index) = which.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    return Ok(found);
                };
                let len = SPAN_LEN.min(self.len - index * SPAN_LEN);
                found.extend(stage.run(len as usize, || self.span(index, &mut buffer))?);
                done.fetch_add(len, Ordering::Relaxed);
            }
        };
        // Two for each core: one reads while the other hashes.
        let threads = which.len().min(2 * std::thread::available_parallelism().map_or(1, usize::from));
        let results: Vec<io::Result<Vec<Span>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
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
