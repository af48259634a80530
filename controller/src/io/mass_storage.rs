//! Mass storage: whole sealed segments on the controller's own devices, through `object_store`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
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

/// Mass storage, one device.
#[derive(Clone)]
pub struct MassStorage(Arc<dyn ObjectStore>);

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
        Ok(Self(Arc::new(LocalFileSystem::new_with_prefix(path)?.with_fsync(true))))
    }

    /// Store a segment; durable when this returns.
    ///
    /// # Errors
    /// The device's.
    pub async fn put(&self, id: &SegmentId, sealed: Bytes) -> object_store::Result<()> {
        self.0.put(&place(id), sealed.into()).await.map(drop)
    }

    /// Read a segment.
    ///
    /// # Errors
    /// `NotFound`, or the device's.
    pub async fn get(&self, id: &SegmentId) -> object_store::Result<Bytes> {
        self.0.get(&place(id)).await?.bytes().await
    }

    /// Length of a segment, or `None` if it is not there.
    ///
    /// # Errors
    /// The device's.
    pub async fn len(&self, id: &SegmentId) -> object_store::Result<Option<u64>> {
        match self.0.head(&place(id)).await {
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
        match self.0.delete(&place(id)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result,
        }
    }
}
