//! `coe-ctl`

mod boot;
mod client;
mod deploy;
mod digest;
mod gc;
mod host;
mod images;
mod login;
mod node;
mod nodes;
mod overrule;
mod policy;
mod publish;
mod repair;
mod restripe;
mod rm;
mod show;
mod status;
mod token;
mod verify;
mod via;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::identity::Role;
use protocol::io::credentials::{default_home, file_of};
use protocol::message::publish::Layout;

use super::table;

/// Steer an array: publish images, look at them and at the stashes
#[derive(Parser)]
#[command(name = "coe-ctl", version, after_help = "Example:\n  coe-ctl publish image.img --name debian --tag 12.1")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Publish(publish::Publish),
    Images(images::Images),
    Show(show::Show),
    Rm(rm::Rm),
    Nodes(nodes::Nodes),
    #[command(subcommand)]
    Node(node::Node),
    Repair(repair::Repair),
    Restripe(restripe::Restripe),
    #[command(subcommand)]
    Policy(policy::Policy),
    Explain(policy::Explain),
    Status(status::Status),
    Overrule(overrule::Overrule),
    Verify(verify::Verify),
    #[command(alias = "sweep")]
    Gc(gc::Gc),
    Digest(digest::Digest),
    #[command(subcommand)]
    Token(token::Token),
    Login(login::Login),
    #[command(subcommand)]
    Host(host::Host),
    Deploy(Box<deploy::Deploy>),
    #[command(subcommand)]
    Boot(boot::Boot),
}

/// Whether something may be while the controller is away.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Offline {
    Allow,
    Deny,
}

/// Who keeps what of an image.
#[derive(Clone, Copy, ValueEnum)]
enum LayoutArg {
    /// Pieces on clients, a whole copy on the controller's mass storage
    Mirror,
    /// Pieces on clients only
    Clients,
    /// Data pieces on clients, parity on mass-storage devices
    ParityOnController,
    /// Data pieces on mass-storage devices, parity on clients
    ParityOnClients,
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Self {
        match layout {
            LayoutArg::Mirror => Self::Mirror,
            LayoutArg::Clients => Self::Clients,
            LayoutArg::ParityOnController => Self::ParityOnController,
            LayoutArg::ParityOnClients => Self::ParityOnClients,
        }
    }
}

/// Options of every command.
#[derive(Args)]
pub struct Common {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Folder of the admin's credentials
    #[arg(long, env = "COE_HOME", default_value_os_t = default_home(), value_name = "DIR")]
    home: PathBuf,
}

impl Common {
    fn credentials_file(&self) -> PathBuf {
        file_of(&self.home, Role::Admin)
    }
}

impl Cli {
    /// Carry out what was asked.
    ///
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Publish(args) => args.run().await,
            Command::Images(args) => args.run().await,
            Command::Show(args) => args.run().await,
            Command::Rm(args) => args.run().await,
            Command::Nodes(args) => args.run().await,
            Command::Node(args) => args.run().await,
            Command::Repair(args) => args.run().await,
            Command::Restripe(args) => args.run().await,
            Command::Policy(args) => args.run().await,
            Command::Explain(args) => args.run().await,
            Command::Status(args) => args.run().await,
            Command::Overrule(args) => args.run().await,
            Command::Verify(args) => args.run().await,
            Command::Gc(args) => args.run().await,
            Command::Digest(args) => args.run().await,
            Command::Token(args) => args.run().await,
            Command::Login(args) => args.run().await,
            Command::Host(args) => args.run().await,
            Command::Deploy(args) => args.run().await,
            Command::Boot(args) => args.run().await,
        }
    }
}
