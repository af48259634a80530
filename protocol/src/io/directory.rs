//! The newest directory that a member has seen, in a file and in memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use images::ArrayId;
use images::manifest::ArrayPublicKey;
use tokio::sync::watch;

use super::credentials::{Credentials, write_private};
use crate::directory::{DirectoryError, Mark, SignedDirectory, Update};
use crate::message::member::{GetDirectory, HaveDirectory, OfferDirectory, TheDirectory};

/// Why a directory is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It is not one that follows the one that is here.
    #[error(transparent)]
    Refused(#[from] DirectoryError),
    /// The file system failed.
    #[error("keep the directory in {0}")]
    File(PathBuf, #[source] std::io::Error),
}

/// Keeps the newest directory; a crash leaves the one before or the new one.
pub struct DirectoryKeeper {
    file: PathBuf,
    array: ArrayId,
    key: ArrayPublicKey,
    /// One update is taken at a time; readers do not wait for it.
    taking: Mutex<()>,
    held: watch::Sender<Option<Arc<SignedDirectory>>>,
}

impl DirectoryKeeper {
    /// Read what was kept in a file. A file that is damaged counts as none: the directory comes again from others.
    #[must_use]
    pub fn open(file: PathBuf, member: &Credentials) -> Self {
        let (array, key) = (member.identity.array, member.array_key);
        let held = match std::fs::read(&file) {
            Ok(bytes) => match SignedDirectory::open(&bytes, array, &key) {
                Ok(held) => Some(Arc::new(held)),
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "the directory that was kept cannot be believed");
                    None
                }
            },
            Err(_) => None,
        };
        Self { file, array, key, taking: Mutex::default(), held: watch::Sender::new(held) }
    }

    /// The same, in the folder of a member that keeps nothing else of the array.
    #[must_use]
    pub fn in_home(home: &Path, member: &Credentials) -> Self {
        Self::open(home.join("directory"), member)
    }

    /// The newest.
    #[must_use]
    pub fn held(&self) -> Option<Arc<SignedDirectory>> {
        self.held.borrow().clone()
    }

    /// The newest, and every newer one from now on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<SignedDirectory>>> {
        self.held.subscribe()
    }

    /// Its mark.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.held.borrow().as_ref().map(|held| held.mark())
    }

    /// Take an update: verified, newer, and kept durably before it counts. Blocks on the disk.
    ///
    /// # Errors
    /// [`KeepError`]; then what was here stays.
    pub fn take(&self, update: Update) -> Result<Arc<SignedDirectory>, KeepError> {
        let _one_at_a_time = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let new = SignedDirectory::take(self.held().as_deref(), update, self.array, &self.key)?;
        write_private(&self.file, &new.encode()).map_err(|error| KeepError::File(self.file.clone(), error))?;
        let new = Arc::new(new);
        self.held.send_replace(Some(new.clone()));
        Ok(new)
    }

    /// Answer somebody who asks what is newer.
    #[must_use]
    pub fn tell(&self, ask: &GetDirectory) -> TheDirectory {
        let held = self.held();
        let update = held.as_ref().and_then(|held| held.update_for(ask.have));
        TheDirectory { mark: held.map(|held| held.mark()), update }
    }

    /// Take what somebody offers, if it is any good. Whoever offers sees by the mark what became of it.
    #[must_use]
    pub fn hear(&self, offer: OfferDirectory) -> HaveDirectory {
        match self.take(offer.update) {
            Ok(new) => {
                tracing::info!(epoch = %new.mark().epoch, term = new.mark().term, "newer directory from a member")
            }
            Err(KeepError::Refused(DirectoryError::Stale(_) | DirectoryError::Base)) => {}
            Err(error) => tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "directory refused"),
        }
        HaveDirectory { mark: self.mark() }
    }
}
