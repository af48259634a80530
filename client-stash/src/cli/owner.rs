//! `coe-stash pause`, `resume` and `scrub`: what the owner of the machine says to the running service.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Which;
use crate::io::control::{self, Ask, Live};

/// Step aside: take nothing, give nothing and read nothing, until `resume`; across restarts, too
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash pause")]
pub struct Pause {
    #[command(flatten)]
    common: Common,
}

/// Come back after `pause`
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash resume")]
pub struct Resume {
    #[command(flatten)]
    common: Common,
}

/// Show how far scrubbing is; everything is read again every 30 days
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-stash scrub --now\n\nExit code 1 if something was damaged; the controller hears of it."
)]
pub struct Scrub {
    /// Read everything again now, and wait for it
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Common {
    fn ask(&self, ask: Ask) -> anyhow::Result<Live> {
        let folder = self.which.folder();
        let live = control::ask(folder.path(), ask)?;
        live.with_context(|| format!("no service runs for {}: `coe-stash serve`", folder.path().display()))
    }

    fn say(&self, live: &Live) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(live)?);
        } else if live.paused {
            println!("paused: the array does without this stash until `coe-stash resume`");
        } else {
            println!("serving");
        }
        Ok(())
    }
}

impl Pause {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.common.say(&self.common.ask(Ask::Pause)?)
    }
}

impl Resume {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.common.say(&self.common.ask(Ask::Resume)?)
    }
}

impl Scrub {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut live = self.common.ask(if self.now { Ask::Scrub } else { Ask::Status })?;
        if self.now {
            let bar = indicatif::ProgressBar::new(live.scrub.of);
            while live.scrub.is_running {
                std::thread::sleep(Duration::from_millis(200));
                live = self.common.ask(Ask::Status)?;
                bar.set_length(live.scrub.of);
                bar.set_position(live.scrub.checked);
            }
            bar.finish_and_clear();
        }
        let scrub = &live.scrub;
        if self.common.json {
            println!("{}", serde_json::to_string(scrub)?);
        } else {
            println!("{}", super::status::scrubbed(scrub));
        }
        if self.now && scrub.damaged + scrub.unreadable > 0 {
            bail!("{} fragments are damaged, {} were not readable", scrub.damaged, scrub.unreadable);
        }
        Ok(())
    }
}
