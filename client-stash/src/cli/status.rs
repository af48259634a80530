//! `coe-stash status`

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::Which;
use crate::io::control::{self, Ask};
use crate::io::scrub::Scrubbed;

/// Show what this stash is and how much it offers
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash status --json")]
pub struct Status {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        let (member, settings) = (folder.credentials()?, folder.settings()?);
        let (directory, shares) = (folder.directory(&member).mark(), folder.shares()?.count());
        let free = folder.free_bytes()?;
        let live = control::ask(folder.path(), Ask::Status)?;
        if self.json {
            let value = serde_json::json!({
                "array": member.identity.array.to_string(),
                "node": member.identity.node.to_string(),
                "controller": member.controller,
                "size": settings.size,
                "min_free": settings.min_free,
                "free": free,
                "listen": settings.listen,
                "epoch": directory.map(|mark| mark.epoch.0),
                "term": directory.map(|mark| mark.term),
                "shares": shares,
                "reports": folder.reports().count(),
                "live": live,
            });
            println!("{value}");
            return Ok(());
        }
        let state = match &live {
            None => "not running".into(),
            Some(live) if live.paused => "paused by its owner".into(),
            Some(live) => format!("serving {} fragments", live.fragments),
        };
        println!("state       {state}");
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        println!("node        {}", member.identity.node);
        println!("array       {}", member.identity.array);
        println!("controller  {}", member.controller.join(", "));
        println!("listen      {} (UDP)", settings.listen);
        println!("offers      {:.1} GiB", gib(settings.size));
        println!("disk free   {:.1} GiB, stops taking below {:.1} GiB", gib(free), gib(settings.min_free));
        println!(
            "directory   {}",
            directory.map_or("none yet".into(), |mark| { format!("epoch {} of term {}", mark.epoch, mark.term) })
        );
        println!("key shares  {shares}");
        if let Some(live) = live {
            println!("in use      {:.1} GiB", gib(live.used));
            println!("scrub       {}", scrubbed(&live.scrub));
        }
        Ok(())
    }
}

/// How far scrubbing is, in a line.
pub(super) fn scrubbed(scrub: &Scrubbed) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let found = format!("{} damaged, {} not readable", scrub.damaged, scrub.unreadable);
    match scrub {
        Scrubbed { is_running: true, checked, of, .. } => format!("{checked} of {of} fragments read, {found}"),
        Scrubbed { finished_unix_s: 0, .. } => "not yet; everything is read again every 30 days".into(),
        Scrubbed { finished_unix_s, checked, .. } => {
            let when = match now.saturating_sub(*finished_unix_s) / 3600 {
                0 => "just now".into(),
                hours @ 1..48 => format!("{hours} h ago"),
                hours => format!("{} days ago", hours / 24),
            };
            format!("{checked} fragments read {when}, {found}")
        }
    }
}
