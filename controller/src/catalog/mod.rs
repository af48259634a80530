//! What the controller remembers: images, segments, chunks, members, tickets, and what is half done.
//!
//! One redb file; every change is one durable transaction. Intents are written before they are carried out: a segment is
//! *pending* at named members before the first byte goes there, and *trash* at a member until that member says that it is
//! gone. So after a crash at any point everything that may lie somewhere is known, and nothing unknown is ever deleted.

mod derived;
mod habits;
mod inventory;
mod machines;
mod moves;
mod records;
mod restore;
mod restripe;
mod tables;
mod trash;

pub use derived::{GroupTotals, SegmentTotals};
pub use moves::Seat;
pub use records::{
    BootServerRecord, GroupRecord, ImageRecord, MoveRecord, NodeRecord, PendingRecord, PolicyRecord, RetiredRecord,
    SaidRecord, SegmentRecord, Standing, TicketRecord, TrashKey,
};

use std::collections::BTreeMap;
use std::ops::Bound;

use images::manifest::ImageName;
use images::parity::Geometry;
use images::{ChunkId, GroupId, NodeId, SegmentId, wire};
use protocol::directory::{Epoch, Shares};
use protocol::message::publish::ChunkPlace;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, WriteTransaction};

use tables::{
    CHUNKS, DIRECTORY, GROUPS, IMAGES, META, NODES, PAGES, PENDING, REPORTS, SEGMENT_CHUNKS, SEGMENTS, TICKETS,
};

