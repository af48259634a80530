//! The last word of each deployment's installer, a file each: whether it is done, and if not, what the next installer must know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use images::wire;
use protocol::directory::Directory;
use protocol::io::credentials::{create_private_dir, write_private};
use protocol::io::statement::Statement;
use protocol::message::image::LeftReport;

/// Deployments of which a word is kept: noise must not fill a neighbour's disk.
const KEPT_MAX: usize = 4096;

/// Keeps words.
pub struct WordKeeper {
    folder: PathBuf,
    /// One is written at a time, and compared with the one before.
    writing: Mutex<()>,
}

fn said(statement: &Statement) -> Option<LeftReport> {
    wire::decode(&statement.bytes).ok()
}

impl WordKeeper {
    /// In a stash's folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.join("deployments"), writing: Mutex::default() }
    }

    fn file(&self, deployment: u32) -> PathBuf {
        self.folder.join(deployment.to_string())
    }

    /// The last word of a deployment. A file that is damaged counts as none.
    #[must_use]
    pub fn last(&self, deployment: u32) -> Option<Statement> {
        wire::decode(&fs::read(self.file(deployment)).ok()?).ok()
    }

    /// Whether a deployment is done.
    #[must_use]
    pub fn is_done(&self, deployment: u32) -> bool {
        self.last(deployment).and_then(|last| said(&last)).is_some_and(|left| left.is_success())
    }

    /// Keep a verified word, unless a later one is here, or the deployment is done; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's, or if words of too many deployments are here.
    pub fn keep(&self, deployment: u32, statement: &Statement) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(new) = said(statement) else { return Err(io::Error::other("not a word of an installer")) };
        if let Some(last) = self.last(deployment).and_then(|last| said(&last))
            && (last.is_success() || (last.at_unix_ms > new.at_unix_ms && !new.is_success()))
        {
            return Ok(());
        }
        create_private_dir(&self.folder)?;
        if !self.file(deployment).exists() && fs::read_dir(&self.folder)?.count() >= KEPT_MAX {
            return Err(io::Error::other("words of too many deployments are here"));
        }
        write_private(&self.file(deployment), &wire::encode(statement))
    }

    /// Forget deployments that are not planned any more.
    pub fn forget_closed(&self, directory: &Directory) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_planned =
            |id: u32| directory.hosts.iter().any(|(_, host)| host.planned.as_ref().is_some_and(|p| p.id == id));
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| !is_planned(id)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
