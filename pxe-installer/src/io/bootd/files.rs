//! The boot set: fetched from the array like any image, proven, and kept in a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use images::bundle;
use protocol::message::boot::BOOT_IMAGE;

use super::Bootd;
use crate::io::install::{Fit, install};
use crate::io::source::Source;
use crate::io::target::{Consent, Target};

/// How often a newer boot set is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often, until there is one.
const LOOK_EVERY_AT_FIRST: Duration = Duration::from_secs(5);

/// Where the boot set lies: a link, so that a newer one takes over at once.
pub(super) fn current(folder: &Path) -> PathBuf {
    folder.join("boot")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(current(folder)).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Fetch the newest boot set if it is not here.
pub(super) async fn refresh(bootd: &Bootd) -> anyhow::Result<()> {
    let source = Source::open(&bootd.machines.member(), &bootd.machines.directory, &[], BOOT_IMAGE, None).await;
    let result = match source {
        Ok(source) => fetch(bootd, &source).await,
        Err(error) => Err(error),
    };
    // Without the controller, what was proven before serves on.
    let names = names(&bootd.folder);
    let had = {
        let mut config = bootd.config.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut config.files, names.clone())
    };
    if had.is_empty() && !names.is_empty() {
        tracing::info!(files = names.join(" "), "boot set is here");
        if !names.iter().any(|n| n == "uki.efi") && bootd.range.is_none() {
            tracing::info!(
                "no uki.efi in the boot set: machines with Secure Boot need one beside another DHCP server, see docs/network-boot.md"
            );
        }
    }
    if names.is_empty() { result } else { result.or(Ok(())) }
}

async fn fetch(bootd: &Bootd, source: &Source) -> anyhow::Result<()> {
    let sets = bootd.folder.join("sets");
    let set = sets.join(source.root.content.to_string());
    if !set.exists() {
        fs::create_dir_all(&sets)?;
        let file = sets.join("download");
        let _ = fs::remove_file(&file);
        fs::File::create(&file)?.set_len(source.root.disk_len)?;
        let target = Target::open(&file, &source.root, &Consent { wipe: None })?;
        let (result, _) = install(source, target, Fit::KEEP, None, Arc::default()).await;
        result?;
        let unpacked = sets.join("unpacked");
        let _ = fs::remove_dir_all(&unpacked);
        fs::create_dir_all(&unpacked)?;
        for entry in bundle::unpack(&fs::read(&file)?)? {
            let path = unpacked.join(&entry.name);
            fs::write(&path, &entry.bytes)?;
            fs::File::open(&path)?.sync_all()?;
        }
        fs::remove_file(&file)?;
        fs::rename(&unpacked, &set).context("keep the boot set")?;
        tracing::info!(image = %source.root.image, "boot set fetched and proven");
    }
    let link = bootd.folder.join("boot.new");
    let _ = fs::remove_file(&link);
    symlink(&set, &link)?;
    fs::rename(&link, current(&bootd.folder))?;
    // What was served before may still be read by a machine; what is older is not.
    let old = fs::read_dir(&sets)?.flatten().map(|e| e.path()).filter(|p| *p != set);
    let mut old: Vec<PathBuf> = old.collect();
    old.sort_by_key(|p| fs::metadata(p).and_then(|m| m.modified()).ok());
    old.pop();
    old.iter().for_each(|p| drop(fs::remove_dir_all(p)));
    Ok(())
}

/// Look for a newer boot set now and then.
pub(super) async fn keep_fresh(bootd: Arc<Bootd>) {
    let mut said = false;
    loop {
        let result = refresh(&bootd).await;
        if let Err(error) = &result
            && !said
        {
            said = true;
            tracing::warn!(
                error = format!("{error:#}"),
                "no boot set yet, so nobody is answered: `cargo xtask netboot`, then `coe-ctl boot publish`"
            );
        }
        let pause = if result.is_ok() { LOOK_EVERY } else { LOOK_EVERY_AT_FIRST };
        let _ = tokio::time::timeout(pause, bootd.machines.went_away.notified()).await;
    }
}
