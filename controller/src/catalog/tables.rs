//! The tables, by what they are keyed with. A change of a record's layout makes a new table under a new name.

use redb::{TableDefinition, WriteTransaction};

use super::CatalogError;

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta1");
/// `name:tag`.
pub(super) const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images2");
/// Manifest: one that was replaced, and may be in use.
pub(super) const RETIRED: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("retired1");
/// `name:tag`: what was said of the image when it was published.
pub(super) const SAID: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("said1");
/// One row at most: the newest directory that was signed, with its signature.
pub(super) const DIRECTORY: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("directory1");
/// BLAKE3 of the page. A page is a segment, too; this is the controller's own copy.
pub(super) const PAGES: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("pages1");
/// Chunk to (segment, byte offset).
pub(super) const CHUNKS: TableDefinition<'_, [u8; 32], ([u8; 32], u32)> = TableDefinition::new("chunks1");
pub(super) const SEGMENTS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("segments1");
/// Segment to the ids of its chunks, 32 bytes each.
pub(super) const SEGMENT_CHUNKS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("segment-chunks1");
pub(super) const PENDING: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("pending1");
pub(super) const GROUPS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("groups1");
pub(super) const NODES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("nodes1");
/// Hash of the ticket's secret.
pub(super) const TICKETS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("tickets3");
/// Node, segment, piece.
pub(super) const TRASH: TableDefinition<'_, [u8; 49], ()> = TableDefinition::new("trash1");

/// Segment, node, piece: the same once more, by segment.
pub(super) const TRASH_OF: TableDefinition<'_, [u8; 49], ()> = TableDefinition::new("trash-of1");
/// Segments that nothing refers to.
pub(super) const UNUSED: TableDefinition<'_, [u8; 32], ()> = TableDefinition::new("unused1");
/// Group: sealed bytes of its segments, and how many of them have a copy on mass storage; if it has any segments.
pub(super) const GROUP_TOTALS: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("group-totals1");
/// Group: the fold of its segments.
pub(super) const GROUP_FOLDS: TableDefinition<'_, u32, u64> = TableDefinition::new("group-folds1");
/// BLAKE3 of geometry and members to the group that has just these.
pub(super) const GROUP_OF: TableDefinition<'_, [u8; 32], u32> = TableDefinition::new("group-of1");
/// Group and segment: which segments a group has.
pub(super) const GROUP_SEGMENTS: TableDefinition<'_, (u32, [u8; 32]), ()> = TableDefinition::new("group-segments1");
/// Group and piece: members that are being replaced.
pub(super) const MOVES: TableDefinition<'_, (u32, u8), &[u8]> = TableDefinition::new("moves1");
/// Group and piece: those that their holder was allowed to drop.
pub(super) const VACANT: TableDefinition<'_, (u32, u8), ()> = TableDefinition::new("vacant1");
/// Segment and piece: fragments that their holders have lost, and that are to be made anew there.
pub(super) const DAMAGED: TableDefinition<'_, ([u8; 32], u8), ()> = TableDefinition::new("damaged1");
/// Segments whose copy on mass storage is gone.
pub(super) const LOST_COPIES: TableDefinition<'_, [u8; 32], ()> = TableDefinition::new("lost-copies1");
/// Node: what is thought of a member.
pub(super) const STANDINGS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("standings1");
/// Name of an image without its tag, or nothing for all: what is wanted of it.
pub(super) const POLICIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policies1");
/// Node: its labels.
pub(super) const LABELS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("labels1");
/// Node: it is a mass-storage device.
pub(super) const DEVICES: TableDefinition<'_, [u8; 16], ()> = TableDefinition::new("devices1");
/// Node: when it was up.
pub(super) const HISTORIES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("histories1");

/// Reports that came by way of stashes: BLAKE3 of the report to when it came, seconds since 1970.
pub(super) const REPORTS: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("reports1");

/// Reading a table that was never written fails, so all are made at the start.
pub(super) fn create_all(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    transaction.open_table(META)?;
    transaction.open_table(IMAGES)?;
    transaction.open_table(RETIRED)?;
    transaction.open_table(SAID)?;
    transaction.open_table(DIRECTORY)?;
    transaction.open_table(PAGES)?;
    transaction.open_table(REPORTS)?;
    transaction.open_table(CHUNKS)?;
    transaction.open_table(SEGMENTS)?;
    transaction.open_table(SEGMENT_CHUNKS)?;
    transaction.open_table(PENDING)?;
    transaction.open_table(GROUPS)?;
    transaction.open_table(NODES)?;
    transaction.open_table(TICKETS)?;
    transaction.open_table(TRASH)?;
    transaction.open_table(TRASH_OF)?;
    transaction.open_table(UNUSED)?;
    transaction.open_table(GROUP_TOTALS)?;
    transaction.open_table(GROUP_OF)?;
    transaction.open_table(GROUP_FOLDS)?;
    transaction.open_table(MOVES)?;
    transaction.open_table(VACANT)?;
    transaction.open_table(DAMAGED)?;
    transaction.open_table(STANDINGS)?;
    transaction.open_table(POLICIES)?;
    transaction.open_table(LABELS)?;
    transaction.open_table(DEVICES)?;
    transaction.open_table(LOST_COPIES)?;
    transaction.open_table(HISTORIES)?;
    transaction.open_table(GROUP_SEGMENTS)?;
    Ok(())
}
