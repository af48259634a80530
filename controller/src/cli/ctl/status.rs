//! `coe-ctl status`

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::Status as Answer;

/// Show the array at a glance
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl status")]
pub struct Status {
    #[command(flatten)]
    common: Common,
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let s: Answer = Client::new(&self.common)?.get("/v1/status").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&s)?);
            return Ok(());
        }
        println!("array      {}", s.array);
        if let Some(why) = &s.stands_down {
            println!("STANDS DOWN  {why}");
        }
        println!(
            "stashes    {} of {} up, {} used of {}",
            s.stashes_up,
            s.stashes,
            table::size(s.used),
            table::size(s.capacity)
        );
        println!("images     {}", s.images);
        println!("segments   {}, {} sealed, {} chunks", s.segments, table::size(s.sealed), s.chunks);
        println!("directory  epoch {}", s.epoch);
        if s.pending + s.unreferenced + s.trash > 0 {
            println!(
                "unfinished {} segments on their way, {} without an image, {} deletions to do",
                s.pending, s.unreferenced, s.trash
            );
        }
        if s.is_starting {
            println!(
                "health     not known yet: this controller was started just now, and stashes are still to be heard"
            );
            return Ok(());
        }
        s.health.lines().iter().for_each(|line| println!("{line}"));
        s.restripe.iter().for_each(|image| println!("{}", image.line()));
        if s.unreadable_now > 0 {
            println!(
                "AT RISK    {} segments cannot be read now: neither from stashes that are up nor from mass storage",
                s.unreadable_now
            );
        }
        Ok(())
    }
}
