//! `coe-stash status`

use clap::Args;

use super::Which;

/// Show what this stash is and how much it offers
#[derive(Args)]
#[command(after_help = "Example:\n  coe-stash status --json")]
pub struct Status {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let folder = self.which.folder();
        let (member, settings) = (folder.credentials()?, folder.settings()?);
        let (directory, shares) = (folder.directory(&member).mark(), folder.shares()?.count());
        let free = folder.free_bytes()?;
        if self.json {
            let value = serde_json::json!({
                "array": member.identity.array.to_string(),
                "node": member.identity.node.to_string(),
                "controller": member.controller,
                "size": settings.size,
                "min_free": settings.min_free,
                "free": free,
                "listen": settings.listen,
                "epoch": directory.map(|mark| mark.epoch.0),
                "term": directory.map(|mark| mark.term),
                "shares": shares,
                "reports": folder.reports().count(),
            });
            println!("{value}");
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        println!("node        {}", member.identity.node);
        println!("array       {}", member.identity.array);
        println!("controller  {}", member.controller.join(", "));
        println!("listen      {} (UDP)", settings.listen);
        println!("offers      {:.1} GiB", gib(settings.size));
        println!("disk free   {:.1} GiB, stops taking below {:.1} GiB", gib(free), gib(settings.min_free));
        println!(
            "directory   {}",
            directory.map_or("none yet".into(), |mark| { format!("epoch {} of term {}", mark.epoch, mark.term) })
        );
        println!("key shares  {shares}");
        Ok(())
    }
}
