//! `coe-installer deploy`: what runs on a machine that booted from the network, until it starts its own disk.

mod boot_entry;
mod boot_server;
mod facts;
mod finish;
mod partitions;
mod scan;

pub use boot_server::boot_options;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use images::ArrayId;
use images::disk::{Grow, Layout};
use protocol::identity::Role;
use protocol::io::credentials::{Credentials, file_of};
use protocol::io::link::Link;
use protocol::io::rpc::CallError;
use protocol::io::stage::process_cpu;
use protocol::message::boot::{DeployStage, Deployment, GetDeployment, Limit, Progress as Said, Told};
use protocol::message::image::Report;
use protocol::ticket::Ticket;

use super::install::{Fit, Prepare, Progress, Shortage, install};
use super::source::Source;
use super::target::{Consent, Target, read_from_medium};
use crate::disks::{DiskFacts, choose};
use crate::first_blocks::{CutOff, FIRST_LEN, cut_off};

/// How often the controller and the console hear how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// How often a stopped installation asks what the admin says.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Tries when too few pieces can be had, before the admin is asked.
const TRIES_WITHOUT_PIECES: u32 = 20;
/// And the time between them.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// How long a controller may take to hear that a disk is about to become bootable.
const TELL_WITHIN: Duration = Duration::from_secs(15);
/// A controller that restarts is waited for.
const CONTROLLER_BACK_WITHIN: Duration = Duration::from_secs(300);

/// Say something on the console. Lines are short: a console has 80 columns, and nobody scrolls back.
fn say(text: &str) {
    eprintln!("coe: {text}");
}

/// Become a member with the ticket of this boot, or go on as the member that an earlier try on this boot became.
async fn member(home: &Path, ticket: Option<Ticket>, array: Option<ArrayId>) -> anyhow::Result<Credentials> {
    let file = file_of(home, Role::Installer);
    let expect = |found: ArrayId| match array {
        Some(array) if array != found => {
            bail!(
                "the ticket is of array {found}, and this boot file was signed for another: somebody else answers here"
            )
        }
        _ => Ok(()),
    };
    if let Ok(member) = Credentials::load(&file) {
        expect(member.identity.array)?;
        return Ok(member);
    }
    let ticket = ticket.context("there is no ticket: was this machine booted by coe-bootd?")?;
    expect(ticket.array)?;
    let start = Instant::now();
    let member = loop {
        match Credentials::join(&ticket).await {
            Ok(member) => break member,
            Err(error) if start.elapsed() > Duration::from_secs(60) => return Err(error.into()),
            Err(protocol::io::credentials::CredentialsError::Join(CallError::Refused(why))) => bail!("{why}"),
            Err(error) => {
                say(&format!("{:#}; trying again", anyhow::Error::new(error)));
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        }
    };
    member.save(&file)?;
    Ok(member)
}

/// Ask, and wait for a controller that is away for a moment.
async fn ask<C: protocol::message::Call + Clone>(link: &Link, message: C) -> anyhow::Result<C::Reply> {
    let start = Instant::now();
    loop {
        match link.call(message.clone()).await {
            Ok((reply, _)) => return Ok(reply),
            Err(error @ CallError::Refused(_)) => return Err(error.into()),
            Err(error) if start.elapsed() > CONTROLLER_BACK_WITHIN => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_secs(2)).await,
        }
    }
}

/// Carry out this machine's deployment. When it returns `Ok`, the machine is to start its own disk.
///
/// # Errors
/// If the array cannot be asked what to do.
pub async fn run(home: &Path, ticket: Option<Ticket>, array: Option<ArrayId>) -> anyhow::Result<()> {
    let member = member(home, ticket, array).await.context("join the array")?;
    let link = Arc::new(Link::new(&member)?);
    let mut short_of_pieces = 0;
    loop {
        let deployment = ask(&link, GetDeployment { facts: facts::of_this_machine() }).await?;
        say(&format!("this is {}; installs {}", deployment.host, deployment.image));
        let Err(error) = attempt(&link, home, &member, &deployment).await else { return Ok(()) };
        let why = format!("{error:#}");
        // Stashes restart, move, and are busy; the disk keeps what is there.
        if error.is::<Shortage>() && short_of_pieces < TRIES_WITHOUT_PIECES {
            short_of_pieces += 1;
            say(&format!("{why}\ncoe: trying again in {} s", AGAIN_AFTER.as_secs()));
            tokio::time::sleep(AGAIN_AFTER).await;
            continue;
        }
        short_of_pieces = 0;
        say(&format!("STOPPED: {why}"));
        say("nothing more happens here until the admin says `coe-ctl deploy retry` or `cancel`");
        let stopped = Said { stage: DeployStage::Stopped, stopped: Some(why), ..Said::default() };
        loop {
            match ask(&link, stopped.clone()).await? {
                Told::GoOn => tokio::time::sleep(ASK_EVERY).await,
                Told::Again => break,
                Told::Cancelled => {
                    say("cancelled");
                    return Ok(());
                }
            }
        }
    }
}

