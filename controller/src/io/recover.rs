//! A controller from its clients alone: identity from the recovery kit, the catalog from the newest directory and the manifests in the
//! array, the chunk index (and mass storage) from the segments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, bail};
use images::fragment::assemble;
use images::keys::SegmentKey;
use images::manifest::{ImageName, PageRef, SegmentEntry, SegmentPage, Signed};
use images::parity::Codec;
use images::{ChunkId, FragmentDigest, GroupId, NodeId, SegmentId, segment, wire};
use protocol::directory::Head;
use protocol::identity::Role;
use protocol::io::array::Array;
use tokio::task::JoinSet;

use super::authority::Authority;
use super::mass_storage::MassStorage;
use super::notes::Notes;
use super::planned;
use super::unix_s;
use crate::catalog::{
    BootServerRecord, Catalog, CatalogError, Change, GroupRecord, ImageRecord, NodeRecord, SegmentRecord,
};
use crate::hosts::HostRecord;

/// Segments under way.
const TOGETHER: usize = 12;
/// Segments in one transaction.
const COMMIT_TOGETHER: usize = 32;

/// How far a recovery is; read while it runs.
#[derive(Default)]
pub struct Progress {
    /// Sealed bytes to fetch.
    pub total: AtomicU64,
    /// Sealed bytes fetched, or here from a try before.
    pub done: AtomicU64,
}

/// What was recovered.
#[derive(Default, serde::Serialize)]
pub struct Recovered {
    /// Stashes that the directory lists.
    pub stashes: u64,
    /// Machines that may be installed.
    pub hosts: u64,
    /// Images.
    pub images: u64,
    /// Segments, manifests' pages included.
    pub segments: u64,
    /// Sealed bytes fetched by this try.
    pub fetched: u64,
    /// Segments that cannot be had now, by image.
    pub unreadable: BTreeMap<String, Vec<String>>,
    /// Rows of notes (policies, labels, devices) that cannot be read. They are left out.
    pub lost_notes: u64,
    /// Images whose manifest cannot be had, and why. They are left out.
    pub lost_images: BTreeMap<String, String>,
}

/// An image as it comes back.
struct Restored {
    record: ImageRecord,
    pages: Vec<(PageRef, Vec<u8>)>,
    entries: Vec<(SegmentEntry, SegmentKey)>,
}

/// A recovery.
pub struct Recovery {
    /// The array, seen through its stashes.
    pub array: Array,
    /// Its authority, from the kit.
    pub authority: Authority,
    /// To be filled.
    pub catalog: Catalog,
    /// Where to put copies of segments, if at all.
    pub mass_storage: Option<MassStorage>,
}

impl Recovery {
    async fn image(&self, image: &ImageName, head: &Head) -> anyhow::Result<Restored> {
        let root = self.array.root(image, head).await?;
        let bytes = self.array.page(&head.root).await?;
        let signed: Signed = wire::decode(&bytes).context("decode the signed manifest")?;
        let key = self.authority.owner_key.open_manifest_key(&head.manifest, &head.sealed_key);
        let key = key.with_context(|| format!("open the key of {image}"))?;
        let (mut pages, mut entries) = (vec![(head.root, bytes.to_vec())], Vec::new());
        for (index, page) in root.segment_pages.iter().enumerate() {
            let bytes = self.array.page(page).await?;
            let decoded = SegmentPage::decode(&bytes, index as u32, root.disk_len)?;
            let keys = decoded.keys(&key)?;
            entries.extend(decoded.segments.into_iter().zip(keys));
            pages.push((*page, bytes.to_vec()));
        }
        for page in &root.span_pages {
            pages.push((*page, self.array.page(page).await?.to_vec()));
        }
        let (manifest, number, offline) = (head.manifest, head.number, head.offline.clone());
        Ok(Restored { record: ImageRecord { number, manifest, signed, root: head.root, key, offline }, pages, entries })
    }

