//! What the owner of this machine wants of the stash until they want something else: to step aside, or to leave. It holds across a restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::io::credentials::write_private;

/// A switch.
pub struct Switch {
    file: PathBuf,
    is_on: AtomicBool,
}

impl Switch {
    /// As it was left in a stash's folder, in a file of this name.
    #[must_use]
    pub fn at(folder: &Path, name: &str) -> Self {
        let file = folder.join(name);
        Self { is_on: AtomicBool::new(file.exists()), file }
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Turn it on or off; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn set(&self, on: bool) -> io::Result<()> {
        if on {
            write_private(&self.file, b"")?;
        } else {
            match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.is_on.store(on, Ordering::Relaxed);
        Ok(())
    }
}
