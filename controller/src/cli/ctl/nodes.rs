//! `coe-ctl nodes`

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::NodeInfo;

/// List stashes
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl nodes")]
pub struct Nodes {
    #[command(flatten)]
    common: Common,
}

impl Nodes {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let nodes: Vec<NodeInfo> = Client::new(&self.common)?.get("/v1/nodes").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&nodes)?);
            return Ok(());
        }
        let row = |n: &NodeInfo| {
            let state = n.lied.as_ref().map_or_else(|| n.state.clone(), |what| format!("lied: {what}"));
            vec![
                n.node.clone(),
                state,
                n.heard_s.map_or("-".into(), table::ago),
                table::size(n.capacity),
                n.used.map_or("-".into(), table::size),
                n.fragments.map_or("-".into(), |f| f.to_string()),
                n.class.clone(),
                n.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "),
                n.addresses.join(" "),
            ]
        };
        let rows: Vec<_> = nodes.iter().map(row).collect();
        table::print(&["STASH", "STATE", "HEARD", "OFFERS", "USED", "FRAGMENTS", "CLASS", "LABELS", "ADDRESS"], &rows);
        Ok(())
    }
}
