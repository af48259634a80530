//! `coe-ctl host`

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::client::Client;
use super::{Common, table};
use crate::io::api::{HostChange, HostInfo, NewHost, Numbers};
use crate::io::unix_s;

/// Machines that boot from the network
#[derive(Subcommand)]
pub enum Host {
    List(List),
    Show(Show),
    Approve(Approve),
    Label(Label),
    Forget(Forget),
    Import(Import),
}

/// List machines that asked to boot, or were imported
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl host list")]
pub struct List {
    #[command(flatten)]
    common: Common,
}

/// Show one machine
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl host show lab-03")]
pub struct Show {
    /// Name, UUID, serial number or Ethernet address
    host: String,
    #[command(flatten)]
    common: Common,
}

/// Say that machines may be installed
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl host approve host-1 52:54:00:12:34:56")]
pub struct Approve {
    /// Name, UUID, serial number or Ethernet address
    #[arg(required = true)]
    hosts: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Name a machine, and put it into groups
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl host label host-1 --name lab-03 --group lab")]
pub struct Label {
    /// Name, UUID, serial number or Ethernet address
    host: String,
    /// Its new name
    #[arg(long)]
    name: Option<String>,
    /// Groups, instead of those it has
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Forget a machine and its deployments
#[derive(Args)]
#[command(after_help = "Example:\n  coe-ctl host forget lab-03")]
pub struct Forget {
    /// Name, UUID, serial number or Ethernet address
    host: String,
    #[command(flatten)]
    common: Common,
}

/// Know machines beforehand; they count as approved
///
/// The first line names the columns: name, and any of uuid, serial, mac, group. Several addresses or groups in one field are
/// separated by spaces.
#[derive(Args)]
#[command(
    after_help = "Example:\n  coe-ctl host import hosts.csv\n\nhosts.csv:\n  name,mac,serial,group\n  lab-01,52:54:00:12:34:56,,lab"
)]
pub struct Import {
    /// The list
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Lines of a list without quotes: no field of a machine holds a comma.
fn parse_csv(text: &str) -> anyhow::Result<Vec<NewHost>> {
    let mut lines = text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
    let (_, heading) = lines.next().context("the list is empty")?;
    let columns: Vec<String> = heading.split(',').map(|c| c.trim().to_ascii_lowercase()).collect();
    if let Some(bad) = columns.iter().find(|c| !["name", "uuid", "serial", "mac", "group"].contains(&c.as_str())) {
        bail!("column {bad:?} is not name, uuid, serial, mac or group");
    }
    let mut hosts = Vec::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(|f| f.trim().trim_matches('"')).collect();
        if fields.len() != columns.len() {
            bail!("line {} has {} fields, the first line {}", number + 1, fields.len(), columns.len());
        }
        let mut host = NewHost::default();
        for (column, field) in columns.iter().zip(fields).filter(|(_, f)| !f.is_empty()) {
            let words = || field.split_whitespace().map(Into::into);
            match column.as_str() {
                "name" => host.name = field.into(),
                "uuid" => host.uuid = Some(field.into()),
                "serial" => host.serial = Some(field.into()),
                "mac" => host.macs.extend(words()),
                _ => host.groups.extend(words()),
            }
        }
        if host.name.is_empty() {
            bail!("line {} has no name", number + 1);
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn row(h: &HostInfo) -> Vec<String> {
    vec![
        h.name.clone(),
        if h.approved { "approved" } else { "waits for approval" }.into(),
        if h.last_unix_s == 0 { "never".into() } else { table::ago(unix_s().saturating_sub(h.last_unix_s)) },
        h.firmware.clone().unwrap_or_else(|| "-".into()),
        h.serial.clone().unwrap_or_else(|| "-".into()),
        h.macs.join(" "),
        h.groups.join(" "),
        h.product.clone(),
    ]
}

fn one_is(host: &str, h: &HostInfo) -> bool {
    h.name == host
        || h.serial.as_deref() == Some(host)
        || h.uuid.as_deref() == Some(&host.to_ascii_lowercase())
        || h.macs.contains(&host.to_ascii_lowercase())
}

impl Host {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(args) => {
                let hosts: Vec<HostInfo> = Client::new(&args.common)?.get("/v1/hosts").await?;
                if args.common.json {
                    println!("{}", serde_json::to_string(&hosts)?);
                    return Ok(());
                }
                let rows: Vec<_> = hosts.iter().map(row).collect();
                table::print(
                    &["HOST", "STATE", "ASKED", "FIRMWARE", "SERIAL", "ADDRESSES", "GROUPS", "PRODUCT"],
                    &rows,
                );
            }
            Self::Show(args) => {
                let hosts: Vec<HostInfo> = Client::new(&args.common)?.get("/v1/hosts").await?;
                let found = hosts.iter().find(|h| one_is(&args.host, h));
                let host = found.with_context(|| format!("machine {} not found", args.host))?;
                if args.common.json {
                    println!("{}", serde_json::to_string(host)?);
                    return Ok(());
                }
                let names = ["host", "state", "asked", "firmware", "serial", "addresses", "groups", "product"];
                for (name, value) in names.iter().zip(row(host)) {
                    println!("{name:<10} {value}");
                }
                println!("{:<10} {}", "uuid", host.uuid.as_deref().unwrap_or("-"));
            }
            Self::Approve(args) => {
                let client = Client::new(&args.common)?;
                for host in &args.hosts {
                    let change = HostChange { approved: Some(true), ..HostChange::default() };
                    let info: HostInfo = client.post(&format!("/v1/hosts/{host}"), &change).await?;
                    if args.common.json {
                        println!("{}", serde_json::to_string(&info)?);
                    } else {
                        println!("{} may be installed", info.name);
                    }
                }
            }
            Self::Label(args) => {
                let groups = (!args.groups.is_empty()).then_some(args.groups);
                let change = HostChange { approved: None, name: args.name, groups };
                let info: HostInfo =
                    Client::new(&args.common)?.post(&format!("/v1/hosts/{}", args.host), &change).await?;
                if args.common.json {
                    println!("{}", serde_json::to_string(&info)?);
                } else {
                    println!("{} {}", info.name, info.groups.join(" "));
                }
            }
            Self::Forget(args) => {
                let gone: Numbers = Client::new(&args.common)?.delete(&format!("/v1/hosts/{}", args.host)).await?;
                if args.common.json {
                    println!("{}", serde_json::to_string(&gone)?);
                } else {
                    println!("{} forgotten", args.host);
                }
            }
            Self::Import(args) => {
                let text =
                    std::fs::read_to_string(&args.file).with_context(|| format!("read {}", args.file.display()))?;
                let hosts = parse_csv(&text).with_context(|| format!("read {}", args.file.display()))?;
                let known: Numbers = Client::new(&args.common)?.post("/v1/hosts", &hosts).await?;
                if args.common.json {
                    println!("{}", serde_json::to_string(&known)?);
                } else {
                    println!("{} machines imported and approved", known.ids.len());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let hosts =
            parse_csv("Name,MAC,group\n# room 1\nlab-01,52:54:00:12:34:56 52:54:00:12:34:57,lab all\n\nlab-02,,lab\n")
                .unwrap();
        assert_eq!((hosts.len(), hosts[0].macs.len(), hosts[0].groups.len()), (2, 2, 2));
        assert_eq!((hosts[1].name.as_str(), hosts[1].macs.len()), ("lab-02", 0));
        for bad in ["", "name,colour\na,b", "name,mac\nlab-01", "name,mac\n,52:54:00:12:34:56"] {
            assert!(parse_csv(bad).is_err(), "{bad}");
        }
    }
}
