//! Reports of installations that wait here for the controller, a file each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use images::wire;
use protocol::io::credentials::{create_private_dir, write_private};
use protocol::io::statement::Statement;
use protocol::io::tls::Bearer;
use protocol::limits::REPORTS_TOGETHER;
use protocol::message::image::LeftReport;

/// Reports that wait at the most: a machine that reports without end must not fill its neighbours' disks.
const WAITING_MAX: usize = 2000;

/// Reports of one member.
const OF_ONE_MAX: usize = 20;

/// Keeps reports.
pub struct ReportKeeper(PathBuf);

impl ReportKeeper {
    /// In a stash's folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self(folder.join("reports"))
    }

    fn names(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_none()).collect()
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names().len()
    }

    /// Keep one; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's, or if too many wait.
    pub fn keep(&self, from: &Bearer, statement: &Statement) -> io::Result<()> {
        create_private_dir(&self.0)?;
        // Installers of one deployment have a limit together: whoever admits them can make many.
        let one = || from.identity.node.to_string();
        let (all, prefix) = (self.names(), from.deployment.map_or_else(one, |id| format!("deployment-{id}")));
        let is_from = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{prefix}-")))
        };
        // What must not be lost has room of its own: that a deployment is done.
        let is_success = wire::decode::<LeftReport>(&statement.bytes).is_ok_and(|left| left.is_success());
        let (waiting_max, of_one_max) =
            if is_success { (WAITING_MAX * 2, OF_ONE_MAX * 2) } else { (WAITING_MAX, OF_ONE_MAX) };
        if all.len() >= waiting_max || all.iter().filter(is_from).count() >= of_one_max {
            return Err(io::Error::other("too many reports wait here already"));
        }
        write_private(&self.0.join(format!("{prefix}-{}", HEXLOWER.encode(&statement.id()))), &wire::encode(statement))
    }

    /// Some that wait. One that cannot be read is put aside.
    #[must_use]
    pub fn some(&self) -> Vec<Statement> {
        let mut some = Vec::new();
        for path in self.names().into_iter().take(REPORTS_TOGETHER) {
            match fs::read(&path).ok().and_then(|bytes| wire::decode(&bytes).ok()) {
                Some(statement) => some.push(statement),
                None => drop(fs::rename(&path, path.with_extension("damaged"))),
            }
        }
        some
    }

    /// The controller has these.
    pub fn forget(&self, statements: &[Statement]) {
        let ids: Vec<String> = statements.iter().map(|statement| HEXLOWER.encode(&statement.id())).collect();
        for path in self.names() {
            if path.file_name().is_some_and(|name| ids.iter().any(|id| name.to_string_lossy().ends_with(id))) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = ReportKeeper::at(dir.path());
        assert_eq!((keeper.count(), keeper.some()), (0, Vec::new()));
        create_private_dir(&dir.path().join("reports")).unwrap();
        fs::write(dir.path().join("reports/aa"), b"noise").unwrap();
        assert_eq!((keeper.count(), keeper.some().len(), keeper.count()), (1, 0, 0));
    }
}
