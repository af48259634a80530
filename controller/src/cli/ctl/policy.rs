//! `coe-ctl policy` and `coe-ctl explain`

use clap::{Args, Subcommand};
use images::manifest::ImageName;
use protocol::message::publish::Layout;
use protocol::size;

use super::client::Client;
use super::{Common, LayoutArg, table};
use crate::io::api::{Explanation, GroupInfo, PolicyInfo};

/// Say how images are to be protected
#[derive(Subcommand)]
pub enum Policy {
    Set(Set),
    Show(Show),
    Clear(Clear),
}

/// Want something of all images, or of those of a name
///
/// What is published from now on has it at once. What is published already is cut anew where it takes that, in the hours of `--window`:
/// `coe-ctl restripe` lists it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl policy set --survive 3 --readable 99.9\n  coe-ctl policy set --image exam --survive 5 --layout clients\n  \
                  coe-ctl policy set --window 20:00-06:00 --limit 50MB"
)]
pub struct Set {
    /// Stashes that may be lost at the same time
    #[arg(long, value_name = "STASHES")]
    survive: Option<u8>,
    /// How often images can be read from clients alone, in the hours in which machines are installed
    #[arg(long, value_parser = percent, value_name = "PERCENT")]
    readable: Option<f64>,
    /// Who keeps what
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,
    /// Copies instead of parity: every piece is the whole
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    redundant: Option<bool>,
    /// Images of this name only
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// When what can wait is done, local time of the controller: HH:MM-HH:MM, or always
    #[arg(long, value_name = "HOURS")]
    window: Option<String>,
    /// What repair may move in a second, such as 50MB; 0 for as fast as it can
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    limit: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Show what is wanted
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl policy show")]
pub struct Show {
    #[command(flatten)]
    common: Common,
}

/// Want nothing more of all images, or of those of a name
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl policy clear --image exam")]
pub struct Clear {
    /// Images of this name only
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Show how segments are protected, and why so
#[derive(Args)]
#[command(
    after_help = "Examples:\n  coe-ctl explain debian:12.1    # the image as it is\n  coe-ctl explain                # what would be published now"
)]
pub struct Explain {
    /// NAME or NAME:TAG [default: what would become of an image without a policy of its own]
    image: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Policy {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Set(args) => args.run().await,
            Self::Show(args) => args.run().await,
            Self::Clear(args) => {
                let path = format!("/v1/policies{}", query(args.image.as_deref())?);
                let explained: Explanation = Client::new(&args.common)?.delete(&path).await?;
                explained.print(args.common.json)
            }
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| share.is_finite());
    share.ok_or_else(|| "want a percentage, such as 99.9".into())
}

/// `?image=`, for a name that needs no escaping.
fn query(image: Option<&str>) -> anyhow::Result<String> {
    let Some(text) = image else { return Ok(String::new()) };
    let mut parts = text.splitn(2, ':');
    anyhow::ensure!(parts.all(ImageName::is_valid_part), "{text:?} is no name of an image: want NAME or NAME:TAG");
    Ok(format!("?image={text}"))
}

impl Set {
    async fn run(self) -> anyhow::Result<()> {
        let layout = self.layout.map(|layout| Layout::from(layout).to_string());
        let ask = PolicyInfo {
            image: self.image,
            survive: self.survive,
            readable: self.readable,
            layout,
            redundant: self.redundant,
            window: self.window,
            limit: self.limit,
        };
        let nothing = PolicyInfo { image: ask.image.clone(), ..PolicyInfo::default() };
        anyhow::ensure!(ask != nothing, "want what? See `coe-ctl policy set --help`");
        let explained: Explanation = Client::new(&self.common)?.post("/v1/policies", &ask).await?;
        explained.print(self.common.json)
    }
}

impl PolicyInfo {
    fn words(&self) -> Vec<String> {
        let hours = self.window.as_ref().map(|window| format!("what can wait is done {window}"));
        let limit = self.limit.map(|limit| format!("repair moves {} a second at the most", table::size(limit)));
        let words = [
            self.survive.map(|survive| format!("survive {survive}")),
            self.readable.map(|share| format!("readable {share} % of busy hours")),
            self.layout.clone().map(|layout| format!("layout {layout}")),
            self.redundant.filter(|is| *is).map(|_| "redundant".to_string()),
            hours,
            limit,
        ];
        words.into_iter().flatten().collect()
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let policies: Vec<PolicyInfo> = Client::new(&self.common)?.get("/v1/policies").await?;
        if self.common.json {
            println!("{}", serde_json::to_string(&policies)?);
            return Ok(());
        }
        if policies.is_empty() {
            println!(
                "nothing is wanted: a quarter of each segment's holders may be lost, and mass storage keeps a copy"
            );
        }
        for policy in policies {
            println!("{}  {}", policy.image.as_deref().unwrap_or("all images"), policy.words().join(", "));
        }
        Ok(())
    }
}

impl Explain {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = format!("/v1/explain{}", query(self.image.as_deref())?);
        let explained: Explanation = Client::new(&self.common)?.get(&path).await?;
        explained.print(self.common.json)
    }
}

impl Explanation {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let counts = |counts: &[crate::io::api::Count]| {
            counts.iter().map(|count| format!("{} {}", count.count, count.what)).collect::<Vec<_>>().join(", ")
        };
        println!("policy     {}", self.policy.words().join(", "));
        println!("stashes    {}", counts(&self.stashes));
        if !self.domains.is_empty() {
            println!("domains    {}", counts(&self.domains));
        }
        if let Some(geometry) = &self.geometry {
            let readable = match self.busy_hours {
                0 => "when stashes are up was not measured yet".into(),
                hours => format!("readable {:.2} % of {hours} busy hours a week", self.readable),
            };
            println!("new data   {geometry}: {:.2} bytes stored for each byte; {readable}", self.overhead);
        }
        self.why.iter().for_each(|why| println!("           {why}"));
        self.unmet.iter().for_each(|what| println!("NOT KEPT   {what}"));
        self.restripe.iter().for_each(|image| println!("{}", image.line()));
        if !self.groups.is_empty() {
            let row = |g: &GroupInfo| {
                vec![
                    g.group.to_string(),
                    g.geometry.clone(),
                    g.segments.to_string(),
                    g.durable.to_string(),
                    g.online.to_string(),
                    g.steady.to_string(),
                    if g.on_devices > 0 { g.on_devices.to_string() } else { "-".into() },
                    if self.busy_hours == 0 { "-".into() } else { format!("{:.2} %", g.readable) },
                    g.weakness.clone().unwrap_or_default(),
                ]
            };
            println!();
            let heading =
                ["GROUP", "PIECES", "SEGMENTS", "DURABLE", "ONLINE", "STEADY", "DEVICES", "READABLE", "WEAKNESS"];
            table::print(&heading, &self.groups.iter().map(row).collect::<Vec<_>>());
        }
        Ok(())
    }
}
