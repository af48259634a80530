//! The command line of `coe-installer`.

pub mod bootd;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use images::ArrayId;
use images::disk::Grow;
use images::manifest::ImageName;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::io::credentials::default_home;
use protocol::io::directory::DirectoryKeeper;
use protocol::ticket::Ticket;

use crate::io::deploy;
use crate::io::install::{Fit, Outcome, Progress, install};
use crate::io::source::{Source, credentials};
use crate::io::target::{Consent, Target};

/// Build a disk from an image in the array
///
/// Every byte is verified on its way, and the whole disk is read back before this says "installed". Until then the disk does
/// not boot.
#[derive(Parser)]
#[command(
    name = "coe-installer",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  coe-installer --image debian:12.1 --disk /dev/disk/by-id/nvme-… --ticket coe1abc…\n\nExit code 0: installed. 1: not installed, and the error says why. 2: wrong options."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// NAME:TAG, or NAME for the newest
    #[arg(long, value_name = "IMAGE", required = true)]
    image: Option<String>,
    /// The disk, or a file that exists, named exactly
    #[arg(long, value_name = "PATH", required = true)]
    disk: Option<PathBuf>,
    /// The serial number of the disk, if it holds data and all of it may be destroyed
    #[arg(long, value_name = "SERIAL")]
    wipe: Option<String>,
    /// The right to install, from `coe-ctl token create --installer`; kept for another try
    #[arg(long, env = "COE_TICKET")]
    ticket: Option<Ticket>,
    /// Folder of credentials
    #[arg(long, env = "COE_HOME", default_value_os_t = default_home(), value_name = "DIR")]
    home: PathBuf,
    /// Ask this stash and not the controller, `host:port`; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    via: Vec<String>,
    /// Let the last partition with files reach to the end of a larger disk, and move a recovery partition out of its way; file
    /// systems are not touched
    #[arg(long)]
    grow: bool,
    /// New GUIDs for the disk and its partitions; what finds them by the old ones must be told
    #[arg(long)]
    new_guids: bool,
    /// Check everything, write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Deploy(Deploy),
    BootOptions(BootOptions),
}

/// Carry out this machine's deployment: what the network-booted environment runs
#[derive(Args)]
#[command(after_help = "Example:\n  COE_HOME=/run/coe COE_TICKET=coe1abc… coe-installer deploy")]
struct Deploy {
    /// The ticket that the boot server gave to this machine
    #[arg(long, env = "COE_TICKET")]
    ticket: Option<Ticket>,
    /// Refuse tickets of any other array than this
    #[arg(long, env = "COE_ARRAY", value_name = "ID")]
    array: Option<ArrayId>,
    /// Folder of credentials
    #[arg(long, env = "COE_HOME", default_value_os_t = default_home(), value_name = "DIR")]
    home: PathBuf,
}

/// Ask the network's boot server what this machine shall do: a signed boot file is the same for all machines, and does not say
#[derive(Args)]
#[command(after_help = "Example:\n  coe-installer boot-options eth0")]
struct BootOptions {
    /// Network card
    interface: String,
}

fn split_image(text: &str) -> anyhow::Result<(String, Option<String>)> {
    if let Ok(image) = text.parse::<ImageName>() {
        return Ok((image.name().into(), Some(image.tag().into())));
    }
    if ImageName::is_valid_part(text) {
        Ok((text.into(), None))
    } else {
        bail!("--image is NAME:TAG or NAME, not {text:?}")
    }
}

impl Cli {
    /// Carry out what was asked.
    ///
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Deploy(args)) => return deploy::run(&args.home, args.ticket, args.array).await,
            Some(Command::BootOptions(args)) => {
                let options = tokio::task::spawn_blocking(move || deploy::boot_options(&args.interface)).await??;
                println!("{options}");
                return Ok(());
            }
            None => {}
        }
        let disk = self.disk.context("which disk?")?;
        let (name, tag) = split_image(&self.image.context("which image?")?)?;
        let member = credentials(&self.home, self.ticket).await?;
        let keeper = DirectoryKeeper::in_home(&self.home, &member);
        let source = Source::open(&member, &keeper, &self.via, &name, tag).await?;
        source.key().await?;
        let target = Target::open(&disk, &source.root, &Consent { wipe: self.wipe })?;
        if self.dry_run {
            let (image, disk, len) = (source.root.image.to_string(), disk.display(), target.len());
            if self.json {
                println!("{}", serde_json::json!({ "image": image, "disk": disk.to_string(), "disk_len": len }));
            } else {
                println!("{image} would be installed on {disk} ({len} bytes)");
            }
            return Ok(());
        }
        let grow = if self.grow { Grow::Last } else { Grow::Keep };
        let fit = Fit { grow, new_guids: self.new_guids };
        fit.check(&source.root.disk)?;
        let progress = Arc::new(Progress::default());
        let bar = ProgressBar::new(source.root.totals.in_use.max(1));
        let ticker = tokio::spawn(show(progress.clone(), bar.clone(), source.root.disk_len));
        let (outcome, report) = install(&source, target, fit, None, progress).await;
        source.report(report).await;
        ticker.abort();
        bar.finish_and_clear();
        let outcome = outcome?;
        if self.json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            print(&outcome, &disk);
        }
        Ok(())
    }
}

async fn show(progress: Arc<Progress>, bar: ProgressBar, disk_len: u64) {
    let style = ProgressStyle::with_template(
        "{prefix:8} [{bar:32}] {percent:>3}%  {bytes} of {total_bytes}  {elapsed} (eta {eta})",
    );
    bar.set_style(style.expect("the template is valid").progress_chars("=> "));
    loop {
        match progress.stage.load(Relaxed) {
            0 => {
                bar.set_prefix("install");
                bar.set_position(progress.written.load(Relaxed));
            }
            1 => {
                bar.set_prefix("compare");
                bar.set_length(disk_len.max(1));
                bar.set_position(progress.compared.load(Relaxed));
            }
            _ => bar.set_prefix("finish"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn print(o: &Outcome, disk: &std::path::Path) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("installed {} on {}", o.image, disk.display());
    println!("  content   {}   (read back and compared)", o.content);
    println!(
        "  written   {:.1} MB in {:.1} s, {:.0} MB/s; flush {:.1} s; read back in {:.1} s",
        mb(o.written),
        o.write_s,
        mb(o.written) / o.write_s,
        o.flush_s,
        o.compare_s
    );
    println!(
        "  pieces    {} fetched, {} hedged, {} of {} segments rebuilt by parity",
        o.pieces, o.hedged, o.rebuilt, o.segments
    );
    if o.resumed > 0 {
        println!("  resumed   {:.1} MB of the disk were proven from the try before", mb(o.resumed));
    }
    if o.fitted {
        println!("  table     fitted to the disk's {} bytes", o.disk_len);
    }
    for (old, new) in &o.renamed {
        println!("  new GUID  {new}, which was {old}");
    }
    for h in &o.holders {
        if let Some(what) = &h.lied {
            println!("  LIED      stash {}: {what}", h.node);
        } else if h.pieces == 0 && h.failures > 0 {
            println!("  missing   stash {}: {}", h.node, h.last_fault.as_deref().unwrap_or("unknown"));
        }
    }
    for (node, epoch) in &o.behind {
        println!(
            "  note      stash {node} has not heard of the newest directory yet (it has epoch {epoch}); its bytes were right"
        );
    }
}