/// What a try before this one left on the disk that it was about to finish.
fn left_before(disk: &DiskFacts, deployment: &Deployment, image_len: u64) -> anyhow::Result<Option<CutOff>> {
    let Some(finishing) = deployment.finishing.as_ref().filter(|f| disk.serial.as_ref() == Some(&f.serial)) else {
        return Ok(None);
    };
    let first = read_from_medium(Path::new(&disk.path), image_len.min(FIRST_LEN)).context("read the disk")?;
    Ok(Some(cut_off(&first, finishing)))
}

/// What is done to a proven disk while it cannot boot yet: it is named, and the controller hears that only its first blocks are missing.
fn prepare(link: &Arc<Link>, deployment: &Deployment, disk: &DiskFacts, image: &Layout) -> Prepare {
    let runtime = tokio::runtime::Handle::current();
    let (link, deployment, disk, image) = (link.clone(), deployment.clone(), disk.clone(), image.clone());
    Box::new(move |proven| {
        say("proven; it is named before it can boot");
        finish::prepare(Path::new(&disk.path), &image, &deployment, proven)?;
        let finishing = disk.serial.map(|serial| proven.finishing(serial));
        let said = Said { stage: DeployStage::Finish, done: 1, total: 1, finishing, ..Said::default() };
        // A controller that is away hears the result later. Only if the power goes in just that time, the admin is asked.
        let told = runtime.block_on(tokio::time::timeout(TELL_WITHIN, link.call(said)));
        match told {
            Ok(Ok((Told::Cancelled, _)) | Err(CallError::Refused(_))) => {
                bail!("cancelled; the disk was left unbootable")
            }
            Ok(Ok(_)) => {}
            _ => say("the controller does not answer; finishing without it"),
        }
        say("named; it can boot next");
        Ok(())
    })
}

async fn attempt(link: &Arc<Link>, home: &Path, member: &Credentials, deployment: &Deployment) -> anyhow::Result<()> {
    let image = &deployment.image;
    let source = Source::open(member, home, &[], image.name(), Some(image.tag().into())).await?;
    source.key().await?;
    let disks = scan::disks().await;
    let disk = choose(&disks, &deployment.disk, source.root.disk_len).map_err(anyhow::Error::msg)?;
    say(&format!("disk {}", disk.describe()));
    let left = left_before(disk, deployment, source.root.disk_len)?;
    if left == Some(CutOff::AtTheEnd) {
        say("the try before this one had come to its end when it was cut off");
        let report = Report { image: image.clone(), error: None, lied: Vec::new(), written: 0, took_ms: 0 };
        return conclude(&source, report, disk).await;
    }
    let may_wipe = deployment.wipe || left == Some(CutOff::BeforeIt);
    let consent = Consent { wipe: may_wipe.then(|| disk.serial.clone()).flatten() };
    let path = Path::new(&disk.path);
    // Whether there is something to lose is asked first; only then consent counts.
    let target = Target::open(path, &source.root, &Consent { wipe: None }).or_else(|refused| match consent.wipe {
        Some(_) => Target::open(path, &source.root, &consent),
        None if deployment.wipe => Err(refused),
        None => Err(refused.context("deploy again with --wipe if it may be destroyed")),
    })?;
    let progress = Arc::new(Progress::default());
    let (result, mut report) = {
        let fit = Fit { grow: Grow::Last, new_guids: deployment.new_guids };
        let first = finish::can_come_first(&source.root.disk);
        let prepare = first.then(|| prepare(link, deployment, disk, &source.root.disk));
        let installing = install(&source, target, fit, prepare, progress.clone());
        tokio::pin!(installing);
        let mut teller = Teller::new(source.root.totals.in_use, source.root.disk_len);
        loop {
            tokio::select! {
                ended = &mut installing => break ended,
                () = tokio::time::sleep(SAY_EVERY) => match teller.tell(link, &progress).await {
                    Some(Told::Cancelled) => bail!("cancelled; the disk was left unbootable"),
                    _ => continue,
                },
            }
        }
    };
    let finished = match result {
        Ok(outcome) => {
            say(&format!(
                "{} written and proven in {:.0} s{}",
                outcome.image,
                outcome.took_s,
                if outcome.resumed > 0 {
                    format!(", {} MB of it from before", outcome.resumed / 1_000_000)
                } else {
                    String::new()
                }
            ));
            if finish::can_come_first(&source.root.disk) {
                Ok(())
            } else {
                let (deployment, path) = (deployment.clone(), disk.path.clone());
                let (layout, renamed) = (source.root.disk.clone(), outcome.renamed);
                let finish = move || finish::finish(Path::new(&path), &layout, &deployment, &renamed);
                tokio::task::spawn_blocking(finish).await?
            }
        }
        Err(error) => Err(error),
    };
    if let Err(error) = finished {
        report.error = Some(format!("{error:#}"));
        source.report(report).await;
        return Err(error);
    }
    conclude(&source, report, disk).await
}

