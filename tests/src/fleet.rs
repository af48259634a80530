//! A fleet of the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use xtask::fleet::{Fleet, Plan};

/// The folder of the programs, compiled as the test is; they are built once if nobody did.
///
/// # Panics
/// If they do not build.
pub fn programs() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| xtask::shell::build(!cfg!(debug_assertions)).expect("the programs build"))
}

/// Size of a stash: small, because all of it is taken from the disk, for each of the dozens that tests start at once.
pub const STASH_SIZE: &str = "512MiB";

/// Hours that are far from now, as a policy's window.
///
/// # Panics
/// If there is no `date`.
#[must_use]
pub fn closed() -> String {
    let out = Command::new("date").arg("+%H").output().expect("date");
    let now: u32 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("an hour");
    format!("{:02}:00-{:02}:00", (now + 11) % 24, (now + 12) % 24)
}

/// A fleet in a temporary folder.
pub struct TestFleet {
    /// The fleet. It goes before its folder does.
    pub fleet: Fleet,
    /// Its folder, for more files.
    pub dir: tempfile::TempDir,
}

/// Start a fleet of so many stashes.
///
/// # Panics
/// If it does not come up.
#[must_use]
pub fn start(stashes: usize) -> TestFleet {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plan = Plan { stashes, size: STASH_SIZE.into(), heartbeat_ms: 300, ..Plan::default() };
    let fleet = Fleet::start(programs(), &dir.path().join("array"), &plan).expect("a fleet starts");
    TestFleet { fleet, dir }
}

impl TestFleet {
    /// A file in the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
