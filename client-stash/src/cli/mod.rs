//! The command line of `coe-stash`.

pub mod join;
pub mod leave;
pub mod limit;
pub mod owner;
pub mod resize;
pub mod serve;
pub mod status;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use protocol::io::program::Log;

use crate::io::folder::{Folder, default_folder};

/// Keep pieces of the array on this machine's disk
#[derive(Parser)]
#[command(
    name = "coe-stash",
    version,
    after_help = "Example:\n  coe-stash join coe1abc… --size 20GiB && coe-stash serve"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Join(join::Join),
    Serve(serve::Serve),
    Status(status::Status),
    Pause(owner::Pause),
    Resume(owner::Resume),
    Scrub(owner::Scrub),
    Resize(resize::Resize),
    Limit(limit::Limit),
    Leave(leave::Leave),
}

/// Which stash.
#[derive(Args)]
pub struct Which {
    /// Folder of the stash
    #[arg(long, env = "COE_STASH_DIR", default_value_os_t = default_folder(), value_name = "DIR")]
    dir: PathBuf,
}

impl Which {
    fn folder(&self) -> Folder {
        Folder::at(self.dir.clone())
    }

    /// How this stash is started, from the same shell.
    fn serve(&self) -> String {
        let is_known = self.dir == default_folder() || std::env::var_os("COE_STASH_DIR").is_some();
        let dir = if is_known { String::new() } else { format!(" --dir {}", self.dir.display()) };
        format!("coe-stash serve{dir}")
    }
}

/// A progress bar on standard error whose message says what is waited for. It hides itself when nobody looks.
fn bar() -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{spinner} {pos}/{len}  {msg}  {elapsed}");
    let bar = indicatif::ProgressBar::no_length();
    bar.set_style(style.expect("the template is valid"));
    bar.enable_steady_tick(std::time::Duration::from_millis(250));
    bar
}

impl Cli {
    /// How the program logs.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::json(matches!(&self.command, Command::Serve(serve) if serve.json))
    }

    /// Carry out what was asked.
    ///
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Join(args) => args.run().await,
            Command::Serve(args) => args.run().await,
            Command::Status(args) => args.run(),
            Command::Pause(args) => args.run(),
            Command::Resume(args) => args.run(),
            Command::Scrub(args) => args.run(),
            Command::Resize(args) => args.run(),
            Command::Limit(args) => args.run(),
            Command::Leave(args) => args.run(),
        }
    }
}