/// Everything is done: the controller hears it, and the firmware.
async fn conclude(source: &Source, report: Report, disk: &DiskFacts) -> anyhow::Result<()> {
    // Until the controller itself knows, the machine is not started: it would install it again, over whatever somebody did on it by then.
    while let Err(error) = source.tell_controller(report.clone()).await {
        if matches!(error, CallError::Refused(_)) {
            return Err(error.into());
        }
        say("installed, but the controller does not hear it; waiting for it");
        tokio::time::sleep(ASK_EVERY).await;
    }
    let (path, layout) = (disk.path.clone(), source.root.disk.clone());
    let entry = move || partitions::read_table_again(&path).and_then(|()| boot_entry::make(Path::new(&path), &layout));
    match tokio::task::spawn_blocking(entry).await? {
        Ok(true) => say("boot entry made; the next start is from the disk"),
        Ok(false) => {}
        // Every image boots without one, from the path that firmware tries by itself.
        Err(error) => say(&format!("no boot entry made: {error:#}")),
    }
    say("installed; starting the machine from its disk");
    Ok(())
}

/// Tells the controller and the console how far it is, and what holds it up.
struct Teller {
    in_use: u64,
    disk_len: u64,
    last: (Instant, Duration, u64),
}

impl Teller {
    fn new(in_use: u64, disk_len: u64) -> Self {
        Self { in_use, disk_len, last: (Instant::now(), process_cpu(), 0) }
    }

    fn said(&mut self, progress: &Progress) -> (Said, f64) {
        let (stage, done, total) = match progress.stage.load(Relaxed) {
            0 => (DeployStage::Install, progress.written.load(Relaxed), self.in_use),
            1 => (DeployStage::Compare, progress.compared.load(Relaxed), self.disk_len),
            _ => (DeployStage::Finish, 1, 1),
        };
        let (before, cpu_before, done_before) = self.last;
        let wall_s = before.elapsed().as_secs_f64().max(0.001);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let busy = (process_cpu() - cpu_before).as_secs_f64() / wall_s / cores;
        let limit = if stage != DeployStage::Install {
            Limit::Disk
        } else if busy > 0.8 {
            Limit::Processor
        } else if progress.fetching.load(Relaxed) >= progress.writing.load(Relaxed) {
            Limit::Peers
        } else {
            Limit::Disk
        };
        let rate = done.saturating_sub(done_before) as f64 / wall_s;
        self.last = (Instant::now(), process_cpu(), done);
        (Said { stage, done, total, limit, ..Said::default() }, rate)
    }

    async fn tell(&mut self, link: &Link, progress: &Progress) -> Option<Told> {
        let (said, rate) = self.said(progress);
        let percent = (said.done * 100).checked_div(said.total).unwrap_or(0);
        let stage = format!("{:?}", said.stage).to_lowercase();
        let limit = format!("{:?}", said.limit).to_lowercase();
        say(&format!("{stage} {percent:>3}%  {:.0} MB/s, limited by {limit}", rate / 1e6));
        // The installation does not wait for whoever listens.
        let told = tokio::time::timeout(Duration::from_secs(1), link.call(said)).await;
        match told.ok()? {
            Ok((told, _)) => Some(told),
            // The machine or its deployment was forgotten.
            Err(CallError::Refused(_)) => Some(Told::Cancelled),
            Err(_) => None,
        }
    }
}
