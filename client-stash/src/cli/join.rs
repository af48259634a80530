//! `coe-stash join`

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use protocol::identity::Role;
use protocol::io::credentials::Credentials;
use protocol::size;
use protocol::ticket::Ticket;

use super::Which;
use crate::io::folder::Settings;

/// A part of a disk.
#[derive(Clone, Copy)]
enum Part {
    Bytes(u64),
    Percent(u8),
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent @ 0..=90) => Ok(Self::Percent(percent)),
                _ => Err("want up to 90%".into()),
            },
            None => size::parse(text).map(Self::Bytes),
        }
    }

    fn of(self, disk: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => disk / 100 * u64::from(percent),
        }
    }
}

/// Join an array with a ticket, and set space aside
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-stash join coe1abc… --size 20GiB\n  coe-stash join coe1abc… --percent 15 --min-free 20%\n\n\
                  Get a ticket with `coe-ctl token create`. The space is reserved on the disk at once, where the file system can."
)]
pub struct Join {
    /// The ticket
    ticket: Ticket,
    /// Space to offer, at least 256MiB
    #[arg(long, value_parser = size::parse, value_name = "SIZE", required_unless_present = "percent")]
    size: Option<u64>,
    /// The same, as a part of the disk
    #[arg(long, conflicts_with = "size", value_parser = clap::value_parser!(u8).range(1..=90))]
    percent: Option<u8>,
    /// Space of this disk that stays free for its user, such as 20GiB or 10% [default: a tenth of the disk, at least 10GiB]
    #[arg(long, value_parser = Part::parse, value_name = "SIZE")]
    min_free: Option<Part>,
    /// Keep the stash file there, on another disk, a removable one, or a network folder
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// UDP address to serve on
    #[arg(long, default_value = "0.0.0.0:7401", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Join {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        if folder.is_joined() {
            bail!("{} has joined an array already: serve it with `coe-stash serve`", folder.path().display());
        }
        if self.ticket.role != Role::Stash {
            bail!("this ticket is for role {}: create one with `coe-ctl token create`", self.ticket.role);
        }
        let file = self.file.map(std::path::absolute).transpose()?;
        let disk = folder.disk_bytes(file.as_deref())?;
        let min_free = match self.min_free {
            Some(part) => part.of(disk),
            None => folder.default_min_free(file.as_deref())?,
        };
        let size = self.size.unwrap_or_else(|| Part::Percent(self.percent.unwrap_or(0)).of(disk));
        // A ticket works once: whatever can fail here fails before it is used.
        folder.prepare(size, file.as_deref())?;
        let member = Credentials::join(&self.ticket).await?;
        let settings =
            Settings { size, min_free, floors: None, file, limits: Vec::new(), listen: self.listen, machine: None };
        folder.create(&member, &settings)?;
        let (node, reserved, is_open) = (member.identity.node, folder.is_reserved(), folder.is_open_to_others());
        // What is reserved is not free any more.
        let left = folder.free_bytes()?.saturating_sub(if reserved { 0 } else { size });
        if self.json {
            let value = serde_json::json!({
                "node": node.to_string(), "dir": folder.path(), "size": size, "reserved": reserved,
                "open_to_others": is_open,
                "min_free": min_free, "left_free": left,
            });
            println!("{value}");
        } else {
            println!("joined as stash {node}; now run `{}`", self.which.serve());
            if !reserved {
                println!("note: this file system cannot reserve space: others may use it up before the array does");
            }
            if is_open {
                println!(
                    "note: this file system does not keep others on this machine from the stash file, unless a folder above it does. What is in it is \
                     encrypted; a mount with file_mode=0600 (SMB) or umask=0077 (FAT, exFAT, NTFS) keeps them out"
                );
            }
            if left < min_free {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                println!(
                    "note: {:.1} GiB of this disk are left free, and {:.1} GiB should be: the stash will give space back as soon as it runs.\n      \
                     `coe-stash resize` makes it smaller; `--min-free` says how much is to stay free",
                    gib(left),
                    gib(min_free)
                );
            }
        }
        Ok(())
    }
}
