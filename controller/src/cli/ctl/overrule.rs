//! `coe-ctl overrule`

use clap::Args;

use super::Common;
use super::client::Client;
use crate::io::api::{OverruleRequest, OverruleResponse};

/// Go on with this controller's catalog although clients hold a newer directory
///
/// Images and changes that only the clients know are dropped. `coe-controller recover` into an empty folder keeps them instead.
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl overrule --epoch 57")]
pub struct Overrule {
    /// The clients' epoch, as `coe-ctl status` shows it
    #[arg(long)]
    epoch: u64,
    #[command(flatten)]
    common: Common,
}

impl Overrule {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let request = OverruleRequest { epoch: self.epoch };
        let answer: OverruleResponse = Client::new(&self.common)?.post("/v1/overrule", &request).await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&answer)?);
        } else {
            println!("this catalog counts from now on, as epoch {}", answer.epoch);
        }
        Ok(())
    }
}
