//! `coe-ctl token`

use clap::{Args, Subcommand};

use super::client::Client;
use super::{Common, Offline};
use crate::io::api::{TicketRequest, TicketResponse};

/// Tickets: one-time rights to join
#[derive(Subcommand)]
pub enum Token {
    Create(Create),
}

/// Create a ticket; it works once
#[derive(Args)]
#[command(after_help = "Examples:\n  coe-ctl token create\n  coe-ctl token create --installer --minutes 30")]
pub struct Create {
    /// For a machine that installs an image
    #[arg(long, conflicts_with_all = ["admin", "boot"])]
    installer: bool,
    /// For a person who runs the array
    #[arg(long, conflicts_with = "boot")]
    admin: bool,
    /// For a host that answers machines which boot from the network
    #[arg(long)]
    boot: bool,
    /// The machine that is installed, by its name: only with this can it go on while the controller is away
    #[arg(long, value_name = "NAME", requires = "installer")]
    host: Option<String>,
    /// Whether the boot server may admit installers while the controller is away
    #[arg(long, value_enum, default_value = "allow", requires = "boot")]
    offline: Offline,
    /// How long it can be used
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    #[command(flatten)]
    common: Common,
}

impl Token {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Create(args) = self;
        let role = match (args.installer, args.admin, args.boot) {
            (true, ..) => "installer",
            (_, true, _) => "admin",
            (.., true) => "boot",
            _ => "stash",
        };
        let request = TicketRequest {
            role: role.into(),
            valid_s: args.minutes * 60,
            host: args.host,
            offline: args.boot && args.offline == Offline::Allow,
        };
        let ticket: TicketResponse = Client::new(&args.common)?.post("/v1/tickets", &request).await?;
        if args.common.json {
            println!("{}", serde_json::to_string(&ticket)?);
        } else {
            println!("{}", ticket.ticket);
            eprintln!("For one {role}, within {} minutes.", args.minutes);
        }
        Ok(())
    }
}
