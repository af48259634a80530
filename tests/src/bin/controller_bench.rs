//! A controller with a large catalog: how long it takes to start, what it keeps in memory, and what it uses of a processor when nobody asks for
//! anything, as a process; and what placing a segment costs it with everybody up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use controller::catalog::{Catalog, NewSegment, NodeRecord, SegmentRecord};
use controller::io::controller::Controller;
use controller::io::fleet::Pulse;
use controller::io::folder::Folder;
use controller::io::mass_storage::MassStorage;
use controller::placement::Protection;
use images::keys::SegmentKey;
use images::parity::Geometry;
use images::{ChunkId, FragmentDigest, GroupId, NodeId, SegmentId};
use protocol::identity::Role;
use protocol::io::pool::Pool;
use protocol::io::{endpoint, tls};
use protocol::message::publish::Layout;
use redb::Database;

#[derive(Parser)]
struct Cli {
    /// Programs of the product
    bin: std::path::PathBuf,
    /// An empty folder
    dir: std::path::PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    segments: u64,
    #[arg(long, default_value_t = 20_000)]
    clients: u64,
}

const SEALED_LEN: u32 = 4 << 20;
const TOGETHER: u64 = 20_000;
const IDLE: Duration = Duration::from_secs(60);

fn node(number: u64) -> NodeId {
    NodeId(blake3::hash(&number.to_le_bytes()).as_bytes()[..16].try_into().expect("16 bytes"))
}

/// In order, so that a catalog is filled quickly; otherwise as good as a hash.
fn segment(number: u64) -> SegmentId {
    let mut id = *blake3::hash(&number.to_le_bytes()).as_bytes();
    id[..8].copy_from_slice(&(number << 20).to_be_bytes());
    SegmentId(id)
}

fn geometry() -> Geometry {
    Geometry::new(10, 4).expect("a geometry")
}

/// Fill a catalog; as many groups as the product would make.
fn fill(catalog: &Catalog, cli: &Cli) -> anyhow::Result<u64> {
    let (n, clients) = (geometry().pieces() as u64, cli.clients);
    let groups = (clients * 2).div_ceil(n).max(1);
    let record = |i: u64| NodeRecord {
        role: Role::Stash,
        addresses: vec![format!("10.{}.{}.{}:7401", i >> 16, (i >> 8) & 255, i & 255).parse().expect("an address")],
        capacity: 40 << 30,
        joined_unix_s: 0,
    };
    for from in (0..clients).step_by(TOGETHER as usize) {
        catalog.change(|change| {
            (from..clients.min(from + TOGETHER)).try_for_each(|i| change.put_node(node(i), &record(i)))
        })?;
    }
    let segment = |number: u64| {
        let group = number % groups;
        NewSegment {
            id: segment(number),
            record: SegmentRecord {
                sealed_len: SEALED_LEN,
                data_len: SEALED_LEN,
                key: SegmentKey([7; 32]),
                group: GroupId(0),
                fragments: (0..n).map(|i| FragmentDigest([(number + i) as u8; 32])).collect(),
                on_mass_storage: false,
                references: 1,
                stored_unix_s: 0,
            },
            chunks: vec![(ChunkId(segment(number).0), SEALED_LEN)],
            geometry: geometry(),
            holders: (0..n).map(|i| node((group * n + i) * 7 % clients)).collect(),
        }
    };
    for from in (0..cli.segments).step_by(TOGETHER as usize) {
        let until = cli.segments.min(from + TOGETHER);
        catalog.change(|change| (from..until).try_for_each(|number| change.put_segment(&segment(number))))?;
        if from % (50 * TOGETHER) == 0 {
            eprintln!("{until} of {} segments", cli.segments);
        }
    }
    Ok(groups)
}

