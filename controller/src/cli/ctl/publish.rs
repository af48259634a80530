//! `coe-ctl publish`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use data_encoding::HEXLOWER_PERMISSIVE;
use images::disk::SectorSize;
use images::manifest::ImageName;
use images::parity::Geometry;
use protocol::identity::CONTROLLER_NAME;
use protocol::io::{endpoint, rpc, tls};
use protocol::message::publish::Layout;

use super::{Common, LayoutArg, Offline, client, table};
use crate::io::publisher::{Order, Outcome, Progress, publish};

/// Put a disk image into the array
///
/// Only what is in use is read, and only what is new is sent. If it is interrupted, run it again: it goes on where it was.
#[derive(Args)]
#[command(after_help = "Examples:\n  coe-ctl publish image.img\n  coe-ctl publish image.img --name debian --tag 12.1")]
pub struct Publish {
    /// Raw disk image, or a disk
    image: PathBuf,
    /// Name [default: from the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Tag [default: counts up from 1]
    #[arg(long)]
    tag: Option<String>,
    /// Data pieces of each segment, k [default: from the policy and the fleet, see `coe-ctl explain`]
    #[arg(long, value_name = "K", requires = "parity")]
    data: Option<u8>,
    /// Parity pieces of each segment, m: so many holders may be lost
    #[arg(long, value_name = "M", requires = "data")]
    parity: Option<u8>,
    /// Who keeps what [default: as `coe-ctl policy` says]
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,
    /// Whether approved machines can be installed with it while the controller is away
    #[arg(long, value_enum, default_value = "allow")]
    offline: Offline,
    /// Compression level of zstd, 1 to 19
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Sector size, where the partition table leaves it open: 512 or 4096
    #[arg(long, value_name = "BYTES")]
    sector_size: Option<u64>,
    /// Refuse the file unless this is its SHA-256, as `sha256sum` prints it
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Publish the bytes as they are, even if they look like a compressed or virtual disk
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    common: Common,
}

