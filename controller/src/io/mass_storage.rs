//! Mass storage: whole sealed segments on the controller's own devices, through `object_store`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use bytes::Bytes;
use images::SegmentId;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath};

/// Delete what an interrupted write left: `object_store` writes beside the final name, with a `#`, and renames. Only files from
/// before this process count.
fn remove_temporaries(folder: &Path, before: SystemTime) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_temporaries(&path, before)?;
        } else if entry.file_name().to_string_lossy().contains('#') && entry.metadata()?.modified()? < before {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Says that a folder is an array's mass storage, and not the place where its disk should be mounted.
const MARK: &str = ".coe-mass-storage";

/// Mass storage.
#[derive(Clone)]
pub struct MassStorage {
    store: Arc<dyn ObjectStore>,
    folder: PathBuf,
    /// Whether it was there when it was looked at last.
    was_there: Arc<AtomicBool>,
}

/// Its disk is not mounted.
#[derive(Debug, thiserror::Error)]
#[error("{0} is empty: mount its disk, or say `coe-ctl repair --new-mass-storage`")]
struct NotThere(String);

fn place(id: &SegmentId) -> ObjectPath {
    // 65,536 folders keep each small at tens of millions of segments.
    let name = id.to_string();
    ObjectPath::from_iter(["segments", &name[..2], &name[2..4], &name])
}

impl MassStorage {
    /// A folder as mass storage; it is made if it is missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn folder(path: &Path) -> anyhow::Result<Self> {
        protocol::io::credentials::create_private_dir(path)?;
        let (folder, now) = (path.to_path_buf(), SystemTime::now());
        std::thread::spawn(move || {
            if let Err(error) = remove_temporaries(&folder, now) {
                tracing::warn!(%error, "temporary files on mass storage not removed");
            }
        });
        let store = Arc::new(LocalFileSystem::new_with_prefix(path)?.with_fsync(true));
        let was_there = Arc::new(AtomicBool::new(path.join(MARK).exists()));
        Ok(Self { store, folder: path.to_path_buf(), was_there })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether the folder was mass storage when it was looked at last. A disk that hangs answers nobody.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.was_there.load(Relaxed)
    }

    /// Look whether the folder is mass storage.
    pub async fn look(&self) -> bool {
        let is_there = tokio::fs::try_exists(self.folder.join(MARK)).await.unwrap_or(false);
        self.was_there.store(is_there, Relaxed);
        is_there
    }

    async fn check_there(&self) -> object_store::Result<()> {
        if self.look().await {
            return Ok(());
        }
        let source = Box::new(NotThere(self.folder.display().to_string()));
        Err(object_store::Error::Generic { store: "mass storage", source })
    }

    /// Whether anything was ever put there.
    #[must_use]
    pub fn has_segments(&self) -> bool {
        self.folder.join("segments").exists()
    }

    /// From now on the folder is mass storage.
    ///
    /// # Errors
    /// The file system's.
    pub fn mark(&self) -> std::io::Result<()> {
        fs::File::create(self.folder.join(MARK))?.sync_all()?;
        fs::File::open(&self.folder)?.sync_all()?;
        self.was_there.store(true, Relaxed);
        Ok(())
    }

    /// Store a segment; durable when this returns.
    ///
    /// # Errors
    /// The device's.
    pub async fn put(&self, id: &SegmentId, sealed: Bytes) -> object_store::Result<()> {
        self.check_there().await?;
        self.store.put(&place(id), sealed.into()).await.map(drop)
    }

    /// Read a segment.
    ///
    /// # Errors
    /// `NotFound`, or the device's.
    pub async fn get(&self, id: &SegmentId) -> object_store::Result<Bytes> {
        self.store.get(&place(id)).await?.bytes().await
    }

    /// Length of a segment, or `None` if it is not there.
    ///
    /// # Errors
    /// The device's.
    pub async fn len(&self, id: &SegmentId) -> object_store::Result<Option<u64>> {
        match self.store.head(&place(id)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Delete a segment; one that is not there counts as deleted.
    ///
    /// # Errors
    /// The device's.
    pub async fn delete(&self, id: &SegmentId) -> object_store::Result<()> {
        // Where nothing is mounted, nothing is deleted.
        self.check_there().await?;
        match self.store.delete(&place(id)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result,
        }
    }
}
