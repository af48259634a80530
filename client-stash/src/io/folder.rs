//! The folder of a stash: credentials, settings, the hidden file, the newest directory.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use protocol::identity::Role;
use protocol::io::credentials::{self, Credentials};
use protocol::io::directory::DirectoryKeeper;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::control;
use super::file::FileStorage;
use super::reports::ReportKeeper;
use super::shares::ShareKeeper;
use super::switch::Switch;
use super::words::WordKeeper;
use crate::limits::{REGION_LEN, REGIONS_MAX, REGIONS_MIN};
use crate::manners::{Floors, Limit};
use crate::store::Store;

/// What the owner of the machine chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes offered.
    pub size: u64,
    /// Bytes of the disk that stay free: nothing new is taken below.
    pub min_free: u64,
    /// Bytes that stay free in other respects, if they are not what follows from `min_free`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floors: Option<Floors>,
    /// Where the stash file is, if not in this folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What this machine is called by its system, hashed: a folder that was copied to another one is noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

impl Settings {
    /// Bytes of the disk that stay free.
    #[must_use]
    pub fn floors(&self) -> Floors {
        self.floors.unwrap_or(Floors::below(self.min_free)).in_order()
    }
}

const PAUSED: &str = "paused";
const LEAVING: &str = "leaving";
const LEAVING_AT_ONCE: &str = "leaving-at-once";
/// Says that a stash was here and left; the unit of its service does not start with it.
const LEFT: &str = "left";
/// What it says when the stash file was removed, and not yet all the rest.
const FILE_GONE: &[u8] = b"the stash file was removed\n";
/// What a stash keeps beside its file and its credentials.
const OWN_FILES: [&str; 16] = [
    "audit.log",
    "audit.log.1",
    "refused.log",
    "refused.log.1",
    LEAVING_AT_ONCE,
    ".ballast",
    ".control",
    ".trackerignore",
    "CACHEDIR.TAG",
    "directory",
    PAUSED,
    LEAVING,
    "scrub.json",
    "shares",
    "shares.damaged",
    "settings.json",
];
/// The same, folders.
const OWN_FOLDERS: [&str; 2] = ["reports", "deployments"];

/// What reading a medium says that is not there: it may come back.
const AWAY: [Errno; 11] = [
    Errno::NOENT,
    Errno::NXIO,
    Errno::NODEV,
    Errno::STALE,
    Errno::IO,
    Errno::REMOTEIO,
    Errno::NOTCONN,
    Errno::CONNRESET,
    Errno::TIMEDOUT,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
];

/// A stash's folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A path that is too long for a socket is no trouble but for whoever wants to ask the service.
fn socket_elsewhere(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
}