/// Why the catalog does not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// redb or the disk under it failed.
    #[error("use the catalog")]
    Database(#[source] Box<redb::Error>),
    /// A record that this version cannot read.
    #[error("read a record of the catalog")]
    Record(#[from] wire::DecodeError),
    /// What was asked contradicts what is there.
    #[error("{0}")]
    Conflict(String),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for CatalogError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(redb::DatabaseError, redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// A stash that was away for so long passes nothing on that was passed on before.
const REPORTS_KEPT_S: u64 = 180 * 24 * 3600;

type Result<T> = std::result::Result<T, CatalogError>;

/// The catalog.
pub struct Catalog(Database, Lasts);

/// Whether a catalog is there after its process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasts {
    OnDisk,
    InMemory,
}

/// Changes inside one transaction.
pub struct Change<'a>(&'a WriteTransaction);

/// A segment with what its chunks are, to be recorded as durable.
pub struct NewSegment {
    /// The segment.
    pub id: SegmentId,
    /// What is known of it.
    pub record: SegmentRecord,
    /// Its chunks and their lengths.
    pub chunks: Vec<(ChunkId, u32)>,
    /// Geometry and holders of its pieces.
    pub geometry: Geometry,
    /// Holder of each piece.
    pub holders: Vec<NodeId>,
}

/// A key that is its own value, borrowed from nothing.
trait PlainKey: redb::Key + for<'a> redb::Value<SelfType<'a> = Self> + 'static {}
impl<K: redb::Key + for<'a> redb::Value<SelfType<'a> = K> + 'static> PlainKey for K {}

/// All rows of a table, decoded.
fn rows<K: PlainKey, R: serde::de::DeserializeOwned>(
    table: &impl redb::ReadableTable<K, &'static [u8]>,
) -> Result<Vec<(K, R)>> {
    table
        .iter()?
        .map(|row| {
            let (key, value) = row?;
            Ok((key.value(), wire::decode(value.value())?))
        })
        .collect()
}

impl Catalog {
    /// Use a database; its tables are made if they are missing.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub fn new(database: Database) -> Result<Self> {
        Self::of(database, Lasts::OnDisk)
    }

    /// A catalog that is gone when it is dropped: for worlds that are simulated.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub fn in_memory() -> Result<Self> {
        Self::of(Database::builder().create_with_backend(InMemoryBackend::new())?, Lasts::InMemory)
    }

    fn of(database: Database, lasts: Lasts) -> Result<Self> {
        let catalog = Self(database, lasts);
        catalog.change(|change| {
            tables::create_all(change.0)?;
            machines::create_all(change.0)?;
            change.derive()
        })?;
        Ok(catalog)
    }

    /// Carry out one durable transaction. On an error nothing of it stays.
    ///
    /// # Errors
    /// What `work` says, or [`CatalogError::Database`].
    pub fn change<T>(&self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let mut transaction = self.0.begin_write()?;
        // Opening after a power cut must not walk the whole file.
        transaction.set_quick_repair(self.1 == Lasts::OnDisk);
        let result = work(&Change(&transaction))?;
        transaction.commit()?;
        Ok(result)
    }

    /// Tickets that expired before a time, seconds since 1970.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn tickets_from_before(&self, unix_s: u64) -> Result<Vec<[u8; 32]>> {
        let all = self.all::<_, TicketRecord>(TICKETS)?;
        Ok(all.into_iter().filter(|(_, ticket)| ticket.expires_unix_s < unix_s).map(|(hash, _)| hash).collect())
    }

    fn get<K: redb::Key, R: serde::de::DeserializeOwned>(
        &self,
        table: redb::TableDefinition<'_, K, &'static [u8]>,
        key: K::SelfType<'_>,
    ) -> Result<Option<R>> {
        let read = self.0.begin_read()?;
        let found = read.open_table(table)?.get(key)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    fn all<K: PlainKey, R: serde::de::DeserializeOwned>(
        &self,
        table: redb::TableDefinition<'_, K, &'static [u8]>,
    ) -> Result<Vec<(K, R)>> {
        rows(&self.0.begin_read()?.open_table(table)?)
    }

    /// An image.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn image(&self, image: &ImageName) -> Result<Option<ImageRecord>> {
        self.get(IMAGES, image.to_string().as_str())
    }

    /// All images, by name and then by when they came.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn images(&self) -> Result<Vec<(ImageName, ImageRecord)>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(IMAGES)?;
        let mut images = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let name = key.value().parse().map_err(|_| CatalogError::Conflict("an image without a name".into()))?;
            images.push((name, wire::decode::<ImageRecord>(value.value())?));
        }
        images.sort_by(|a: &(ImageName, ImageRecord), b| (a.0.name(), a.1.number).cmp(&(b.0.name(), b.1.number)));
        Ok(images)
    }

    /// A page of a manifest.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn page(&self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>> {
        let read = self.0.begin_read()?;
        let page = read.open_table(PAGES)?.get(digest)?.map(|v| v.value().to_vec());
        Ok(page)
    }

    /// A segment that is durable.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRecord>> {
        self.get(SEGMENTS, id.0)
    }

    /// The first segment whose id is not below this one, or the first of all; none if there are none.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn segment_from(&self, from: &SegmentId) -> Result<Option<(SegmentId, SegmentRecord)>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(SEGMENTS)?;
        let found = match table.range(from.0..)?.next() {
            None => table.first()?,
            Some(row) => Some(row?),
        };
        let row =
            found.map(|(id, record)| Ok::<_, CatalogError>((SegmentId(id.value()), wire::decode(record.value())?)));
        row.transpose()
    }

    /// Some segments, those after an id or from the first one on.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn segments_after(&self, after: Option<SegmentId>, most: usize) -> Result<Vec<(SegmentId, SegmentRecord)>> {
        let read = self.0.begin_read()?;
        let some = read.open_table(SEGMENTS)?;
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.0));
        let some = some.range::<[u8; 32]>((from, Bound::Unbounded))?.take(most).map(|row| {
            let (id, record) = row?;
            Ok((SegmentId(id.value()), wire::decode(record.value())?))
        });
        some.collect()
    }

    /// All segments that are durable. There may be millions.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn segments(&self) -> Result<Vec<(SegmentId, SegmentRecord)>> {
        Ok(self.all(SEGMENTS)?.into_iter().map(|(id, record)| (SegmentId(id), record)).collect())
    }

    /// All segments that are on their way.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn pending(&self) -> Result<Vec<(SegmentId, PendingRecord)>> {
        Ok(self.all(PENDING)?.into_iter().map(|(id, record)| (SegmentId(id), record)).collect())
    }

    /// Where these chunks lie.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn places(&self, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkPlace>>> {
        let read = self.0.begin_read()?;
        let table = read.open_table(CHUNKS)?;
        chunks
            .iter()
            .map(|chunk| {
                let found = table.get(chunk.0)?.map(|v| v.value());
                Ok(found.map(|(segment, offset)| ChunkPlace { segment: SegmentId(segment), offset }))
            })
            .collect()
    }

    /// All members.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn nodes(&self) -> Result<Vec<(NodeId, NodeRecord)>> {
        Ok(self.all(NODES)?.into_iter().map(|(id, record)| (NodeId(id), record)).collect())
    }

    /// A member.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn node(&self, node: NodeId) -> Result<Option<NodeRecord>> {
        self.get(NODES, node.0)
    }

    /// A group.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn group(&self, id: GroupId) -> Result<Option<GroupRecord>> {
        self.get(GROUPS, id.0)
    }

    /// All groups. There may be tens of thousands.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn groups(&self) -> Result<BTreeMap<GroupId, GroupRecord>> {
        Ok(self.all(GROUPS)?.into_iter().map(|(id, group)| (GroupId(id), group)).collect())
    }

    /// The highest number that a machine was ever given.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn last_host(&self) -> Result<u32> {
        self.last("host")
    }

    /// The same for deployments.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn last_deployment(&self) -> Result<u32> {
        self.last("deployment")
    }

    fn last(&self, counter: &str) -> Result<u32> {
        let read = self.0.begin_read()?;
        let last = read.open_table(META)?.get(counter)?.map_or(0, |v| v.value());
        Ok(last as u32)
    }

    /// Whether a report came before, by way of another stash.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn knows_report(&self, id: [u8; 32]) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(REPORTS)?.get(id)?.is_some())
    }

    /// The newest directory that was signed, as it was kept.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn directory(&self) -> Result<Option<Vec<u8>>> {
        let read = self.0.begin_read()?;
        let found = read.open_table(DIRECTORY)?.get(0)?.map(|v| v.value().to_vec());
        Ok(found)
    }

    /// Whether something is noted for another controller that clients have not heard of.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn has_new_notes(&self) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(META)?.get("notes")?.is_some())
    }

    /// Counts up with each change of the directory.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn epoch(&self) -> Result<Epoch> {
        let read = self.0.begin_read()?;
        let epoch = read.open_table(META)?.get("epoch")?.map_or(0, |v| v.value());
        Ok(Epoch(epoch))
    }

    /// Number of chunks that are known.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn chunk_count(&self) -> Result<u64> {
        Ok(self.0.begin_read()?.open_table(CHUNKS)?.len()?)
    }
}

