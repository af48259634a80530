//! `coe-ctl restripe`

use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::{RestripeAnswer, RestripeInfo, RestripeRequest, RestripeState};

/// How often is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Cut an image anew as policies want, or show which images are to be
///
/// Nothing is read from the disk that it was published from, and nothing changes in what is installed. What policies want is done by itself, in the
/// hours of `coe-ctl policy set --window`; this does it now, also for an image that was published with --data, --parity or --layout.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl restripe                       # what is to be cut anew, when, and why\n  \
                        coe-ctl restripe debian:12.1 --wait"
)]
pub struct Restripe {
    /// NAME, for its newest tag, or NAME:TAG
    image: Option<String>,
    /// Wait until it is done; exit code 1 if it cannot be
    #[arg(long, requires = "image")]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

impl RestripeInfo {
    fn when(&self) -> String {
        let minutes = |s: u64| match s.div_ceil(60) {
            m @ 0..120 => format!("{m} min"),
            m @ 120..2880 => format!("{} h", m / 60),
            m => format!("{} days", m / 1440),
        };
        match self.state {
            RestripeState::UnderWay => {
                let eta = self.eta_s.map_or(String::new(), |s| format!(", about {}", minutes(s)));
                format!("{} of {} segments{eta}", self.done, self.of)
            }
            RestripeState::Next => "next".into(),
            RestripeState::InItsHours => "in the hours of the policy".into(),
            RestripeState::Settles => {
                format!("if it is still so in {}", minutes(self.settles_in_s.unwrap_or_default()))
            }
            RestripeState::Failed => format!("tried again: {}", self.problem.as_deref().unwrap_or("it failed")),
        }
    }

    /// One line for a person.
    pub(super) fn line(&self) -> String {
        format!("restripe   {} {}: {}", self.image, self.why, self.when())
    }
}

impl Restripe {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.common)?;
        let Some(image) = self.image.clone() else { return self.list(&client).await };
        let answer: RestripeAnswer = client.post("/v1/restripe", &RestripeRequest { image }).await?;
        let is_due = answer.due.is_some();
        if self.wait && is_due {
            wait(&client, &answer.image).await?;
        }
        if self.common.json {
            println!("{}", serde_json::to_string(&answer)?);
            return Ok(());
        }
        match answer.due {
            None => println!("{} is cut as policies want", answer.image),
            Some(_) if self.wait => println!("{} is cut anew; what it had before is deleted in a day", answer.image),
            Some(due) => {
                println!("{} is cut anew: {} becomes {} (`coe-ctl restripe`)", answer.image, due.is, due.wanted)
            }
        }
        Ok(())
    }

    async fn list(&self, client: &Client) -> anyhow::Result<()> {
        let all: Vec<RestripeInfo> = client.get("/v1/restripe").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&all)?);
            return Ok(());
        }
        if all.is_empty() {
            println!("every image is cut as policies want");
            return Ok(());
        }
        let row = |info: &RestripeInfo| {
            let (is, wanted) = (info.is.clone(), info.wanted.clone());
            vec![info.image.clone(), is, wanted, table::size(info.bytes), info.why.clone(), info.when()]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        table::print(&["IMAGE", "IS", "WANTED", "BYTES", "WHY", "WHEN"], &rows);
        Ok(())
    }
}

async fn wait(client: &Client, image: &str) -> anyhow::Result<()> {
    let spinner = table::spinner("cutting anew");
    loop {
        let all: Vec<RestripeInfo> = client.get("/v1/restripe").await?;
        let Some(info) = all.into_iter().find(|info| info.image == image) else { break };
        if info.state == RestripeState::Failed {
            spinner.finish_and_clear();
            anyhow::bail!("{image} was not cut anew: {}", info.problem.unwrap_or_default());
        }
        spinner.set_message(info.when());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    spinner.finish_and_clear();
    Ok(())
}
