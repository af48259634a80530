//! `coe-ctl boot`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use images::bundle::{BundleFile, pack};
use protocol::message::boot::BOOT_IMAGE;

use super::client::Client;
use super::publish::Publish;
use super::{Common, Offline, table};
use crate::io::api::{BootServerChange, BootServerInfo, Numbers};
use crate::io::unix_s;

/// What a boot server cannot do without.
const REQUIRED: [&str; 2] = ["vmlinuz", "initrd.img"];

/// Files that machines boot with, and the hosts that hand them out
#[derive(Subcommand)]
pub enum Boot {
    Publish(PublishBoot),
    Servers(Servers),
    Offline(SetOffline),
}

/// List boot servers, and until when each can admit installers while the controller is away
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl boot servers")]
pub struct Servers {
    #[command(flatten)]
    common: Common,
}

/// Let a boot server admit installers while the controller is away, or not; stashes follow at once
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl boot offline 3f9a deny")]
pub struct SetOffline {
    /// The boot server, as `coe-ctl boot servers` calls it, or how that begins
    node: String,
    /// Whether it may
    #[arg(value_enum)]
    offline: Offline,
    #[command(flatten)]
    common: Common,
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
        match self {
            Self::Publish(args) => args.run().await,
            Self::Servers(args) => args.run().await,
            Self::Offline(args) => args.run().await,
        }
    }
}

impl Servers {
    async fn run(self) -> anyhow::Result<()> {
        let servers: Vec<BootServerInfo> = Client::new(&self.common)?.get("/v1/boot-servers").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&servers)?);
            return Ok(());
        }
        let now = unix_s();
        let row = |s: &BootServerInfo| {
            let alone = match s.delegated_until_unix_s {
                _ if !s.offline => "deny".into(),
                0 => "not yet".into(),
                until if until <= now => "no longer: it has not been heard".into(),
                until => format!("for {} days", (until - now).div_ceil(24 * 3600)),
            };
            let heard = s.heard_s.map_or_else(|| "not yet".into(), table::ago);
            let epoch = s.epoch.map_or_else(|| "-".into(), |epoch| epoch.to_string());
            vec![s.node.clone(), table::ago(now.saturating_sub(s.joined_unix_s)), heard, epoch, alone]
        };
        let rows: Vec<_> = servers.iter().map(row).collect();
        table::print(&["BOOT SERVER", "JOINED", "HEARD", "EPOCH", "WITHOUT CONTROLLER"], &rows);
        Ok(())
    }
}

impl SetOffline {
    async fn run(self) -> anyhow::Result<()> {
        let change = BootServerChange { offline: self.offline == Offline::Allow };
        let path = format!("/v1/boot-servers/{}", self.node);
        let _: Numbers = Client::new(&self.common)?.post(&path, &change).await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&change)?);
        } else {
            println!("{}: {}", self.node, if change.offline { "may" } else { "may not" });
        }
        Ok(())
    }
}

impl PublishBoot {
    async fn run(self) -> anyhow::Result<()> {
        let args = self;
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
