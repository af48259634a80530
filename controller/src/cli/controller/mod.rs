//! `coe-controller`

pub mod init;
pub mod recover;
pub mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use protocol::io::program::Log;

use crate::io::folder::{Folder, default_folder};

/// Direct an array of stashes and keep its catalog
#[derive(Parser)]
#[command(name = "coe-controller", version, after_help = "Example:\n  coe-controller init && coe-controller serve")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    Recover(recover::Recover),
}

/// Which controller.
#[derive(Args)]
pub struct Which {
    /// Folder of the controller
    #[arg(long, env = "COE_CONTROLLER_DIR", default_value_os_t = default_folder(), value_name = "DIR")]
    dir: PathBuf,
}

impl Which {
    fn folder(&self) -> Folder {
        Folder::at(self.dir.clone())
    }

    /// How this controller is started, from the same shell.
    fn serve(&self) -> String {
        let is_known = self.dir == default_folder() || std::env::var_os("COE_CONTROLLER_DIR").is_some();
        let dir = if is_known { String::new() } else { format!(" --dir {}", self.dir.display()) };
        format!("coe-controller serve{dir}")
    }
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
            Command::Init(args) => args.run(),
            Command::Serve(args) => args.run().await,
            Command::Recover(args) => args.run().await,
        }
    }
}