impl Change<'_> {
    fn count_up(&self, name: &str) -> Result<u64> {
        let mut meta = self.0.open_table(META)?;
        let next = meta.get(name)?.map_or(0, |v| v.value()) + 1;
        meta.insert(name, next)?;
        Ok(next)
    }

    /// The directory changed.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn bump_epoch(&self) -> Result<()> {
        self.count_up("epoch").map(drop)
    }

    /// What is noted for another controller changed. Clients hear of it with the next change, or within a minute: an admin who labels
    /// thousands of stashes makes no thousand directories.
    pub(super) fn note(&self) -> Result<()> {
        self.0.open_table(META)?.insert("notes", 1)?;
        Ok(())
    }

    /// Have clients hear of it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn pass_on_notes(&self) -> Result<()> {
        let was_new = self.0.open_table(META)?.remove("notes")?.is_some();
        if was_new { self.bump_epoch() } else { Ok(()) }
    }

    /// A report came by way of a stash. Those of long ago are forgotten.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn note_report(&self, id: [u8; 32], now_unix_s: u64) -> Result<()> {
        let mut table = self.0.open_table(REPORTS)?;
        table.insert(id, now_unix_s)?;
        table.retain(|_, came| came + REPORTS_KEPT_S > now_unix_s)?;
        Ok(())
    }

    /// Keep the directory of this epoch. The next change has a higher one.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_directory(&self, epoch: Epoch, signed: &[u8]) -> Result<()> {
        self.0.open_table(DIRECTORY)?.insert(0, signed)?;
        let mut meta = self.0.open_table(META)?;
        let now = meta.get("epoch")?.map_or(0, |v| v.value());
        meta.insert("epoch", now.max(epoch.0))?;
        Ok(())
    }

    /// Keep a member's record.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_node(&self, node: NodeId, record: &NodeRecord) -> Result<()> {
        self.0.open_table(NODES)?.insert(node.0, wire::encode(record).as_slice())?;
        Ok(())
    }

    /// Keep a ticket, by the hash of its secret.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_ticket(&self, hash: [u8; 32], record: &TicketRecord) -> Result<()> {
        self.0.open_table(TICKETS)?.insert(hash, wire::encode(record).as_slice())?;
        Ok(())
    }

    /// A ticket.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn ticket(&self, hash: [u8; 32]) -> Result<Option<TicketRecord>> {
        let table = self.0.open_table(TICKETS)?;
        let found = table.get(hash)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    /// Forget tickets, and what they were for.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn forget_tickets(&self, hashes: &[[u8; 32]]) -> Result<()> {
        let mut table = self.0.open_table(TICKETS)?;
        for hash in hashes {
            table.remove(*hash)?;
            self.remove_grant(*hash)?;
        }
        Ok(())
    }

    /// A segment is about to go to these members. Said before the first byte is sent, again when a member is added.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_pending(&self, id: SegmentId, add: &PendingRecord) -> Result<()> {
        let mut table = self.0.open_table(PENDING)?;
        let mut record: PendingRecord =
            table.get(id.0)?.map(|v| wire::decode(v.value())).transpose()?.unwrap_or_default();
        record.merge(add);
        if add.copy {
            self.remove_trash(&TrashKey::Copy { segment: id })?;
        }
        table.insert(id.0, wire::encode(&record).as_slice())?;
        Ok(())
    }

    /// A segment is durable on all its holders: from now on its chunks are known. Pieces that a replaced member may have are
    /// trash there.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_segment(&self, new: &NewSegment) -> Result<()> {
        if self.0.open_table(SEGMENTS)?.get(new.id.0)?.is_some() {
            return Err(CatalogError::Conflict("the segment is durable already".into()));
        }
        let (group, is_new) = self.group_for(new.geometry, &new.holders)?;
        let record = SegmentRecord { group, ..new.record.clone() };
        self.0.open_table(SEGMENTS)?.insert(new.id.0, wire::encode(&record).as_slice())?;
        self.note_segment(&new.id, None, Some(&record))?;
        let mut chunks = self.0.open_table(CHUNKS)?;
        let (mut offset, mut ids) = (0, Vec::with_capacity(new.chunks.len() * 32));
        for (chunk, len) in &new.chunks {
            chunks.insert(chunk.0, (new.id.0, offset))?;
            ids.extend_from_slice(&chunk.0);
            offset += len;
        }
        self.0.open_table(SEGMENT_CHUNKS)?.insert(new.id.0, ids.as_slice())?;
        let mut pending = self.0.open_table(PENDING)?;
        if let Some(old) = pending.remove(new.id.0)? {
            let old: PendingRecord = wire::decode(old.value())?;
            let kept = |piece: u8, node: NodeId| new.holders.get(usize::from(piece)) == Some(&node);
            for (piece, node) in old.sent.into_iter().filter(|&(piece, node)| !kept(piece, node)) {
                self.put_trash(&TrashKey::Fragment { node, segment: new.id, piece })?;
            }
        }
        if is_new {
            self.bump_epoch()?;
        }
        Ok(())
    }

    /// The group of exactly these holders; made if it is missing.
    fn group_for(&self, geometry: Geometry, holders: &[NodeId]) -> Result<(GroupId, bool)> {
        for node in holders {
            if self.standing(*node)?.lost {
                return Err(CatalogError::Conflict(format!("stash {node} left meanwhile: publish again")));
            }
        }
        let known = self.group_of(geometry, holders)?;
        let is_new = known.is_none();
        let (id, mut group) = match known {
            Some(known) => known,
            None => {
                let id = GroupId(self.count_up("group")? as u32);
                self.note_members(id, None, Some((geometry, holders)))?;
                (id, GroupRecord { geometry, members: holders.to_vec(), segments: 0 })
            }
        };
        group.segments += 1;
        self.0.open_table(GROUPS)?.insert(id.0, wire::encode(&group).as_slice())?;
        Ok((id, is_new))
    }

    /// A group.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn group(&self, id: GroupId) -> Result<Option<GroupRecord>> {
        let table = self.0.open_table(GROUPS)?;
        let found = table.get(id.0)?.map(|v| wire::decode(v.value())).transpose()?;
        Ok(found)
    }

    /// A segment's record and key inside this transaction, and one more reference to it.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if it is not durable.
    pub fn refer(&self, id: &SegmentId) -> Result<SegmentRecord> {
        self.count_reference(id, 1)
    }

    fn count_reference(&self, id: &SegmentId, by: i64) -> Result<SegmentRecord> {
        let mut table = self.0.open_table(SEGMENTS)?;
        let record = table.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value())).transpose()?;
        let before = record.ok_or_else(|| not_here(id))?;
        let record = SegmentRecord { references: before.references.saturating_add_signed(by), ..before.clone() };
        table.insert(id.0, wire::encode(&record).as_slice())?;
        self.note_segment(id, Some(&before), Some(&record))?;
        Ok(record)
    }

    /// Keep a page of a manifest.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_page(&self, digest: &[u8; 32], bytes: &[u8]) -> Result<()> {
        self.0.open_table(PAGES)?.insert(digest, bytes)?;
        Ok(())
    }

    /// Publish an image.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the name is taken.
    pub fn put_image(&self, image: &ImageName, record: &ImageRecord) -> Result<()> {
        let record = ImageRecord { number: self.count_up("image")?, ..record.clone() };
        let mut table = self.0.open_table(IMAGES)?;
        let key = image.to_string();
        if table.get(key.as_str())?.is_some() {
            return Err(CatalogError::Conflict(format!("{image} is already published")));
        }
        table.insert(key.as_str(), wire::encode(&record).as_slice())?;
        self.bump_epoch()
    }

    /// The key of an image is split among these from now on.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn put_shares(&self, image: &ImageName, offline: Option<Shares>) -> Result<()> {
        let mut table = self.0.open_table(IMAGES)?;
        let key = image.to_string();
        let found = table.get(key.as_str())?.map(|v| wire::decode::<ImageRecord>(v.value())).transpose()?;
        // It may have been removed meanwhile.
        let Some(record) = found else { return Ok(()) };
        table.insert(key.as_str(), wire::encode(&ImageRecord { offline, ..record }).as_slice())?;
        self.bump_epoch()
    }

    /// Unpublish an image: its name, and one reference of each of `segments`, pages included.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn remove_image(&self, image: &ImageName, segments: &[SegmentId]) -> Result<()> {
        self.put_said(image, &SaidRecord::default())?;
        let gone = self.0.open_table(IMAGES)?.remove(image.to_string().as_str())?.is_none();
        if gone {
            return Err(CatalogError::Conflict(format!("{image} was removed meanwhile")));
        }
        for segment in segments {
            self.count_reference(segment, -1)?;
        }
        self.bump_epoch()
    }

    /// Forget a segment that nobody refers to; its pieces and its copy become trash. Says whether it did.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn reclaim(&self, id: &SegmentId) -> Result<bool> {
        let mut table = self.0.open_table(SEGMENTS)?;
        let record = table.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value())).transpose()?;
        let Some(record) = record.filter(|r| r.references == 0) else {
            return Ok(false);
        };
        table.remove(id.0)?;
        self.0.open_table(PAGES)?.remove(id.0)?;
        let chunk_ids = self.0.open_table(SEGMENT_CHUNKS)?.remove(id.0)?.map(|v| v.value().to_vec());
        let mut chunks = self.0.open_table(CHUNKS)?;
        for chunk in chunk_ids.unwrap_or_default().chunks_exact(32) {
            let chunk: [u8; 32] = chunk.try_into().expect("32 bytes");
            // The chunk may lie in another segment by now.
            let here = chunks.get(chunk)?.is_some_and(|v| v.value().0 == id.0);
            if here {
                chunks.remove(chunk)?;
            }
        }
        self.note_segment(id, Some(&record), None)?;
        self.trash_moved(record.group, id)?;
        self.forget_damage(id)?;
        if let Some(mut group) = self.group(record.group)? {
            for (piece, &node) in group.members.iter().enumerate() {
                self.put_trash(&TrashKey::Fragment { node, segment: *id, piece: piece as u8 })?;
            }
            group.segments = group.segments.saturating_sub(1);
            if group.segments == 0 {
                // What comes into it next is where it should be.
                self.forget_vacant(record.group)?;
            }
            self.0.open_table(GROUPS)?.insert(record.group.0, wire::encode(&group).as_slice())?;
        }
        if record.on_mass_storage {
            self.put_trash(&TrashKey::Copy { segment: *id })?;
            self.copy_is_back(id)?;
        }
        Ok(true)
    }

    /// Forget a segment that never became durable; what may lie somewhere becomes trash.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn abandon(&self, id: &SegmentId) -> Result<()> {
        let mut pending = self.0.open_table(PENDING)?;
        let Some(old) = pending.remove(id.0)? else { return Ok(()) };
        let old: PendingRecord = wire::decode(old.value())?;
        // A second try of a segment that is durable already must not take the first one's pieces along.
        let durable = self.0.open_table(SEGMENTS)?.get(id.0)?.map(|v| wire::decode::<SegmentRecord>(v.value()));
        let durable = durable.transpose()?;
        let holders = match &durable {
            Some(record) => self.group(record.group)?.map(|g| g.members).unwrap_or_default(),
            None => Vec::new(),
        };
        for (piece, node) in old.sent {
            if holders.get(usize::from(piece)) != Some(&node) {
                self.put_trash(&TrashKey::Fragment { node, segment: *id, piece })?;
            }
        }
        if old.copy && durable.is_none_or(|record| !record.on_mass_storage) {
            self.put_trash(&TrashKey::Copy { segment: *id })?;
        }
        Ok(())
    }
}

/// What a draft hears that refers to a segment nobody has.
#[must_use]
pub fn not_here(id: &SegmentId) -> CatalogError {
    CatalogError::Conflict(format!("segment {} is not here: publish again, and it is sent again", id.short()))
}

#[cfg(test)]
mod tests;
