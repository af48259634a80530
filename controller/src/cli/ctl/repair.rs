//! `coe-ctl repair`

use std::time::{Duration, Instant};

use clap::Args;

use super::client::Client;
use super::{Common, table};
use crate::io::api::{Health, MoveInfo, NewMassStorage, RepairInfo};

/// Nobody waits for what was not made for so long, and cannot be now.
const NOTHING_FOR: Duration = Duration::from_secs(60);

/// Show what is missing, and what is done about it
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl repair --wait")]
pub struct Repair {
    /// Wait until nothing moves, and nothing is missing that can be made now; exit code 1 if somebody cannot be replaced
    #[arg(long)]
    wait: bool,
    /// The folder of mass storage is empty because its disk was replaced: make all copies anew there
    #[arg(long)]
    new_mass_storage: bool,
    #[command(flatten)]
    common: Common,
}

impl Health {
    /// Whether there is nothing to do.
    fn is_green(&self) -> bool {
        self.is_green_but_for_copies() && self.lost_copies == 0
    }

    fn is_green_but_for_copies(&self) -> bool {
        self.missing + self.damaged + self.moves + self.stuck == 0
    }

    /// A few lines for a person.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.lost_segments > 0 {
            lines.push(format!(
                "LOST       {} segments have too few pieces left: `coe-ctl verify` names them. If stashes that were said to be lost are back, say \
                 `coe-ctl node keep`; otherwise publish what was in their images again, and `coe-ctl rm` those that stay as they are",
                self.lost_segments
            ));
        }
        let spare = match self.spare {
            None => "nothing is stored yet".into(),
            Some(0) => "NO further stash may be lost".into(),
            Some(1) => "any one stash may be lost".into(),
            Some(spare) => format!("any {spare} stashes may be lost"),
        };
        let state = match self.missing + self.damaged {
            0 => "every piece has its holder".to_string(),
            missing => format!("{missing} pieces are missing"),
        };
        lines.push(format!("health     {state}; {spare}"));
        if self.moves > 0 {
            let eta = self.eta_s.map_or(String::new(), |s| format!(", about {} min", s.div_ceil(60)));
            let (moves, moved, of) = (self.moves, self.moved, self.to_move);
            lines.push(format!("repair     {moves} holders are being replaced, {moved} of {of} pieces{eta}"));
        }
        if self.put_off > 0 {
            lines.push(format!(
                "put off    {} holders are gone, of groups that can do without them until more are, or until it is time (`policy --window`)",
                self.put_off
            ));
        }
        if !self.not_installable.is_empty() {
            lines.push(format!(
                "AT RISK    {} cannot be installed now: too few pieces are up; start their stashes (`coe-ctl explain IMAGE`)",
                some_of(&self.not_installable)
            ));
        }
        if self.crowded > 0 {
            lines.push(format!(
                "AT RISK    {} groups: one failure domain would take more pieces along than can be lost (`coe-ctl explain IMAGE`); pieces \
                 are moved in the hours of `policy --window` if there is a better place for them; more stashes in other domains would be one",
                self.crowded
            ));
        }
        if self.unsteady > 0 {
            lines.push(format!(
                "UNSTEADY   {} groups: too few of their stashes are usually up when machines are installed (`coe-ctl explain IMAGE`)",
                self.unsteady
            ));
        }
        if let Some(folder) = &self.mass_storage_away {
            lines.push(format!(
                "AWAY       mass storage: {folder} is empty; mount its disk, or say `coe-ctl repair --new-mass-storage`"
            ));
        } else if self.lost_copies > 0 {
            lines.push(format!("copies     {} are missing on mass storage, and are made anew", self.lost_copies));
        }
        if self.stuck > 0 {
            lines.push(format!("STUCK      {} holders cannot be replaced: `coe-ctl repair`", self.stuck));
        }
        lines
    }
}

/// The first names of a list that may be long.
fn some_of(names: &[String]) -> String {
    const SOME: usize = 5;
    let more = names.len().saturating_sub(SOME);
    let some = names.iter().take(SOME).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{some} and {more} more images") } else { some }
}

impl RepairInfo {
    /// Whether nothing moves, and what is missing waits for something else.
    fn is_all_that_can_be(&self) -> bool {
        self.health.moves + self.health.damaged == 0 && self.health.stuck + self.health.put_off > 0
    }
}

impl Repair {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.common)?;
        if self.new_mass_storage {
            let taken: NewMassStorage = client.post("/v1/mass-storage", &()).await?;
            if !self.common.json {
                println!("{} copies are made anew in it", taken.copies);
            }
        }
        let mut info: RepairInfo = client.get("/v1/repair").await?;
        if self.wait {
            let spinner = table::spinner("repairing");
            let so_far =
                |health: &Health| (health.lost_copies, health.moved, health.moves, health.missing, health.damaged);
            let mut last = (so_far(&info.health), Instant::now());
            while !info.health.is_green() && !info.is_all_that_can_be() {
                let health = &info.health;
                if so_far(health) != last.0 {
                    last = (so_far(health), Instant::now());
                }
                // These are not the hours for it, or pieces that it takes are away.
                let waits = info.moves.iter().all(|m| m.problem.is_some());
                if (waits || health.is_green_but_for_copies()) && last.1.elapsed() > NOTHING_FOR {
                    break;
                }
                spinner
                    .set_message(format!("{} of {} pieces, {} missing", health.moved, health.to_move, health.missing));
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                info = client.get("/v1/repair").await?;
            }
            spinner.finish_and_clear();
        }
        self.show(&info)?;
        let waiting = info.health.stuck + info.health.moves;
        if self.wait && waiting > 0 {
            anyhow::bail!("{waiting} holders cannot be replaced now");
        }
        if self.wait && info.health.damaged > 0 {
            anyhow::bail!(
                "{} pieces are not made anew: too few others are there, or their holders are away",
                info.health.damaged
            );
        }
        Ok(())
    }

    fn show(&self, info: &RepairInfo) -> anyhow::Result<()> {
        if self.common.json {
            println!("{}", serde_json::to_string(info)?);
            return Ok(());
        }
        info.health.lines().iter().for_each(|line| println!("{line}"));
        if !info.moves.is_empty() {
            let row = |m: &MoveInfo| {
                vec![
                    format!("{}/{}", m.group, m.piece),
                    m.from.clone(),
                    m.to.clone().unwrap_or_else(|| "nobody".into()),
                    format!("{}/{}", m.done, m.of),
                    table::size(m.fetched),
                    m.problem.clone().unwrap_or_default(),
                ]
            };
            let rows: Vec<_> = info.moves.iter().map(row).collect();
            table::print(&["GROUP/PIECE", "FROM", "TO", "DONE", "FETCHED", "PROBLEM"], &rows);
        }
        Ok(())
    }
}