fn free_at(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Where a stash lives unless told otherwise.
#[must_use]
pub fn default_folder() -> PathBuf {
    "/var/lib/coe-stash".into()
}

impl Folder {
    /// A folder by its path.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn credentials_file(&self) -> PathBuf {
        credentials::file_of(&self.0, Role::Stash)
    }

    fn settings_file(&self) -> PathBuf {
        self.0.join("settings.json")
    }

    /// Where the stash file is.
    fn stash_file(&self) -> PathBuf {
        self.settings().map_or_else(|_| self.own_stash_file(), |settings| self.file_of(&settings))
    }

    /// Where the stash file is, by these settings.
    #[must_use]
    pub fn file_of(&self, settings: &Settings) -> PathBuf {
        settings.file.clone().unwrap_or_else(|| self.own_stash_file())
    }

    /// Whether the stash file was in this folder, and somebody removed it.
    #[must_use]
    pub fn has_lost_its_file(&self) -> bool {
        let is_own = self.settings().is_ok_and(|settings| settings.file.is_none());
        is_own && matches!(fs::exists(self.own_stash_file()), Ok(false))
    }

    fn own_stash_file(&self) -> PathBuf {
        self.0.join(".stash")
    }

    /// Whether what is open is what lies where the stash file should.
    #[must_use]
    pub fn is_stash_file(&self, storage: &FileStorage) -> bool {
        storage.is_at(&self.stash_file())
    }

    /// Wait until the stash file is there: its medium may not be plugged in yet.
    pub async fn wait_for_stash_file(&self) {
        let mut was_told = false;
        while let Err(error) = FileStorage::look(&self.stash_file()) {
            let is_away =
                error.raw_os_error().is_some_and(|code| AWAY.iter().any(|errno| errno.raw_os_error() == code));
            if !self.is_joined() || !is_away {
                return;
            }
            if !std::mem::replace(&mut was_told, true) {
                let file = self.stash_file();
                tracing::warn!(file = %file.display(), "the stash file is away: its medium is unplugged, or it was moved; waiting for it");
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Whether somebody joined here before. Where that cannot be said, nobody may take the place of what is there.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.credentials_file().try_exists().unwrap_or(true)
    }

    /// Make the folder, and check that a stash of `size` bytes can be made in it, or at `file`.
    ///
    /// # Errors
    /// If the size is not possible, or the file system's.
    pub fn prepare(&self, size: u64, file: Option<&Path>) -> anyhow::Result<u32> {
        let regions = u32::try_from(size / REGION_LEN).context("a stash of at most 16 TiB")?;
        if !(REGIONS_MIN..=REGIONS_MAX).contains(&regions) {
            bail!("a stash has {} MiB to 16 TiB", (u64::from(REGIONS_MIN) * REGION_LEN) >> 20);
        }
        credentials::create_private_dir(&self.0).with_context(|| format!("create {}", self.0.display()))?;
        // Everything in it is removed one day.
        let is_own = |name: &std::ffi::OsStr| {
            [LEFT, ".stash", "lost+found"].iter().any(|own| name == *own) || OWN_FILES.iter().any(|own| name == *own)
        };
        let mut there = fs::read_dir(&self.0)?.flatten().map(|entry| entry.file_name());
        if let Some(name) = there.find(|name| !is_own(name)) {
            bail!(
                "{} has other things in it ({}): choose a folder of its own with --dir",
                self.0.display(),
                name.display()
            );
        }
        control::check_socket(&self.0).or_else(socket_elsewhere).with_context(|| {
            format!(
                "{} cannot have a socket in it, as on some network file systems: choose a --dir on a disk of this machine, \
                 and keep only the stash file there, with --file",
                self.0.display()
            )
        })?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("keep others out of {}", self.0.display()))?;
        match fs::remove_file(self.0.join(LEFT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let own = self.own_stash_file();
        let path = file.unwrap_or(&own);
        let on = path.parent().unwrap_or(Path::new("/"));
        let free = free_at(on).with_context(|| format!("look at {}", on.display()))?;
        if free < size {
            bail!("{} has {} MiB free: {} MiB do not fit", on.display(), free >> 20, size >> 20);
        }
        // Without credentials, what an interrupted join left here belongs to nobody.
        if file.is_some_and(Path::exists) {
            bail!("{} is there already: choose a name that is free", path.display());
        }
        match fs::remove_file(own) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("replace the stash file"),
            _ => Ok(regions),
        }
    }

    /// Make everything in the folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self, member: &Credentials, settings: &Settings) -> anyhow::Result<()> {
        let regions = self.prepare(settings.size, settings.file.as_deref())?;
        let path = settings.file.clone().unwrap_or_else(|| self.own_stash_file());
        // Backup programs skip folders with this signature (https://bford.info/cachedir/).
        credentials::write_private(
            &self.0.join("CACHEDIR.TAG"),
            b"Signature: 8a477f597d28d172789f06886806bc55\n# Pieces of the array; they are rebuilt, not backed up.\n",
        )?;
        // Of indexers: Tracker and LocalSearch leave a folder with such a file alone.
        credentials::write_private(&self.0.join(".trackerignore"), b"")?;
        let storage = FileStorage::open(&path, true).context("create the stash file")?;
        super::file::hide(&self.0);
        super::file::hide(&path);
        let created = Store::create(storage, member.identity.array, member.identity.node, regions);
        if created.is_err() {
            // What was reserved in part is its owner's again.
            let _ = fs::remove_file(&path);
        }
        drop(created.context("reserve the stash's space on the disk")?);
        self.save_settings(&Settings { machine: self.machine(member), ..settings.clone() })?;
        // Last: with credentials the folder counts as joined.
        member.save(&self.credentials_file())?;
        Ok(())
    }

    /// Whether the space of a new stash file is really reserved; not every network file system can.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        FileStorage::is_reserved(&self.stash_file())
    }

    /// Whether the stash file can be opened by others on this machine, because its file system does not keep who may.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        FileStorage::is_open_to_others(&self.stash_file())
    }

    /// Keep settings.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_settings(&self, settings: &Settings) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(settings)?;
        credentials::write_private(&self.settings_file(), &text).context("write the settings")?;
        // An admin may have said so; the service has a user of its own.
        let owner = fs::metadata(&self.0)?;
        let own = fs::metadata(self.settings_file())?;
        if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) {
            chown(self.settings_file(), Some(owner.uid()), Some(owner.gid()))
                .context("give the settings to the service")?;
        }
        Ok(())
    }

    /// Read the settings.
    ///
    /// # Errors
    /// If nobody joined here, or the file is damaged.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let path = self.settings_file();
        let bytes = fs::read(&path).with_context(|| format!("read {}: was `coe-stash join` run?", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))
    }

    /// Read the credentials.
    ///
    /// # Errors
    /// If nobody joined here, or the file is damaged.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        Credentials::load(&self.credentials_file()).with_context(|| match self.is_joined() {
            true => format!("read the credentials in {}", self.0.display()),
            false => format!("{} has not joined an array: run `coe-stash join TICKET`", self.0.display()),
        })
    }

    /// Keep fresh credentials.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_credentials(&self, member: &Credentials) -> anyhow::Result<()> {
        Ok(member.save(&self.credentials_file())?)
    }

    /// A hash of what this machine is called by its system (machine-id(5)), if it is called anything.
    fn machine(&self, member: &Credentials) -> Option<String> {
        let id = fs::read("/etc/machine-id").ok().filter(|id| id.len() > 16)?;
        let mut hasher = blake3::Hasher::new_derive_key("coe-stash machine 1");
        hasher.update(&member.identity.node.0).update(&id);
        Some(hasher.finalize().to_hex().to_string())
    }

    /// Check that this is the machine that joined; or, if its owner says that it is, remember what it is called now.
    ///
    /// # Errors
    /// If it is another one: two machines with one stash would take each other's pieces for lost.
    pub fn check_machine(&self, member: &Credentials, is_same: bool) -> anyhow::Result<()> {
        let mut settings = self.settings()?;
        let now = self.machine(member);
        if settings.machine == now || now.is_none() {
            return Ok(());
        }
        if settings.machine.is_some() && !is_same {
            bail!(
                "{} was copied here from another machine: remove it and join with a ticket of its own. If this is the same machine \
                 with a new system, run `coe-stash serve --same-machine` once",
                self.0.display()
            );
        }
        settings.machine = now;
        self.save_settings(&settings)
    }

    /// Open the stash file.
    ///
    /// # Errors
    /// If another process has it, or it is not this member's.
    pub fn open_store(&self, member: &Credentials) -> anyhow::Result<Store<FileStorage>> {
        let path = self.stash_file();
        let storage = FileStorage::open(&path, false).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => {
                anyhow::anyhow!("another coe-stash serves {}", self.0.display())
            }
            _ => anyhow::Error::new(e).context(format!("open {}", path.display())),
        })?;
        let store = Store::open(storage, member.identity.array, member.identity.node);
        store.with_context(|| format!("open {}", path.display()))
    }

    /// The newest directory that this member has seen.
    #[must_use]
    pub fn directory(&self, member: &Credentials) -> DirectoryKeeper {
        DirectoryKeeper::open(self.0.join("directory"), member)
    }

    /// Reports that wait for the controller.
    #[must_use]
    pub fn reports(&self) -> ReportKeeper {
        ReportKeeper::at(&self.0)
    }

    /// Last words of deployments.
    #[must_use]
    pub fn words(&self) -> WordKeeper {
        WordKeeper::at(&self.0)
    }

    /// Whether the owner wants the stash to step aside.
    #[must_use]
    pub fn pause(&self) -> Switch {
        Switch::at(&self.0, PAUSED)
    }

    /// Whether the owner wants the stash to leave the array.
    #[must_use]
    pub fn leave(&self) -> Switch {
        Switch::at(&self.0, LEAVING)
    }

    /// Whether nobody shall wait for what it holds.
    #[must_use]
    pub fn leave_at_once(&self) -> Switch {
        Switch::at(&self.0, LEAVING_AT_ONCE)
    }

    /// Whether it has left the array, and what is still here is to be removed.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.0.join(LEFT).exists() && self.is_joined()
    }

    /// Remove the stash file, if it is this stash's, and everything else that a stash keeps in its folder. What somebody else put there
    /// stays. Where the folder itself cannot be removed, a note stays that a stash was here and left.
    ///
    /// # Errors
    /// The file system's, or if the stash file is away; then it can be tried again.
    pub fn erase(&self, is_own_file: bool) -> anyhow::Result<()> {
        // With half of it, a service would wait for its file for ever.
        let is_file_gone = fs::read(self.0.join(LEFT)).is_ok_and(|said| said == FILE_GONE);
        if !is_file_gone {
            credentials::write_private(&self.0.join(LEFT), b"")?;
        }
        let gone = |removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let file = self.settings().ok().and_then(|settings| settings.file);
        if let Some(file) = file.filter(|file| !is_file_gone && (!is_own_file || !file.exists())) {
            bail!(
                "{} is away, or is not this stash's: plug its medium in, or remove it yourself and then {}",
                file.display(),
                self.0.display()
            );
        }
        if !is_file_gone {
            gone(fs::remove_file(self.stash_file()))?;
            credentials::write_private(&self.0.join(LEFT), FILE_GONE)?;
        }
        for name in OWN_FOLDERS {
            gone(fs::remove_dir_all(self.0.join(name)))?;
        }
        for name in OWN_FILES {
            gone(fs::remove_file(self.0.join(name)))?;
        }
        // Last: without credentials nobody has joined here. A service's own user may not remove the folder itself.
        gone(fs::remove_file(self.credentials_file()))?;
        gone(fs::remove_file(self.0.join(LEFT)))?;
        if fs::remove_dir(&self.0).is_err() {
            credentials::write_private(&self.0.join(LEFT), b"")?;
        }
        Ok(())
    }

    /// Where it is noted when everything was read again.
    #[must_use]
    pub fn scrub_file(&self) -> PathBuf {
        self.0.join("scrub.json")
    }

    /// Shares of images' keys.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn shares(&self) -> anyhow::Result<ShareKeeper> {
        ShareKeeper::open(&self.0)
    }

    /// Free bytes of the file system, as an unprivileged user sees them.
    ///
    /// # Errors
    /// The file system's.
    pub fn free_bytes(&self) -> io::Result<u64> {
        free_at(self.stash_file().parent().unwrap_or(Path::new("/")))
    }

    /// Free bytes of the disk that the folder is on.
    ///
    /// # Errors
    /// The file system's.
    pub fn own_free_bytes(&self) -> io::Result<u64> {
        free_at(&self.0)
    }

    /// Bytes of the disk that the stash file is on, or will be.
    ///
    /// # Errors
    /// The file system's.
    pub fn disk_bytes(&self, file: Option<&Path>) -> io::Result<u64> {
        let existing = file.unwrap_or(&self.0).ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(existing)?;
        Ok(stat.f_blocks * stat.f_frsize)
    }

    /// The default for [`Settings::min_free`]: a tenth of the disk, and 10 GiB at the most that is sensible for it.
    ///
    /// # Errors
    /// The file system's.
    pub fn default_min_free(&self, file: Option<&Path>) -> io::Result<u64> {
        let total = self.disk_bytes(file)?;
        Ok((total / 10).max(10 << 30).min(total / 2))
    }
}
