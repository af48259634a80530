//! How a directory gets from member to member: what changed since the epoch that the other has, and the signature of the whole.

use images::ArrayId;
use images::manifest::{ArrayPublicKey, Signed};
use images::wire;
use serde::{Deserialize, Serialize};

use super::{Directory, DirectoryError, Mark, PURPOSE, Verdict};

/// What changed from one epoch to another. The signature is of the directory that results, so a member that passes changes on can
/// neither add nor leave out any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The directory that the changes are to be applied to; `None`: they are the whole directory.
    pub from: Option<Mark>,
    /// The new directory, with only those rows that changed.
    pub changes: Directory,
    /// Of the whole new directory.
    pub signature: Vec<u8>,
}

/// A directory that the array signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDirectory {
    directory: Directory,
    signature: Vec<u8>,
    mark: Mark,
}

impl SignedDirectory {
    pub(super) fn new(directory: Directory, signature: Vec<u8>) -> Self {
        let mark = directory.mark();
        Self { directory, signature, mark }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What tells it from every other.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// All of it, for somebody who has none, or to keep.
    #[must_use]
    pub fn whole(&self) -> Update {
        Update { from: None, changes: self.directory.clone(), signature: self.signature.clone() }
    }

    /// What somebody needs who has the directory of this mark; `None` if that one is not older than this.
    #[must_use]
    pub fn update_for(&self, theirs: Option<Mark>) -> Option<Update> {
        let Some(theirs) = theirs else { return Some(self.whole()) };
        match self.directory.compare(self.mark, theirs) {
            Verdict::Older if self.directory.has_passed(theirs) => {
                let (changes, signature) = (self.directory.since(theirs.epoch), self.signature.clone());
                Some(Update { from: Some(theirs), changes, signature })
            }
            Verdict::Older => Some(self.whole()),
            _ => None,
        }
    }

    /// Verify an update, and be at the directory that it leads to. `held` is the newest so far.
    ///
    /// # Errors
    /// [`DirectoryError`]: forged, not newer, of a line that is not the held one's, or changes of another directory than the held
    /// one. Then the held one stays.
    pub fn take(
        held: Option<&Self>,
        update: Update,
        array: ArrayId,
        key: &ArrayPublicKey,
    ) -> Result<Self, DirectoryError> {
        let directory = match (update.from, held) {
            (None, _) => update.changes,
            (Some(from), Some(held)) if from == held.mark => held.directory.applied(update.changes),
            (Some(_), _) => return Err(DirectoryError::Base),
        };
        let signed = Signed { bytes: wire::encode(&directory), signature: update.signature };
        signed.verify(PURPOSE, key)?;
        directory.check(array)?;
        let new = Self::new(directory, signed.signature);
        match held.map(|held| new.directory.compare(new.mark, held.mark)) {
            None | Some(Verdict::Older) => Ok(new),
            Some(Verdict::Fork) => Err(DirectoryError::Fork(new.mark)),
            Some(Verdict::Same | Verdict::Newer) => Err(DirectoryError::Stale(new.mark)),
        }
    }

    /// Read one that was kept.
    ///
    /// # Errors
    /// [`DirectoryError`], as for one that somebody sent.
    pub fn open(bytes: &[u8], array: ArrayId, key: &ArrayPublicKey) -> Result<Self, DirectoryError> {
        Self::take(None, wire::decode(bytes)?, array, key)
    }

    /// To be kept.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(&self.whole())
    }
}
