//! Shares of images' keys, and the record of who got one.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use images::keys::HolderSecret;
use images::shares::KeyShare;
use images::{ManifestId, wire};
use protocol::directory::Directory;
use protocol::io::credentials::write_private;
use protocol::io::tls::Bearer;
use protocol::message::store::GetShare;

/// An audit record that is longer is put aside once, and replaces the one that was.
const AUDIT_MAX: u64 = 4 << 20;

/// A share, and what tokens for deployments follow from.
type Kept = (KeyShare, HolderSecret);

/// Keeps shares, in one small file that is replaced as a whole.
pub struct ShareKeeper {
    file: PathBuf,
    folder: PathBuf,
    held: Mutex<BTreeMap<ManifestId, Kept>>,
}

fn encode(held: &BTreeMap<ManifestId, Kept>) -> Vec<u8> {
    let mut bytes = wire::encode(held);
    let check = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&check);
    bytes
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<ManifestId, Kept>> {
    let (value, check) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(value).as_bytes() != check {
        return None;
    }
    wire::decode(value).ok()
}

impl ShareKeeper {
    /// Read what was kept in a folder.
    ///
    /// # Errors
    /// The file system's. What is damaged is put aside.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("shares");
        let held = match fs::read(&file) {
            Ok(bytes) => match decode(&bytes) {
                Some(held) => held,
                None => {
                    // Other stashes have shares enough; the fragments here are worth more than these.
                    let aside = file.with_extension("damaged");
                    fs::rename(&file, &aside).with_context(|| format!("put {} aside", file.display()))?;
                    tracing::error!(aside = %aside.display(), "the shares of images' keys are damaged and were put aside");
                    BTreeMap::new()
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        Ok(Self { file, folder: folder.into(), held: Mutex::new(held) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ManifestId, Kept>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Keep a share; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn put(&self, manifest: ManifestId, share: Kept) -> std::io::Result<()> {
        let mut held = self.lock();
        let mut next = held.clone();
        next.insert(manifest, share);
        write_private(&self.file, &encode(&next))?;
        *held = next;
        Ok(())
    }

    /// A share.
    #[must_use]
    pub fn get(&self, manifest: ManifestId) -> Option<Kept> {
        self.lock().get(&manifest).cloned()
    }

    /// Forget shares of images that were published in `before` and are not any more.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn forget_removed(&self, before: &Directory, now: &Directory) -> std::io::Result<()> {
        let is_there = |manifest: ManifestId| now.heads.iter().any(|(_, head)| head.manifest == manifest);
        let gone: Vec<ManifestId> =
            before.heads.iter().map(|(_, head)| head.manifest).filter(|manifest| !is_there(*manifest)).collect();
        let mut held = self.lock();
        if !gone.iter().any(|manifest| held.contains_key(manifest)) {
            return Ok(());
        }
        let mut next = held.clone();
        next.retain(|manifest, _| !gone.contains(manifest));
        write_private(&self.file, &encode(&next))?;
        *held = next;
        Ok(())
    }

    /// Write down who asked for a share, and what became of it. Durable when this returns: no share leaves without a record.
    ///
    /// # Errors
    /// The file system's.
    pub fn record(&self, who: &Bearer, ask: &GetShare, refused: Option<&str>) -> std::io::Result<()> {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let line = serde_json::json!({
            "unix_s": unix_s, "role": who.identity.role.as_str(), "node": who.identity.node.to_string(),
            "host": who.host, "deployment": who.deployment, "admitted_by": who.issuer.map(|node| node.to_string()),
            "image": ask.image.to_string(), "manifest": ask.manifest.to_string(), "refused": refused,
        });
        // Whoever is refused without end must not push out who was not.
        let log = self.folder.join(if refused.is_some() { "refused.log" } else { "audit.log" });
        let _one_at_a_time = self.lock();
        if fs::metadata(&log).is_ok_and(|m| m.len() > AUDIT_MAX) {
            fs::rename(&log, log.with_extension("log.1"))?;
        }
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::keys::ManifestKey;
    use images::shares;

    #[test]
    fn shares_are_kept_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let share = shares::split(&ManifestKey([1; 32]), 2, 3, &[2; 32]).unwrap().remove(0);
        let share = (share, HolderSecret([5; 32]));
        let manifest = ManifestId([3; 32]);
        ShareKeeper::open(dir.path()).unwrap().put(manifest, share.clone()).unwrap();
        let again = ShareKeeper::open(dir.path()).unwrap();
        assert_eq!((again.get(manifest), again.get(ManifestId([4; 32]))), (Some(share), None));
        let mut bytes = fs::read(dir.path().join("shares")).unwrap();
        bytes[5] ^= 1;
        fs::write(dir.path().join("shares"), bytes).unwrap();
        assert_eq!(ShareKeeper::open(dir.path()).unwrap().count(), 0);
        assert!(dir.path().join("shares.damaged").exists());
    }
}
