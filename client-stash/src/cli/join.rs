//! `coe-stash join`

use std::net::SocketAddr;

use anyhow::bail;
use clap::Args;
use protocol::identity::Role;
use protocol::io::credentials::Credentials;
use protocol::size;
use protocol::ticket::Ticket;

use super::Which;
use crate::io::folder::Settings;

/// Join an array with a ticket, and set space aside
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash join coe1abc… --size 20GiB\n\nGet a ticket with `coe-ctl token create`.")]
pub struct Join {
    /// The ticket
    ticket: Ticket,
    /// Space to offer, at least 128MiB
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    size: u64,
    /// Space of this disk that stays free for its user [default: a tenth of the disk, at least 10GiB]
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    min_free: Option<u64>,
    /// UDP address to serve on
    #[arg(long, default_value = "0.0.0.0:7401", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Join {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        if folder.is_joined() {
            bail!("{} has joined an array already: serve it with `coe-stash serve`", folder.path().display());
        }
        if self.ticket.role != Role::Stash {
            bail!("this ticket is for role {}: create one with `coe-ctl token create`", self.ticket.role);
        }
        let min_free = match self.min_free {
            Some(bytes) => bytes,
            None => folder.default_min_free()?,
        };
        // A ticket works once: whatever can fail here fails before it is used.
        folder.prepare(self.size)?;
        let member = Credentials::join(&self.ticket).await?;
        folder.create(&member, &Settings { size: self.size, min_free, listen: self.listen })?;
        let node = member.identity.node;
        if self.json {
            println!("{}", serde_json::json!({ "node": node.to_string(), "dir": folder.path(), "size": self.size }));
        } else {
            println!("joined as stash {node}; now run `coe-stash serve`");
        }
        Ok(())
    }
}
