//! An organisation's own Secure Boot key, and firmware that knows it beside Microsoft's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::netboot::uki::Signer;
use crate::shell;

/// Reads and writes OVMF's variables. It is in no Debian release yet that has OVMF's tools in Python.
const VIRT_FIRMWARE: &str = "virt-firmware==26.10";
/// Owner of the signature in the firmware's list; any GUID.
const OWNER: &str = "c0e00000-0000-4000-8000-00000000c0e0";

fn folder() -> PathBuf {
    shell::target_dir().join("lab")
}

/// Variables of firmware that enforces Secure Boot, and knows the organisation's key.
#[must_use]
pub fn variables() -> PathBuf {
    folder().join("OVMF_VARS.fd")
}

/// Make both, once.
///
/// # Errors
/// If a tool is missing or fails.
pub fn make() -> anyhow::Result<Signer> {
    fs::create_dir_all(folder())?;
    let (key, certificate) = (folder().join("db.key"), folder().join("db.crt"));
    if !variables().exists() {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=coe lab"]);
        shell::output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
        let venv = folder().join("python");
        shell::output(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            .context("python3 with its module venv")?;
        shell::output(Command::new(venv.join("bin/pip")).args(["install", "--quiet", VIRT_FIRMWARE]))?;
        let new = variables().with_extension("new");
        let mut enroll = Command::new(venv.join("bin/virt-fw-vars"));
        enroll.args(["--input", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "--output"]).arg(&new);
        shell::output(enroll.args(["--add-db", OWNER]).arg(&certificate))?;
        fs::rename(new, variables())?;
    }
    Signer::new(&key, Some(&certificate), None)
}
