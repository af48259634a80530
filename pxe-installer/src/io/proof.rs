//! Proof: the disk is read back and compared, span by span, with what the array signed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, bail};
use images::disk::ReadAt as _;
use images::limits::SPAN_LEN;
use images::span::{ContentHasher, Span, span_of};

use super::source::Source;
use super::target::Target;
use crate::first_blocks::{FIRST_LEN, FirstBlocks, Overlay};

/// Compare the whole image with the disk. `done` counts bytes.
///
/// # Errors
/// If a span differs; then its place on the disk is named.
pub(super) async fn compare(
    source: &Source,
    target: &Arc<Target>,
    first: &FirstBlocks,
    done: &Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let count = source.root.disk_len.div_ceil(SPAN_LEN);
    let mut content = ContentHasher::new(source.root.disk_len);
    let mut at = 0;
    let pages = source.root.span_pages.len();
    for index in 0..pages {
        let page = source.spans(index).await?;
        page.spans.iter().for_each(|span| content.push(span));
        let last = page.spans.last().map_or(at, |span| span.index + 1);
        let end = if index + 1 == pages { count } else { last };
        if last > count {
            bail!("the manifest names a span beyond the disk");
        }
        compare_range(source, target, first, at..end, &page.spans, done).await?;
        at = end;
    }
    compare_range(source, target, first, at..count, &[], done).await?;
    if content.finish() != source.root.content {
        bail!("the manifest's digests contradict each other");
    }
    Ok(())
}

async fn compare_range(
    source: &Source,
    target: &Arc<Target>,
    first: &FirstBlocks,
    which: Range<u64>,
    expected: &[Span],
    done: &Arc<AtomicU64>,
) -> anyhow::Result<()> {
    if which.is_empty() {
        return Ok(());
    }
    let len = source.root.disk_len;
    let mut found: BTreeMap<u64, Span> = BTreeMap::new();
    // The first span has the blocks that are held back; the last may end in the middle, where the disk goes on.
    let alone = |i: u64| i == 0 || (i + 1) * SPAN_LEN > len;
    let (mut plain, mut special) = (which.clone(), Vec::new());
    if alone(plain.start) {
        special.push(plain.start);
        plain.start += 1;
    }
    if plain.start < plain.end && alone(plain.end - 1) {
        plain.end -= 1;
        special.push(plain.end);
    }
    for index in special {
        let disk = target.reader().context("read back the disk")?;
        let overlay = Overlay { first, disk: &disk, len };
        let mut bytes = vec![0; ((index + 1) * SPAN_LEN).min(len).saturating_sub(index * SPAN_LEN) as usize];
        overlay.read_exact_at(index * SPAN_LEN, &mut bytes).context("read back the disk")?;
        found.extend(span_of(index, &bytes).map(|span| (index, span)));
        done.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }
    let (target, counter) = (target.clone(), done.clone());
    let read = tokio::task::spawn_blocking(move || target.reader()?.spans(plain, &counter));
    let spans = read.await.context("read back the disk")?.context("read back the disk")?;
    found.extend(spans.into_iter().map(|span| (span.index, span)));
    let wanted: BTreeMap<u64, Span> = expected.iter().map(|span| (span.index, *span)).collect();
    let wrong = which.into_iter().find(|i| found.get(i) != wanted.get(i));
    if let Some(index) = wrong {
        let from = index * SPAN_LEN;
        bail!(
            "the disk did not keep what was written: bytes {from} to {} differ from {}. Replace the disk",
            ((index + 1) * SPAN_LEN).min(len),
            source.root.image
        );
    }
    Ok(())
}

/// Compare the first blocks, which were written last, and whatever was patched elsewhere.
///
/// # Errors
/// If they differ.
pub(super) fn compare_first(
    target: &Target,
    first: &FirstBlocks,
    patched: &[images::disk::Patch],
) -> anyhow::Result<()> {
    let disk = target.reader()?;
    let head = images::disk::Patch { offset: 0, bytes: first.bytes().to_vec() };
    debug_assert!(head.bytes.len() as u64 <= FIRST_LEN);
    for patch in std::iter::once(&head).chain(patched) {
        let mut bytes = vec![0; patch.bytes.len()];
        disk.read_exact_at(patch.offset, &mut bytes).context("read back the disk")?;
        if bytes != patch.bytes {
            bail!("the disk did not keep what was written at byte {}. Replace the disk", patch.offset);
        }
    }
    Ok(())
}
