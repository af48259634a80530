//! `coe-stash resize`

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use protocol::size;

use super::Which;
use crate::io::control::{self, Ask, Live};
use crate::limits::REGION_LEN;

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
        let bar = indicatif::ProgressBar::no_length();
        while live.resizing.is_some() || live.too_much > 0 {
            bar.set_message(match live.resizing {
                Some(resizing) => format!("{} regions to empty", resizing.left),
                None => format!(
                    "{} MiB must be elsewhere in the array first; it goes on without this command",
                    live.too_much >> 20
                ),
            });
            bar.tick();
            std::thread::sleep(Duration::from_millis(200));
            live = ask(Ask::Status)?;
        }
        bar.finish_and_clear();
        let want = self.size / REGION_LEN * REGION_LEN;
        if live.file / REGION_LEN * REGION_LEN != want {
            bail!(
                "it has {} MiB: {}",
                live.file >> 20,
                live.last_error.as_deref().unwrap_or("it was resized again meanwhile")
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
