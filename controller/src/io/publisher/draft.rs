//! The draft of a manifest, page by page.

use images::limits::{PAGE_RUNS_MAX, PAGE_SEGMENTS_MAX, PAGE_SPANS_MAX};
use images::span::Span;
use protocol::io::rpc::{self, CallError};
use protocol::message::publish::{DraftSegment, PutRuns, PutSpans};
use quinn::Connection;

use super::resolver::Entry;

/// Runs of one entry: a chunk that repeats all over a disk has many, and is then listed again.
const ENTRY_RUNS_MAX: usize = PAGE_RUNS_MAX / 4;

/// Group entries into pages, in the order in which their first bytes lie on the disk.
fn pages(mut entries: Vec<Entry>) -> Vec<Vec<DraftSegment>> {
    entries.sort_by_key(|entry| entry.runs.first().map(|run| run.disk_offset));
    let mut pages: Vec<Vec<DraftSegment>> = Vec::new();
    let mut room = 0;
    for entry in entries {
        for runs in entry.runs.chunks(ENTRY_RUNS_MAX) {
            if runs.len() > room || pages.last().is_none_or(|page| page.len() == PAGE_SEGMENTS_MAX) {
                pages.push(Vec::new());
                room = PAGE_RUNS_MAX;
            }
            room -= runs.len();
            let segment = DraftSegment { id: entry.id, runs: runs.to_vec() };
            pages.last_mut().expect("just pushed").push(segment);
        }
    }
    pages
}

/// Send the draft; the answer is the number of pages of each kind.
pub(super) async fn send(
    connection: &Connection,
    session: u64,
    entries: Vec<Entry>,
    spans: &[Span],
) -> Result<(u32, u32), CallError> {
    let (mut run_pages, mut span_pages) = (0, 0);
    for segments in pages(entries) {
        rpc::call(connection, PutRuns { session, index: run_pages, segments }, &[]).await?;
        run_pages += 1;
    }
    for spans in spans.chunks(PAGE_SPANS_MAX) {
        rpc::call(connection, PutSpans { session, index: span_pages, spans: spans.to_vec() }, &[]).await?;
        span_pages += 1;
    }
    Ok((run_pages, span_pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::SegmentId;
    use images::manifest::Run;

    #[test]
    fn pages_keep_every_run_within_the_limits() {
        let run = |i: usize| Run { disk_offset: i as u64 * 4096, segment_offset: 0, len: 4096 };
        let repeated = Entry { id: SegmentId([1; 32]), runs: (0..PAGE_RUNS_MAX * 2 + 5).map(run).collect() };
        let single = |i: usize| Entry { id: SegmentId([2; 32]), runs: vec![run(i)] };
        let entries: Vec<Entry> = std::iter::once(repeated).chain((0..600).map(single)).collect();
        let pages = pages(entries);
        let runs = |page: &Vec<DraftSegment>| page.iter().map(|s| s.runs.len()).sum::<usize>();
        assert_eq!(pages.iter().map(runs).sum::<usize>(), PAGE_RUNS_MAX * 2 + 5 + 600);
        assert!(pages.iter().all(|p| p.len() <= PAGE_SEGMENTS_MAX && runs(p) <= PAGE_RUNS_MAX));
    }
}
