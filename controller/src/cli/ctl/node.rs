//! `coe-ctl node`

use clap::{Args, Subcommand};

use super::client::Client;
use super::{Common, table};
use crate::domains::is_valid_part;
use crate::io::api::{
    LabelChange, Labelled, NodeChange, NodeChanged, NodeInfo, NodesChange, RepairInfo, RestripeInfo, RestripeState,
};

/// Send stashes away, keep them, or say what they fail with
#[derive(Subcommand)]
pub enum Node {
    Drain(Drain),
    Keep(Keep),
    Remove(Remove),
    Label(Label),
    Device(Device),
}

/// Have stashes be mass-storage devices, for the layouts that want one
///
/// They have no share in what clients keep. They must be empty: join them, or drain them first.
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-ctl node device 3f9a\n  coe-ctl node device 3f9a --not    # a stash like others again"
)]
pub struct Device {
    #[command(flatten)]
    which: Which,
    /// They are none any more
    #[arg(long)]
    not: bool,
}

/// Say what stashes fail with: a site, a rack, a building's power. Pieces are spread so that one of these can fail
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl node label 3f9a 77c0 --set rack=a3 --set power=east\n  coe-ctl node label 3f9a --unset rack"
)]
pub struct Label {
    #[command(flatten)]
    which: Which,
    /// KEY=VALUE; may be given several times
    #[arg(long, value_parser = label, value_name = "KEY=VALUE")]
    set: Vec<(String, String)>,
    /// Keys to take away
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, value)| is_valid_part(key) && is_valid_part(value));
    let parts = parts.ok_or("want KEY=VALUE, such as rack=a3, of letters, digits, '.', '_' and '-'")?;
    Ok((parts.0.into(), parts.1.into()))
}

impl Label {
    async fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.set.is_empty() || !self.unset.is_empty(), "say --set KEY=VALUE or --unset KEY");
        if let Some((key, _)) = self.set.iter().find(|(key, _)| self.unset.contains(key)) {
            anyhow::bail!("{key} is to be set and taken away: say one of them");
        }
        let (set, unset) = (self.set.into_iter().collect(), self.unset.into_iter().collect());
        let ask = LabelChange { nodes: self.which.nodes, set, unset };
        let all: Vec<Labelled> = Client::new(&self.which.common)?.post("/v1/nodes/labels", &ask).await?;
        if self.which.common.json {
            println!("{}", serde_json::to_string(&all)?);
            return Ok(());
        }
        for Labelled { node, labels } in all {
            let words: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            println!("{node}: {}", if words.is_empty() { "no labels".into() } else { words.join(" ") });
        }
        Ok(())
    }
}

/// Move everything that stashes hold elsewhere; they stay members
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl node drain 3f9a --wait")]
pub struct Drain {
    #[command(flatten)]
    which: Which,
    /// Wait until they are empty
    #[arg(long)]
    wait: bool,
}

/// Have stashes be members like any other, whatever was said or thought of them before
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl node keep 3f9a")]
pub struct Keep {
    #[command(flatten)]
    which: Which,
}

/// Move everything that stashes hold elsewhere; then they are no members any more
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl node remove 3f9a --wait\n  coe-ctl node remove 3f9a 77c0 --lost    # their disks are gone: make their pieces anew at once\n\n\
                  What is lost together is better said together: then it is made anew from one read."
)]
pub struct Remove {
    #[command(flatten)]
    which: Which,
    /// They are not coming back: what they hold is lost, and is made anew elsewhere
    #[arg(long)]
    lost: bool,
    /// Wait until they are no members any more
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
struct Which {
    /// Their ids, or the beginnings of them
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    common: Common,
}

impl Which {
    async fn change(&self, change: NodeChange) -> anyhow::Result<Vec<NodeChanged>> {
        Client::new(&self.common)?.post("/v1/nodes", &NodesChange { nodes: self.nodes.clone(), change }).await
    }

    /// Wait until they hold nothing; or, if they `go`, until they are no members any more.
    async fn wait(&self, changed: &[NodeChanged], go: bool) -> anyhow::Result<()> {
        let client = Client::new(&self.common)?;
        let spinner = table::spinner("moving what they hold");
        loop {
            let nodes: Vec<NodeInfo> = client.get("/v1/nodes").await?;
            let is_left = |info: &&NodeInfo| go || info.to_hand_over > 0;
            let is_named = |info: &&NodeInfo| changed.iter().any(|node| node.node == info.node);
            let left: Vec<&NodeInfo> = nodes.iter().filter(is_named).filter(is_left).collect();
            if left.is_empty() {
                spinner.finish_and_clear();
                return Ok(());
            }
            let fragments: u64 = left.iter().map(|info| info.to_hand_over).sum();
            spinner.set_message(format!("{} of {} stashes, {fragments} fragments to go", left.len(), changed.len()));
            let repair: RepairInfo = client.get("/v1/repair").await?;
            // Images that are cut anew for those that stay may be all that it waits for.
            let restripe: Vec<RestripeInfo> = client.get("/v1/restripe").await?;
            let is_cut = |image: &RestripeInfo| matches!(image.state, RestripeState::UnderWay | RestripeState::Next);
            let left = if restripe.iter().any(is_cut) { Vec::new() } else { left };
            for info in left {
                let mut of_it = repair.moves.iter().filter(|m| m.from == info.node);
                let stuck = of_it.clone().find(|m| m.to.is_none());
                if let Some(stuck) = stuck.filter(|_| !of_it.any(|m| m.to.is_some())) {
                    spinner.finish_and_clear();
                    let why = stuck.problem.as_deref().unwrap_or("nobody is there");
                    anyhow::bail!("{} cannot be replaced: {why}", info.node);
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }

    fn say(&self, changed: &[NodeChanged], what: impl Fn(&NodeChanged) -> String) -> anyhow::Result<()> {
        if self.common.json {
            println!("{}", serde_json::to_string(changed)?);
        } else {
            changed.iter().for_each(|node| println!("{}: {}", node.node, what(node)));
        }
        Ok(())
    }

    async fn send_away(&self, change: NodeChange, wait: bool, done: &str) -> anyhow::Result<()> {
        let mut changed = self.change(change).await?;
        if !wait {
            let what = if change == NodeChange::Lost { "are made anew elsewhere" } else { "go elsewhere" };
            return self.say(&changed, |node| {
                format!("{} fragments {what}; `coe-ctl repair` shows how far that is", node.to_hand_over)
            });
        }
        self.wait(&changed, change != NodeChange::Drain).await?;
        changed.iter_mut().for_each(|node| node.to_hand_over = 0);
        self.say(&changed, |_| done.into())
    }
}

impl Node {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Drain(args) => args.which.send_away(NodeChange::Drain, args.wait, "empty").await,
            Self::Label(args) => args.run().await,
            Self::Device(args) => {
                let (change, what) = match args.not {
                    true => (NodeChange::NoDevice, "a stash like others"),
                    false => (NodeChange::Device, "a mass-storage device"),
                };
                let changed = args.which.change(change).await?;
                args.which.say(&changed, |_| what.into())
            }
            Self::Keep(args) => {
                let changed = args.which.change(NodeChange::Keep).await?;
                args.which.say(&changed, |_| "a member like any other".into())
            }
            Self::Remove(args) => {
                let change = if args.lost { NodeChange::Lost } else { NodeChange::Remove };
                args.which.send_away(change, args.wait, "no member any more").await
            }
        }
    }
}