    /// Fill the catalog, but for the chunks. In one transaction: a catalog with a directory is complete.
    ///
    /// # Errors
    /// If a manifest cannot be had and `give_up` was not said; with what is missing.
    pub async fn fill_catalog(&self, give_up: bool, recovered: &mut Recovered) -> anyhow::Result<()> {
        let directory = self.array.directory();
        let (mut images, mut lost) = (Vec::new(), BTreeMap::new());
        for (image, head) in directory.heads.iter() {
            match self.image(image, head).await {
                Ok(restored) => images.push((image.clone(), restored)),
                Err(error) => drop(lost.insert(image.to_string(), format!("{error:#}"))),
            }
        }
        if !lost.is_empty() && !give_up {
            let list: Vec<String> = lost.iter().map(|(image, why)| format!("\n  {image}: {why}")).collect();
            bail!(
                "the manifests of some images cannot be had:{}\nStart the stashes that are named and run this again, or leave these \
                 images out for ever with --give-up",
                list.concat()
            );
        }
        recovered.lost_images = lost;
        let (notes, unread) = Notes::open(directory, &self.authority.owner_key);
        if unread > 0 && !give_up {
            bail!(
                "what the controller of before noted cannot be read, {unread} rows of it: recover with a program of its version, or go on \
                 without policies, labels and devices with --give-up"
            );
        }
        recovered.lost_notes = unread;
        let groups: BTreeMap<GroupId, GroupRecord> = directory
            .groups
            .iter()
            .map(|(id, g)| (*id, GroupRecord { geometry: g.geometry, members: g.members.clone(), segments: 0 }))
            .collect();
        let signed = self.array.signed_directory();
        self.catalog.change(|change| {
            self.fill_segments(change, groups.clone(), &images)?;
            let now = unix_s();
            for (node, member) in directory.members.iter() {
                let (addresses, capacity) = (member.addresses.clone(), member.capacity);
                let record = NodeRecord { role: Role::Stash, addresses, capacity, joined_unix_s: now };
                change.put_node(*node, &record)?;
            }
            // Only a mass-storage device has several pieces of a group.
            for (_, group) in directory.groups.iter() {
                let several = |(piece, node): &(usize, &NodeId)| group.members[..*piece].contains(*node);
                let mut devices = group.members.iter().enumerate().filter(several);
                devices.try_for_each(|(_, node)| change.restore_device(*node))?;
            }
            notes.restore(change, &directory.members.iter().map(|(node, _)| *node).collect())?;
            for (id, host) in directory.hosts.iter() {
                change.put_host(Some(*id), &HostRecord { first_unix_s: now, ..HostRecord::of_listed(host) })?;
            }
            let common = directory.common();
            change.restore_host_number(common.last_host)?;
            change.restore_deployments(&planned::open(directory, &self.authority.owner_key), common.last_deployment)?;
            for node in common.policy.boot_servers {
                let record = BootServerRecord { joined_unix_s: now, offline: true, delegated_until_unix_s: 0 };
                change.put_boot_server(node, &record)?;
            }
            for (image, restored) in &images {
                change.restore_image(image, &restored.record)?;
            }
            change.put_directory(signed.mark().epoch, &signed.encode())?;
            // What this controller says next, its own addresses first of all, is newer than what members have.
            change.bump_epoch()
        })?;
        Ok(())
    }

    fn fill_segments(
        &self,
        change: &Change<'_>,
        mut groups: BTreeMap<GroupId, GroupRecord>,
        images: &[(ImageName, Restored)],
    ) -> Result<(), CatalogError> {
        let mut records: BTreeMap<SegmentId, SegmentRecord> = BTreeMap::new();
        let plain = SegmentRecord {
            sealed_len: 0,
            data_len: 0,
            key: SegmentKey([0; 32]),
            group: GroupId(0),
            fragments: Vec::new(),
            on_mass_storage: false,
            references: 0,
            stored_unix_s: unix_s(),
        };
        let mut refer = |id: SegmentId, record: &dyn Fn() -> SegmentRecord| {
            records.entry(id).or_insert_with(record).references += 1;
        };
        for (_, restored) in images {
            for (page, bytes) in &restored.pages {
                let pieces = groups.get(&page.group).map_or(0, |g| g.geometry.pieces());
                refer(SegmentId(page.digest), &|| SegmentRecord {
                    sealed_len: page.len,
                    group: page.group,
                    fragments: vec![FragmentDigest(page.digest); pieces],
                    ..plain.clone()
                });
                change.put_page(&page.digest, bytes)?;
                // A page has no chunks, and so its chunks are known.
                change.restore_segment(&SegmentId(page.digest), &plain)?;
                change.restore_chunks(&SegmentId(page.digest), &[], false)?;
            }
            for (entry, key) in &restored.entries {
                refer(entry.id, &|| SegmentRecord {
                    sealed_len: entry.sealed_len,
                    data_len: entry.data_len,
                    key: key.clone(),
                    group: entry.group,
                    fragments: entry.fragments.clone(),
                    ..plain.clone()
                });
            }
        }
        for (id, record) in &records {
            change.restore_segment(id, record)?;
            if let Some(group) = groups.get_mut(&record.group) {
                group.segments += 1;
            }
        }
        change.restore_groups(&groups)
    }

