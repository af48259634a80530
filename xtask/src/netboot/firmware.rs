//! Firmware that network and disk controllers load from a file. It is not free, so Debian keeps it in an archive area of its own, which
//! this machine's apt need not have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{SUITE, cache, package_with};
use crate::{setup, shell};

/// Packages with firmware for wired networks and disk controllers.
const PACKAGES: &[&str] =
    &["firmware-bnx2", "firmware-bnx2x", "firmware-misc-nonfree", "firmware-qlogic", "firmware-realtek"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Options that let apt see that area only, with a state of its own; its lists are fetched.
fn apt() -> anyhow::Result<Vec<String>> {
    let folder = cache().join("apt");
    for sub in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(sub))?;
    }
    let sources = folder.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} non-free-firmware\n"))?;
    let options = [
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=-".into(),
        format!("Dir::State={}", folder.join("state").display()),
        format!("Dir::Cache={}", folder.join("cache").display()),
    ];
    let options: Vec<String> = options.into_iter().flat_map(|o| ["-o".into(), o]).collect();
    shell::output(Command::new("apt-get").args(&options).args(["update", "-q"]))
        .context("fetch the list of Debian's firmware; `--free-only` goes without it")?;
    Ok(options)
}

/// Names of the firmware files that modules below a folder may ask for.
fn asked_for(modules: &Path, names: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(modules)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            asked_for(&path, names)?;
        } else if path.extension().is_some_and(|e| e == "ko") {
            files.push(path);
        }
    }
    if !files.is_empty() {
        let listed = shell::output(setup::tool("modinfo").args(["-F", "firmware"]).args(files))?;
        names.extend(listed.lines().map(str::to_string));
    }
    Ok(())
}

/// Copy to `to/lib/firmware` what the modules in `to/lib/modules` may ask for, as far as Debian has it.
///
/// # Errors
/// If Debian's archive cannot be reached.
pub fn copy(to: &Path) -> anyhow::Result<()> {
    let options = apt()?;
    let mut names = BTreeSet::new();
    asked_for(&to.join("lib/modules"), &mut names)?;
    let folders: Vec<PathBuf> = PACKAGES.iter().map(|name| package_with(&options, name)).collect::<Result<_, _>>()?;
    for name in names {
        let found = folders.iter().map(|folder| folder.join("lib/firmware").join(&name)).find(|path| path.is_file());
        if let Some(file) = found {
            let target = to.join("lib/firmware").join(&name);
            fs::create_dir_all(target.parent().context("a folder")?)?;
            fs::copy(file, target)?;
        }
    }
    Ok(())
}