/// MiB that a process has in memory, by a line of its status.
fn mib(child: &Child, what: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Processor seconds of a process.
fn cpu_s(child: &Child) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn as_process(cli: &Cli, home: &Path, folder: &Path) -> anyhow::Result<()> {
    let log = fs::File::create(cli.dir.join("controller.log"))?;
    let start = Instant::now();
    let mut serve = Command::new(cli.bin.join("coe-controller"));
    let mut child = serve.args(["serve", "--dir"]).arg(folder).stdout(log.try_clone()?).stderr(log).spawn()?;
    let ctl = |args: &[&str]| {
        let start = Instant::now();
        let out = Command::new(cli.bin.join("coe-ctl")).args(args).env("COE_HOME", home).output();
        (out.is_ok_and(|out| out.status.success()), start.elapsed().as_secs_f64())
    };
    while !ctl(&["status"]).0 {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(300), "the controller does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "| answers after a start | {:.1} s, {:.0} MiB resident |",
        start.elapsed().as_secs_f64(),
        mib(&child, "VmRSS:")
    );
    let before = cpu_s(&child);
    std::thread::sleep(IDLE);
    let idle = (cpu_s(&child) - before) / IDLE.as_secs_f64() * 100.0;
    println!("| a minute without questions | {idle:.1} % of a processor, {:.0} MiB resident |", mib(&child, "VmRSS:"));
    for args in [&["status"][..], &["repair"], &["nodes"], &["gc", "--dry-run"], &["restripe"], &["explain"]] {
        let (done, took) = ctl(args);
        println!("| `coe-ctl {}` | {took:.2} s{} |", args.join(" "), if done { "" } else { ", refused" });
    }
    println!("| most that was resident | {:.0} MiB |", mib(&child, "VmHWM:"));
    child.kill()?;
    child.wait()?;
    Ok(())
}

async fn in_process(cli: &Cli, folder: &Folder) -> anyhow::Result<()> {
    let settings = folder.settings()?;
    let authority = folder.authority()?;
    let member = authority.credentials(Role::Controller, settings.addresses.clone())?;
    let catalog = Arc::new(Catalog::new(Database::create(folder.catalog_file())?)?);
    let pool = Arc::new(Pool::new(endpoint::client(tls::client(&member, tls::ALPN_MEMBER)?)?));
    let mass_storage = MassStorage::folder(&cli.dir.join("mass-storage"))?;
    let controller = Controller::new(authority, catalog, mass_storage, pool, settings, folder.sealed_authority()?)?;
    for number in 0..cli.clients {
        let (fragments, fold) = (0, 0);
        let (capacity, used) = (40 << 30, (number % 1000) << 20);
        let at = Instant::now() + Duration::from_secs(3600);
        let pulse = Pulse {
            at,
            connection: 0,
            capacity,
            used,
            fragments,
            fold,
            aside: None,
            too_much: 0,
            is_urgent: false,
            serves_installers: false,
        };
        controller.fleet.heard(node(number), pulse);
    }
    let protection = Protection { geometry: geometry(), layout: Layout::Clients, steady: 10 };
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for number in 0..20_u64 {
        let start = Instant::now();
        let id = segment(number + 1_000_000_000);
        controller.members_for(id, protection, u64::from(SEALED_LEN) / 10).map_err(|e| anyhow::anyhow!("{e}"))?;
        took.entry("members of a segment are chosen").or_default().push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let found = controller.catalog.newer_edition(&segment(number))?;
        anyhow::ensure!(found.is_none());
        took.entry("a segment is looked up").or_default().push(start.elapsed().as_secs_f64());
        if number < 5 {
            let start = Instant::now();
            controller.catalog.expected_at(node(number))?;
            took.entry("what a stash should have").or_default().push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            controller.catalog.folds()?;
            took.entry("folds of all stashes").or_default().push(start.elapsed().as_secs_f64());
        }
    }
    for (what, mut all) in took {
        all.sort_by(f64::total_cmp);
        println!("| {what} | {:.2} ms |", all[all.len() / 2] * 1000.0);
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let (home, dir) = (cli.dir.join("home"), cli.dir.join("controller"));
    let mut init = Command::new(cli.bin.join("coe-controller"));
    let out = init.args(["init", "--listen", "127.0.0.1:17400", "--dir"]).arg(&dir).env("COE_HOME", &home).output()?;
    anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let folder = Folder::at(dir.clone());
    let start = Instant::now();
    let groups = {
        let catalog = Catalog::new(Database::create(folder.catalog_file())?)?;
        fill(&catalog, &cli)?
    };
    let len = fs::metadata(folder.catalog_file()).context("the catalog")?.len();
    println!(
        "{} segments ({}), {} stashes, {groups} groups; catalog of {:.1} GB, filled in {:.0} s\n",
        cli.segments,
        geometry(),
        cli.clients,
        len as f64 / 1e9,
        start.elapsed().as_secs_f64()
    );
    println!("| | |\n|---|---|");
    as_process(&cli, &home, &dir)?;
    tokio::runtime::Runtime::new()?.block_on(in_process(&cli, &folder))
}
