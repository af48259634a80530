//! `coe-stash status`

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use protocol::message::store::OWNER_IMAGES;

use super::Which;
use crate::io::control::{self, Ask};
use crate::io::scrub::Scrubbed;
use crate::io::watch::Seen;
use crate::manners::Level;

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
        let live = control::ask(folder.path(), Ask::Status)?;
        // The disk that it is on may be unplugged, or on a server that does not answer: whoever asks it may hang. The service knows.
        let free = match &live {
            Some(live) => live.machine.free.filter(|_| !live.machine.is_away),
            None => folder.free_bytes().ok(),
        };
        if self.json {
            let value = serde_json::json!({
                "array": member.identity.array.to_string(),
                "node": member.identity.node.to_string(),
                "controller": member.controller,
                "size": settings.size,
                "min_free": settings.min_free,
                "floors": settings.floors(),
                "limits": settings.limits,
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
            Some(live) if live.machine.is_away => {
                "its medium is away: unplugged, not answering, or the stash file was moved. If it is gone for good: \
                 `coe-stash leave --now`, then join again"
                    .into()
            }
            Some(live) if live.leaving => match live.to_hand_over {
                Some(left) => format!(
                    "leaving: {left} fragments must be elsewhere first (`coe-ctl repair` says what they wait for)"
                ),
                None => "leaving, as soon as the controller hears of it".into(),
            },
            Some(live) if live.paused => "paused by its owner".into(),
            Some(live) if live.machine.is_metered => "standing aside: its network costs money".into(),
            Some(live) => format!("serving {} fragments", live.fragments),
        };
        println!("state       {state}");
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        println!("node        {}", member.identity.node);
        println!("array       {}", member.identity.array);
        println!("controller  {}", member.controller.join(", "));
        println!("listen      {} (UDP)", settings.listen);
        println!("offers      {:.1} GiB", gib(settings.size));
        let floors = settings.floors();
        println!(
            "disk free   {}, stops taking below {:.1}, gives back below {:.1}",
            free.map_or("not known".into(), |free| format!("{:.1} GiB", gib(free))),
            gib(floors.stop),
            gib(floors.evacuate)
        );
        println!(
            "directory   {}",
            directory.map_or("none yet".into(), |mark| { format!("epoch {} of term {}", mark.epoch, mark.term) })
        );
        println!("key shares  {shares}");
        if let Some(live) = live {
            println!("file        {:.1} GiB, could give back {:.1} now", gib(live.file), gib(live.could_give_back));
            if let Some(resizing) = live.resizing {
                println!("resizing    to {:.1} GiB, {} regions to empty", gib(resizing.to), resizing.left);
            }
            if live.too_much > 0 {
                println!(
                    "too much    {:.1} GiB must be elsewhere in the array before it can be smaller",
                    gib(live.too_much)
                );
            }
            for (owner, part) in &live.partitions {
                let name = if *owner == OWNER_IMAGES.0 { "images".into() } else { format!("owner {owner}") };
                println!(
                    "partition   {name}: reserved {:.1} GiB, used {:.1}, live {:.1}, dead {:.1}",
                    gib(part.reserved),
                    gib(part.used),
                    gib(part.live),
                    gib(part.dead)
                );
            }
            if let Some(why) = &live.controller_problem {
                println!("not reached the controller: {why}");
            }
            println!("scrub       {}", scrubbed(&live.scrub));
            println!("machine     {}", machine(&live.machine));
            if live.unreadable_regions > 0 {
                println!("unreadable  {} regions of 64 MiB: the disk should be replaced", live.unreadable_regions);
            }
            let last = live.last_error.as_ref().map(|problem| format!("{} ({})", problem.what, ago(problem.at_unix_s)));
            println!("last error  {}", last.as_deref().unwrap_or("none"));
        }
        Ok(())
    }
}

/// What the stash sees of its machine, in a line.
fn machine(seen: &Seen) -> String {
    let rate = |what: &str, bytes: Option<u64>| bytes.map(|b| format!("{what} limited to {:.1} MB/s", b as f64 / 1e6));
    let said: Vec<String> = [
        (seen.level > Level::Fine).then(|| "its disk is nearly full".into()),
        seen.is_busy.then(|| "others wait for the disk, standing back".into()),
        seen.on_battery.then(|| "on battery, no scrubbing".into()),
        seen.is_metered.then(|| "its network costs money, serving nothing".into()),
        rate("network", seen.network),
        rate("disk", seen.disk),
    ]
    .into_iter()
    .flatten()
    .collect();
    if said.is_empty() { "nothing stands in the way".into() } else { said.join("; ") }
}

fn ago(at_unix_s: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match now.saturating_sub(at_unix_s) / 60 {
        0 => "just now".into(),
        minutes @ 1..60 => format!("{minutes} min ago"),
        minutes @ 60..2880 => format!("{} h ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1440),
    }
}

/// How far scrubbing is, in a line.
pub(super) fn scrubbed(scrub: &Scrubbed) -> String {
    let found = format!("{} damaged, {} not readable", scrub.damaged, scrub.unreadable);
    match scrub {
        Scrubbed { is_running: true, checked, of, .. } => format!("{checked} of {of} fragments read, {found}"),
        Scrubbed { finished_unix_s: 0, .. } => "not yet; everything is read again every 30 days".into(),
        Scrubbed { finished_unix_s, checked, .. } => {
            format!("{checked} fragments read {}, {found}", ago(*finished_unix_s))
        }
    }
}
