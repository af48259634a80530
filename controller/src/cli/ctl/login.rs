//! `coe-ctl login`

use anyhow::bail;
use clap::Args;
use protocol::identity::Role;
use protocol::io::credentials::Credentials;
use protocol::ticket::Ticket;

use super::Common;

/// Become an admin on this machine, with a ticket of `coe-ctl token create --admin`
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl login coe1abc…")]
pub struct Login {
    /// The ticket
    ticket: Ticket,
    #[command(flatten)]
    common: Common,
}

impl Login {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let file = self.common.credentials_file();
        if file.exists() {
            bail!("{} holds credentials already: move it away, or use another --home", file.display());
        }
        if self.ticket.role != Role::Admin {
            bail!("this ticket is for role {}: create one with `coe-ctl token create --admin`", self.ticket.role);
        }
        let admin = Credentials::join(&self.ticket).await?;
        admin.save(&file)?;
        if self.common.json {
            println!("{}", serde_json::json!({ "admin": file, "array": admin.identity.array.to_string() }));
        } else {
            println!("logged in to array {}", admin.identity.array);
        }
        Ok(())
    }
}
