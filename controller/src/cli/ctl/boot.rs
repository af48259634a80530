//! `coe-ctl boot`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use images::bundle::{BundleFile, pack};
use protocol::message::boot::BOOT_IMAGE;

use super::Common;
use super::publish::Publish;

/// What a boot server cannot do without.
const REQUIRED: [&str; 2] = ["vmlinuz", "initrd.img"];

/// Files that machines boot with
#[derive(Subcommand)]
pub enum Boot {
    Publish(PublishBoot),
}

/// Put a boot set into the array; boot servers fetch the newest
#[derive(Args)]
#[command(after_help = "Example:\n  cargo xtask netboot && coe-ctl boot publish target/boot-set")]
pub struct PublishBoot {
    /// Folder of `cargo xtask netboot`
    folder: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Boot {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Publish(args) = self;
        let shown = args.folder.display();
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&args.folder).with_context(|| format!("read {shown}"))?.flatten().map(|e| e.path()).collect();
        paths.sort();
        let mut files = Vec::new();
        for path in paths.iter().filter(|p| p.is_file()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            files.push(BundleFile { name, bytes });
        }
        if let Some(missing) = REQUIRED.iter().find(|name| !files.iter().any(|f| f.name == **name)) {
            bail!("{shown} has no {missing}: `cargo xtask netboot` makes a boot set");
        }
        let bundle = tempfile::NamedTempFile::new().context("make a temporary file")?;
        fs::write(bundle.path(), pack(files)?)?;
        Publish::boot_set(bundle.path().to_path_buf(), BOOT_IMAGE, args.common).run().await
    }
}
