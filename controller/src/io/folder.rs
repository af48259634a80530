//! The controller's folder: authority, settings, catalog, mass storage.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use protocol::io::credentials::{create_private_dir, write_private};
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Secrets};
use super::kit::{self, NewKit};

/// What the admin chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Where to listen: UDP for members, TCP for people.
    pub listen: SocketAddr,
    /// Addresses that tickets name, `host:port`.
    pub addresses: Vec<String>,
    /// Folder of the mass storage; relative to the controller's.
    pub mass_storage: PathBuf,
    /// How often stashes report, milliseconds.
    pub heartbeat_ms: u32,
    /// How long segments of an unfinished publication are kept, seconds.
    pub keep_unfinished_s: u64,
    /// A stash that was silent for so many seconds, while most others were heard, is not expected back.
    #[serde(default = "gone_after_s")]
    pub gone_after_s: u64,
    /// What only the fleet suggests, and nobody said, must be so for this many seconds before images are cut anew for it.
    #[serde(default = "restripe_after_s")]
    pub restripe_after_s: u64,
}

/// A week: a fleet that is being rolled out changes every day.
fn restripe_after_s() -> u64 {
    7 * 24 * 3600
}

/// Two weeks: longer than a holiday.
fn gone_after_s() -> u64 {
    14 * 24 * 3600
}

/// A controller's folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// Where a controller lives unless told otherwise.
#[must_use]
pub fn default_folder() -> PathBuf {
    "/var/lib/coe-controller".into()
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

    fn secrets_file(&self) -> PathBuf {
        self.0.join("authority.json")
    }

    fn settings_file(&self) -> PathBuf {
        self.0.join("settings.json")
    }

    /// The catalog's file.
    #[must_use]
    pub fn catalog_file(&self) -> PathBuf {
        self.0.join("catalog.redb")
    }

    /// Whether there is an array here.
    #[must_use]
    pub fn holds_an_array(&self) -> bool {
        self.secrets_file().exists()
    }

    /// Make a new array, and the kit from which it can be recovered.
    ///
    /// # Errors
    /// If there is one already: an authority is never overwritten.
    pub fn create(&self, name: &str, settings: &Settings, kit_file: &Path) -> anyhow::Result<(Authority, NewKit)> {
        if self.holds_an_array() {
            bail!("{} holds an array already; choose another --dir", self.0.display());
        }
        let mut random = [0; 64];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let secrets = Secrets::create(name, &random)?;
        let authority = secrets.open()?;
        let kit = kit::create(&secrets, &authority)?;
        // First: an array whose kit could not be written, and whose phrase nobody saw, must not be used.
        create_private_dir(&self.0).with_context(|| format!("create {}", self.0.display()))?;
        write_private(kit_file, kit.file.as_bytes()).with_context(|| format!("write {}", kit_file.display()))?;
        self.write(&secrets, &kit.sealed_authority, settings)?;
        Ok((authority, kit))
    }

    /// Write what makes a controller. The secrets come last: with them the folder holds an array.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, secrets: &Secrets, sealed_authority: &[u8], settings: &Settings) -> anyhow::Result<()> {
        create_private_dir(&self.0).with_context(|| format!("create {}", self.0.display()))?;
        write_private(&self.settings_file(), &serde_json::to_vec_pretty(settings)?).context("write the settings")?;
        write_private(&self.sealed_authority_file(), sealed_authority).context("write the sealed secrets")?;
        write_private(&self.secrets_file(), &serde_json::to_vec_pretty(secrets)?).context("write the secrets")
    }

    fn sealed_authority_file(&self) -> PathBuf {
        self.0.join("authority.sealed")
    }

    /// The authority's secrets as clients keep them, sealed to the recovery kit.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sealed_authority(&self) -> anyhow::Result<Vec<u8>> {
        let file = self.sealed_authority_file();
        fs::read(&file).with_context(|| format!("read {}", file.display()))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, path: &Path) -> anyhow::Result<T> {
        let bytes =
            fs::read(path).with_context(|| format!("read {}: was `coe-controller init` run?", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))
    }

    /// Read the settings.
    ///
    /// # Errors
    /// If there is no array here, or the file is damaged.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        self.read(&self.settings_file())
    }

    /// Put the authority to work.
    ///
    /// # Errors
    /// If there is no array here, or the file is damaged.
    pub fn authority(&self) -> anyhow::Result<Authority> {
        Ok(self.read::<Secrets>(&self.secrets_file())?.open()?)
    }
}
