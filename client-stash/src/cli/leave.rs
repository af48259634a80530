//! `coe-stash leave`

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use super::Which;
use crate::io::control::{self, Ask};

/// When nothing was handed over for so long, something is wrong.
const NOTHING_FOR: Duration = Duration::from_secs(20);
/// What it waits for then.
const WAITS: &str = "nobody takes them now: the array has too little room, too many are away, or its images are cut anew for those that stay, \
                     and what they had before goes in a day. `coe-ctl repair` and `coe-ctl restripe` say which";
/// How long a service may take to remove its files.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Leave the array for good: what this stash holds goes to others first, then everything of it is removed from this machine
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-stash leave\n\nIt may be interrupted: the service goes on with it. `coe-stash leave --stay` changes your mind, as long as it has \
                  not left."
)]
pub struct Leave {
    /// Do not wait: what it holds is lost to the array, which makes it anew elsewhere
    #[arg(long)]
    now: bool,
    /// Stay after all
    #[arg(long, conflicts_with = "now")]
    stay: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Leave {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        if !folder.is_joined() {
            bail!("{} holds no stash", folder.path().display());
        }
        let ask = if self.stay { Ask::Stay } else { Ask::Leave { now: self.now } };
        let Some(live) = control::ask(folder.path(), ask)? else {
            if self.stay {
                folder.leave().set(false)?;
                folder.leave_at_once().set(false)?;
                return self.say("stays");
            }
            if !self.now {
                bail!(
                    "no service runs for {}: start it with `coe-stash serve`, or do without handing over with `coe-stash leave --now`",
                    folder.path().display()
                );
            }
            // Whoever holds its lock has it to itself: a service that does not listen must not lose it under its feet.
            if !folder.has_lost_its_file() {
                drop(
                    folder
                        .open_store(&folder.credentials()?)
                        .context("have the stash file to itself, and see that it is this stash's")?,
                );
            }
            folder.erase(true).context("remove the stash")?;
            return self.say("gone; the controller was not told: `coe-ctl node remove --lost` tells it");
        };
        if self.stay {
            return self.say("stays");
        }
        let bar = super::bar();
        let (mut first, mut problem) = (live.to_hand_over, None);
        let (mut left_before, mut since) = (live.to_hand_over, Instant::now());
        let (mut failing_since, mut is_said) = (None, false);
        loop {
            match control::ask(folder.path(), Ask::Status) {
                Ok(Some(live)) if !live.leaving => bail!("somebody made it stay"),
                Ok(Some(live)) => {
                    failing_since = None;
                    if live.controller_problem != problem {
                        problem.clone_from(&live.controller_problem);
                        if let Some(why) = &problem {
                            eprintln!("the controller is not reached: {why}");
                        }
                    }
                    if let Some(left) = live.to_hand_over {
                        let of = *first.get_or_insert(left);
                        bar.set_length(of);
                        bar.set_position(of.saturating_sub(left));
                        if left_before != Some(left) {
                            (left_before, since) = (Some(left), Instant::now());
                        }
                        if since.elapsed() >= NOTHING_FOR && !std::mem::replace(&mut is_said, true) {
                            bar.suspend(|| eprintln!("{left} fragments must be elsewhere first, and {WAITS}"));
                        }
                        bar.set_message(format!("{left} fragments must be elsewhere first"));
                    }
                }
                Ok(None) => {
                    // It may be removing the last files.
                    let start = Instant::now();
                    while folder.is_joined() {
                        if start.elapsed() > GONE_WITHIN {
                            bail!(
                                "its service has stopped, and its log says why: start it again, and it goes on leaving"
                            );
                        }
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    break;
                }
                // It ended in the middle of an answer, and may be removing the last files.
                Err(_) if !folder.is_joined() => break,
                Err(error) if failing_since.get_or_insert_with(Instant::now).elapsed() > GONE_WITHIN => {
                    return Err(error);
                }
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bar.finish_and_clear();
        self.say("gone: nothing of it is on this machine any more")
    }

    fn say(&self, what: &str) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::json!({ "left": !self.stay }));
        } else {
            println!("{what}");
        }
        Ok(())
    }
}
