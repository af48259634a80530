//! Which spans of the disk have all their bytes: those can be read back while others are still fetched.

use images::limits::{BLOCK_LEN, SPAN_LEN};
use images::manifest::Run;

#[derive(Clone, Copy, Default)]
struct Awaited {
    /// Bytes that runs still bring.
    left: u64,
    /// A block of the last run, counted in blocks from the start of the span.
    block: u32,
}

/// A span that no run writes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Disk offset divided by [`SPAN_LEN`].
    pub span: u64,
    /// Disk offset of a block in it that is not zero.
    pub block: u64,
}

/// Counts the bytes that each span still waits for: 16 bytes of memory a span.
///
/// The first span never settles, because its first blocks are held back, nor does a last one that ends in the middle, because the disk may
/// go on; nor does a span of zeros. Whoever proves the disk reads these at the end.
pub struct Spans {
    awaited: Vec<Awaited>,
    settled: Vec<Settled>,
}

/// The parts of a run in each span: (span, offset on the disk, length).
fn parts(run: &Run) -> impl Iterator<Item = (usize, u64, u64)> {
    let end = run.disk_offset + u64::from(run.len);
    let mut at = run.disk_offset;
    std::iter::from_fn(move || {
        let span = at / SPAN_LEN;
        let part = (span as usize, at, end.min((span + 1) * SPAN_LEN).saturating_sub(at));
        at += part.2;
        (part.2 > 0).then_some(part)
    })
}

impl Spans {
    /// Nothing awaited.
    #[must_use]
    pub fn new(disk_len: u64) -> Self {
        Self { awaited: vec![Awaited::default(); (disk_len / SPAN_LEN) as usize], settled: Vec::new() }
    }

    /// A run that will be written.
    pub fn expect(&mut self, run: &Run) {
        for (span, _, len) in parts(run).filter(|(span, ..)| *span > 0) {
            if let Some(awaited) = self.awaited.get_mut(span) {
                awaited.left += len;
            }
        }
    }

    /// A run that was expected has been written.
    pub fn wrote(&mut self, run: &Run) {
        for (span, at, len) in parts(run).filter(|(span, ..)| *span > 0) {
            let Some(awaited) = self.awaited.get_mut(span) else { continue };
            awaited.block = ((at % SPAN_LEN) / BLOCK_LEN as u64) as u32;
            awaited.left = awaited.left.saturating_sub(len);
            if awaited.left == 0 {
                let span = span as u64;
                self.settled
                    .push(Settled { span, block: span * SPAN_LEN + u64::from(awaited.block) * BLOCK_LEN as u64 });
            }
        }
    }

    /// Spans that settled since the last call.
    pub fn take(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(disk_offset: u64, len: u64) -> Run {
        Run { disk_offset, segment_offset: 0, len: u32::try_from(len).unwrap() }
    }

    #[test]
    fn a_span_settles_with_its_last_byte() {
        let mut spans = Spans::new(4 * SPAN_LEN + 5);
        let all = [
            run(0, 4096),
            run(SPAN_LEN - 4096, 8192),
            run(2 * SPAN_LEN - 8192, 4096),
            run(2 * SPAN_LEN, 2 * SPAN_LEN + 5),
        ];
        all.iter().for_each(|r| spans.expect(r));
        spans.wrote(&all[0]);
        spans.wrote(&all[2]);
        assert_eq!(spans.take(), []);
        spans.wrote(&all[1]);
        assert_eq!(spans.take(), [Settled { span: 1, block: SPAN_LEN }]);
        spans.wrote(&all[3]);
        let settled: Vec<u64> = spans.take().iter().map(|s| s.span).collect();
        assert_eq!(settled, [2, 3], "the last span ends in the middle");
        assert_eq!(spans.take(), []);
    }
}
