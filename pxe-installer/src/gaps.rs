//! What no run writes: it must read as zero afterwards, whatever the disk held before.

use std::ops::Range;

use images::limits::BLOCK_LEN;
use images::manifest::Run;

/// Disk bytes that one map covers: 32 MiB of memory. A larger disk takes several passes over the manifest.
pub const WINDOW_LEN: u64 = 1 << 40;

/// Which blocks of a window runs write.
pub struct Written {
    window: Range<u64>,
    blocks: Vec<u64>,
}

impl Written {
    /// Nothing written yet in `window`, which starts on a block boundary.
    #[must_use]
    pub fn new(window: Range<u64>) -> Self {
        let blocks = (window.end - window.start).div_ceil(BLOCK_LEN as u64);
        Self { window, blocks: vec![0; blocks.div_ceil(64) as usize] }
    }

    /// A run writes these bytes. Runs consist of whole blocks, but for the last of a disk.
    pub fn mark(&mut self, run: &Run) {
        let block = BLOCK_LEN as u64;
        let start = run.disk_offset.max(self.window.start);
        let end = (run.disk_offset + u64::from(run.len)).min(self.window.end);
        if start >= end {
            return;
        }
        let first = (start - self.window.start) / block;
        let last = (end - self.window.start).div_ceil(block);
        for i in first..last {
            self.blocks[(i / 64) as usize] |= 1 << (i % 64);
        }
    }

    /// Ranges that nothing writes, in disk order.
    pub fn gaps(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let block = BLOCK_LEN as u64;
        let total = (self.window.end - self.window.start).div_ceil(block);
        let is_written = |i: u64| self.blocks[(i / 64) as usize] >> (i % 64) & 1 == 1;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < total && is_written(at) {
                at += 1;
            }
            let start = at;
            while at < total && !is_written(at) {
                at += 1;
            }
            let range = self.window.start + start * block..(self.window.start + at * block).min(self.window.end);
            (start < at).then_some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_runs_leave() {
        let run = |disk_offset, len| Run { disk_offset, segment_offset: 0, len };
        let mut written = Written::new(8192..8192 + 4096 * 10 + 100);
        let gaps = |w: &Written| w.gaps().collect::<Vec<_>>();
        assert_eq!(gaps(&written), [8192..49252]);
        written.mark(&run(0, 12288));
        written.mark(&run(20480, 4096));
        written.mark(&run(49152, 500));
        assert_eq!(gaps(&written), [12288..20480, 24576..49152]);
        written.mark(&run(0, 1_000_000));
        assert_eq!(gaps(&written), []);
    }
}