    /// Fetch what is not here yet: every segment whose chunks are not known or, with mass storage, that has no copy there.
    ///
    /// # Errors
    /// The catalog's and the mass storage's. Segments that cannot be had are listed, and are no error.
    pub async fn fetch_segments(&self, progress: &Progress, recovered: &mut Recovered) -> anyhow::Result<()> {
        let groups = self.catalog.groups()?;
        let all = self.catalog.segments()?;
        progress.total.store(all.iter().map(|(_, r)| u64::from(r.sealed_len)).sum(), Relaxed);
        recovered.segments = all.len() as u64;
        let (mut tasks, mut fetched, mut unreadable) = (JoinSet::new(), Vec::new(), BTreeSet::new());
        for (id, record) in all {
            let is_here = self.catalog.knows_chunks_of(&id)? && (record.on_mass_storage || self.mass_storage.is_none());
            let group = groups.get(&record.group).filter(|_| !is_here);
            let Some(group) = group else {
                progress.done.fetch_add(record.sealed_len.into(), Relaxed);
                if !is_here {
                    tracing::warn!(segment = %id.short(), group = %record.group, "nobody knows who holds a segment");
                    unreadable.insert(id);
                }
                continue;
            };
            let is_page = self.catalog.page(&id.0)?.is_some();
            let entry = SegmentEntry {
                id,
                sealed_len: record.sealed_len,
                data_len: record.data_len,
                group: record.group,
                geometry: group.geometry,
                fragments: record.fragments,
                runs: Vec::new(),
            };
            let (array, members, store) = (self.array.clone(), group.members.clone(), self.mass_storage.clone());
            if tasks.len() >= TOGETHER {
                self.collect(&mut tasks, &mut fetched, &mut unreadable, progress, recovered).await?;
            }
            tasks.spawn(async move {
                let len = entry.sealed_len;
                (id, len, fetch(&array, entry, members, (!is_page).then_some(record.key), store).await)
            });
        }
        while !tasks.is_empty() {
            self.collect(&mut tasks, &mut fetched, &mut unreadable, progress, recovered).await?;
        }
        self.commit(&mut fetched)?;
        self.name_unreadable(&unreadable, recovered)
    }

    async fn collect(
        &self,
        tasks: &mut JoinSet<(SegmentId, u32, anyhow::Result<Vec<(ChunkId, u32)>>)>,
        fetched: &mut Vec<(SegmentId, Vec<(ChunkId, u32)>)>,
        unreadable: &mut BTreeSet<SegmentId>,
        progress: &Progress,
        recovered: &mut Recovered,
    ) -> anyhow::Result<()> {
        let Some(done) = tasks.join_next().await else { return Ok(()) };
        let (id, len, result) = done.context("fetch a segment")?;
        progress.done.fetch_add(len.into(), Relaxed);
        match result {
            Ok(chunks) => {
                recovered.fetched += u64::from(len);
                fetched.push((id, chunks));
            }
            // A full disk of its own ends a recovery; what others have, or have not, does not.
            Err(error) if error.is::<object_store::Error>() => return Err(error),
            Err(error) => {
                tracing::warn!(segment = %id.short(), error = format!("{error:#}"), "a segment cannot be had now");
                unreadable.insert(id);
            }
        }
        if fetched.len() >= COMMIT_TOGETHER { self.commit(fetched) } else { Ok(()) }
    }

    fn commit(&self, fetched: &mut Vec<(SegmentId, Vec<(ChunkId, u32)>)>) -> anyhow::Result<()> {
        let copied = self.mass_storage.is_some();
        self.catalog
            .change(|change| fetched.iter().try_for_each(|(id, chunks)| change.restore_chunks(id, chunks, copied)))?;
        fetched.clear();
        Ok(())
    }

    fn name_unreadable(&self, unreadable: &BTreeSet<SegmentId>, recovered: &mut Recovered) -> anyhow::Result<()> {
        let images = self.catalog.images()?;
        recovered.images = images.len() as u64;
        recovered.stashes = self.catalog.nodes()?.len() as u64;
        recovered.hosts = self.catalog.hosts()?.len() as u64;
        if unreadable.is_empty() {
            return Ok(());
        }
        for (image, record) in images {
            let segments = super::sweep::segments_of(&self.catalog, &record)?;
            let missing: BTreeSet<SegmentId> = segments.into_iter().filter(|id| unreadable.contains(id)).collect();
            if !missing.is_empty() {
                recovered.unreadable.insert(image.to_string(), missing.iter().map(ToString::to_string).collect());
            }
        }
        Ok(())
    }
}

/// Fetch a segment, keep a copy, and name its chunks. A page has no key and no chunks.
async fn fetch(
    array: &Array,
    entry: SegmentEntry,
    members: Vec<images::NodeId>,
    key: Option<SegmentKey>,
    store: Option<MassStorage>,
) -> anyhow::Result<Vec<(ChunkId, u32)>> {
    let entry = Arc::new(entry);
    let pieces = array.fetch(entry.clone(), members).await?;
    let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let sealed = assemble(&Codec::new(entry.geometry), entry.id, entry.sealed_len, &pieces)?;
        let chunks = match key {
            Some(key) => segment::decode(segment::unseal(&sealed, &key)?)?.chunks(),
            None => Vec::new(),
        };
        Ok((entry.id, sealed, chunks))
    });
    let (id, sealed, chunks) = opened.await.context("open a segment")??;
    if let Some(store) = store {
        store.put(&id, sealed.into()).await?;
    }
    Ok(chunks)
}