/// What is not a raw disk, although people keep disks in it: (magic, name, how to get the disk).
const NOT_RAW: &[(&[u8], &str, &str)] = &[
    (b"QFI\xfb", "a qcow2 image", "qemu-img convert -O raw IMAGE disk.img"),
    (b"KDMV", "a VMDK image", "qemu-img convert -O raw IMAGE disk.img"),
    (b"vhdxfile", "a VHDX image", "qemu-img convert -O raw IMAGE disk.img"),
    (b"\x1f\x8b", "gzip-compressed", "gunzip IMAGE"),
    (b"\xfd7zXZ\0", "xz-compressed", "unxz IMAGE"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unzstd IMAGE"),
];

fn refuse_what_is_not_raw(path: &Path) -> anyhow::Result<()> {
    use std::io::Read as _;
    let mut start = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(16).read_to_end(&mut start).with_context(|| format!("read {}", path.display()))?;
    if let Some((_, what, how)) = NOT_RAW.iter().find(|(magic, ..)| start.starts_with(magic)) {
        let how = how.replace("IMAGE", &path.display().to_string());
        bail!("{} is {what}: run `{how}` first, or publish the bytes as they are with --raw", path.display());
    }
    Ok(())
}

/// A name from a file's: what is in front of its extension, without characters that a name cannot have.
fn name_of(path: &Path) -> anyhow::Result<String> {
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_string();
    if ImageName::is_valid_part(&name) {
        Ok(name)
    } else {
        bail!("no name follows from {}: give one with --name", path.display())
    }
}

impl Publish {
    /// A bundle of boot files, published like any image.
    pub(super) fn boot_set(image: PathBuf, name: &str, common: Common) -> Self {
        Self {
            image,
            name: Some(name.into()),
            tag: None,
            data: None,
            parity: None,
            layout: None,
            offline: Offline::Allow,
            level: 2,
            sector_size: None,
            sha256: None,
            raw: true,
            common,
        }
    }

    fn order(&self) -> anyhow::Result<Order> {
        let geometry = match (self.data, self.parity) {
            (Some(k), Some(m)) => Some(Geometry::new(k, m)?),
            _ => None,
        };
        let sector_size =
            self.sector_size.map(|bytes| SectorSize::from_bytes(bytes).context("--sector-size is 512 or 4096"));
        let sha256 = self.sha256.as_ref().map(|hex| {
            let bytes = HEXLOWER_PERMISSIVE.decode(hex.trim().as_bytes()).ok().and_then(|b| b.try_into().ok());
            bytes.context("--sha256 is 64 hexadecimal digits")
        });
        Ok(Order {
            source: self.image.clone(),
            name: self.name.clone().map_or_else(|| name_of(&self.image), Ok)?,
            tag: self.tag.clone(),
            geometry,
            layout: self.layout.map(Layout::from),
            offline: self.offline == Offline::Allow,
            level: self.level,
            sector_size: sector_size.transpose()?,
            expected_sha256: sha256.transpose()?,
        })
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        if !self.raw {
            refuse_what_is_not_raw(&self.image)?;
        }
        let order = self.order()?;
        let admin = client::credentials(&self.common)?;
        let endpoint = endpoint::client(tls::client(&admin, tls::ALPN_MEMBER)?)?;
        let connection =
            rpc::connect_any(&endpoint, &admin.controller, CONTROLLER_NAME).await.context("reach the controller")?;
        let len = protocol::io::disk::DiskFile::open(&self.image).map(|d| images::disk::ReadAt::len(&d)).unwrap_or(0);
        let progress = Arc::new(Progress::default());
        let bar = table::bar(len.max(1), "publish");
        let ticker = tokio::spawn(show(progress.clone(), bar.clone()));
        let outcome = publish(&connection, order, progress).await;
        ticker.abort();
        bar.finish_and_clear();
        connection.close(0u32.into(), b"done");
        endpoint.wait_idle().await;
        let (outcome, wanted) = (outcome?, self.offline == Offline::Allow);
        print(&outcome, self.common.json)?;
        if wanted && !outcome.offline {
            eprintln!(
                "note: it cannot be installed while the controller is away: too few stashes have a share of its key, which takes three at least"
            );
        }
        Ok(())
    }
}

async fn show(progress: Arc<Progress>, bar: indicatif::ProgressBar) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bar.set_position(progress.position.load(Relaxed));
        let (unique, in_use) = (progress.unique.load(Relaxed), progress.in_use.load(Relaxed));
        bar.set_message(format!("{} in use, {} new", table::size(in_use), table::size(unique)));
    }
}

fn print(outcome: &Outcome, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(outcome)?);
        return Ok(());
    }
    let o = outcome;
    println!("published {}", o.image);
    println!("  content   {}", o.content);
    println!("  disk      {}, {} in use, partition table: {}", table::size(o.disk_len), table::size(o.in_use), o.table);
    println!("  chunks    {}, {} of them known", o.chunks, o.known_chunks);
    println!("  new       {} in {} segments, {} sealed", table::size(o.unique), o.new_segments, table::size(o.sealed));
    println!("  stashes   {} as {} pieces", table::size(o.spread), o.geometry);
    if o.replaced > 0 {
        println!("  note      {} pieces went to another stash than planned", o.replaced);
    }
    for what in &o.unmet {
        println!("  NOT KEPT  {what}");
    }
    if o.weaker > 0 {
        println!("  note      {} segments are shared with earlier images and keep their weaker protection", o.weaker);
    }
    println!("  took      {:.1} s, {:.0} MB/s", o.took_s, o.in_use as f64 / 1e6 / o.took_s);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files() {
        for (file, name) in
            [("image.img", "image"), ("/tmp/Debian 12.raw", "Debian-12"), ("_x.img", "x"), ("a.b.img", "a.b")]
        {
            assert_eq!(name_of(Path::new(file)).unwrap(), name);
        }
        assert!(name_of(Path::new("/")).is_err());
    }
}
