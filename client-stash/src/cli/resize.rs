//! `coe-stash resize`

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use protocol::size;

use super::Which;
use crate::io::control::{self, Ask, Live};
use crate::limits::REGION_LEN;

/// A stash of which nothing changes for so long is not waited for.
const NOWHERE_AFTER: Duration = Duration::from_secs(30);

/// Offer more or less space, while the stash is in use
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-stash resize 40GiB\n\nMore is reserved on the disk at once. Less takes a while: what lies at the end of the file is \
                  moved first, and what does not fit any more goes to other stashes."
)]
pub struct Resize {
    /// Space to offer, whole 64 MiB
    #[arg(value_parser = size::parse)]
    size: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Resize {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        let ask = |ask| -> anyhow::Result<Live> {
            let live = control::ask(folder.path(), ask)?;
            live.with_context(|| format!("no service runs for {}: `coe-stash serve`", folder.path().display()))
        };
        let mut live = ask(Ask::Resize(self.size))?;
        let bar = super::bar();
        bar.set_length(self.size >> 20);
        let want = self.size / REGION_LEN * REGION_LEN;
        // The service tries again when what it deletes meanwhile has made room: only one that gets nowhere is not waited for.
        let state = |live: &Live| (live.file, live.used, live.resizing.map(|r| r.left), live.too_much);
        let (mut before, mut since) = (state(&live), Instant::now());
        let is_done =
            |live: &Live| live.resizing.is_none() && live.too_much == 0 && live.file / REGION_LEN * REGION_LEN == want;
        while !is_done(&live) && since.elapsed() < NOWHERE_AFTER {
            bar.set_message(match live.resizing {
                Some(resizing) => format!("{} regions to empty", resizing.left),
                None if live.too_much == 0 => "waiting for room to move things to".into(),
                None => format!(
                    "{} MiB must be elsewhere in the array first; it goes on without this command",
                    live.too_much >> 20
                ),
            });
            bar.set_position(live.file >> 20);
            std::thread::sleep(Duration::from_millis(200));
            live = ask(Ask::Status)?;
            // What must be elsewhere first takes as long as the array needs.
            if state(&live) != before || live.too_much > 0 {
                (before, since) = (state(&live), Instant::now());
            }
        }
        bar.finish_and_clear();
        if !is_done(&live) {
            bail!(
                "it has {} MiB: {}",
                live.file >> 20,
                live.last_error.as_ref().map_or("it was resized again meanwhile", |problem| &problem.what)
            );
        }
        if self.json {
            println!("{}", serde_json::to_string(&live)?);
        } else {
            println!("offers {:.1} GiB", want as f64 / f64::from(1 << 30));
        }
        Ok(())
    }
}
