//! The last word of each deployment's installer, a file each: whether it is done, and if not, what the next installer must know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use images::wire;
use protocol::directory::Directory;
use protocol::io::credentials::{create_private_dir, write_private};
use protocol::io::statement::Statement;
use protocol::message::image::{LeftReport, Word};

/// Deployments of which a word is kept: noise must not fill a neighbour's disk.
const KEPT_MAX: usize = 4096;

/// Keeps words.
pub struct WordKeeper(PathBuf);

fn said(statement: &Statement) -> Option<LeftReport> {
    wire::decode(&statement.bytes).ok()
}

fn is_done(word: &Word) -> bool {
    matches!(word, Word::Ended(report) if report.error.is_none())
}

impl WordKeeper {
    /// In a stash's folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self(folder.join("deployments"))
    }

    fn file(&self, deployment: u32) -> PathBuf {
        self.0.join(deployment.to_string())
    }

    /// The last word of a deployment. A file that is damaged counts as none.
    #[must_use]
    pub fn last(&self, deployment: u32) -> Option<Statement> {
        wire::decode(&fs::read(self.file(deployment)).ok()?).ok()
    }

    /// Whether a deployment is done.
    #[must_use]
    pub fn is_done(&self, deployment: u32) -> bool {
        self.last(deployment).and_then(|last| said(&last)).is_some_and(|left| is_done(&left.word))
    }

    /// Keep a verified word, unless a later one is here, or the deployment is done; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's, or if words of too many deployments are here.
    pub fn keep(&self, deployment: u32, statement: &Statement) -> io::Result<()> {
        let Some(new) = said(statement) else { return Err(io::Error::other("not a word of an installer")) };
        if let Some(last) = self.last(deployment).and_then(|last| said(&last))
            && (is_done(&last.word) || (last.at_unix_ms > new.at_unix_ms && !is_done(&new.word)))
        {
            return Ok(());
        }
        create_private_dir(&self.0)?;
        if !self.file(deployment).exists() && fs::read_dir(&self.0)?.count() >= KEPT_MAX {
            return Err(io::Error::other("words of too many deployments are here"));
        }
        write_private(&self.file(deployment), &wire::encode(statement))
    }

    /// Forget deployments that `before` planned and that are not planned any more.
    pub fn forget_closed(&self, before: &Directory, now: &Directory) {
        let planned = |directory: &Directory| -> Vec<u32> {
            directory.hosts.iter().filter_map(|(_, host)| Some(host.planned.as_ref()?.id)).collect()
        };
        let open = planned(now);
        for id in planned(before).into_iter().filter(|id| !open.contains(id)) {
            let _ = fs::remove_file(self.file(id));
        }
    }
}
