//! `coe-installer deploy`: what runs on a machine that booted from the network, until it starts its own disk.

mod boot_entry;
mod boot_server;
mod facts;
mod finish;
mod order;
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
use protocol::io::array::{AlreadyDone, Array};
use protocol::io::credentials::{Credentials, file_of};
use protocol::io::directory::DirectoryKeeper;
use protocol::io::link::Link;
use protocol::io::rpc::CallError;
use protocol::io::stage::process_cpu;
use protocol::io::words;
use protocol::message::boot::{DeployStage, Deployment, Limit, Progress as Said, Told};
use protocol::message::image::{Report, Word};
use protocol::ticket::Ticket;

use super::install::{Fit, Prepare, Progress, Shortage, install};
use super::source::{self, Source, keep_directory};
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
/// How long those may take who need not know.
const KNOW_BESIDES_WITHIN: Duration = Duration::from_secs(2);
/// A controller that restarts is waited for.
const CONTROLLER_BACK_WITHIN: Duration = Duration::from_secs(300);

/// Said where another installer of the same deployment came to its end.
const INSTALLED_BEFORE: &str = "this machine was installed before; starting it from its disk";

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
        match Credentials::join_and_learn(&ticket).await {
            Ok((member, directory)) => {
                keep_directory(&DirectoryKeeper::in_home(home, &member), directory);
                break member;
            }
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

/// What all tries on this machine share.
struct Installer {
    keeper: DirectoryKeeper,
    member: Credentials,
    link: Arc<Link>,
}

/// Carry out this machine's deployment. When it returns `Ok`, the machine is to start its own disk.
///
/// # Errors
/// If the array cannot be asked what to do.
pub async fn run(home: &Path, ticket: Option<Ticket>, array: Option<ArrayId>) -> anyhow::Result<()> {
    let member = member(home, ticket, array).await.context("join the array")?;
    let link = Arc::new(Link::new(&member)?);
    let keeper = DirectoryKeeper::in_home(home, &member);
    Installer { keeper, member, link }.run().await
}

impl Installer {
    async fn run(&self) -> anyhow::Result<()> {
        let mut short_of_pieces = 0;
        loop {
            let (deployment, source) = match self.order().await {
                Err(error) if error.is::<AlreadyDone>() => {
                    say(INSTALLED_BEFORE);
                    return Ok(());
                }
                order => order?,
            };
            say(&format!("this is {}; installs {}", deployment.host, deployment.image));
            let image = &deployment.image;
            let source = match source {
                Some(source) => Ok(source),
                None => Source::open(&self.member, &self.keeper, &[], image.name(), Some(image.tag().into())).await,
            };
            let array = source.as_ref().ok().map(|source| source.array().clone());
            let tried = match source {
                Ok(source) => self.attempt(&source, &deployment).await,
                Err(error) => Err(error),
            };
            let Err(error) = tried else { return Ok(()) };
            if error.is::<AlreadyDone>() {
                say(INSTALLED_BEFORE);
                return Ok(());
            }
            let why = format!("{error:#}");
            // Stashes restart, move, and are busy; the disk keeps what is there.
            if error.is::<Shortage>() && short_of_pieces < TRIES_WITHOUT_PIECES {
                short_of_pieces += 1;
                say(&format!("{why}\ncoe: trying again in {} s", AGAIN_AFTER.as_secs()));
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            short_of_pieces = 0;
            if self.stopped(array, why).await? == Told::Cancelled {
                say("cancelled");
                return Ok(());
            }
        }
    }

    /// What to do. A controller that restarts, and stashes that do, are waited for.
    async fn order(&self) -> anyhow::Result<(Deployment, Option<Source>)> {
        let (start, facts) = (Instant::now(), facts::of_this_machine());
        loop {
            let error = match order::get(&self.link, &self.keeper, &self.member, &facts).await {
                Err(error) if !error.is::<AlreadyDone>() => error,
                order => return order,
            };
            let is_refused = error.downcast_ref::<CallError>().is_some_and(|error| !error.is_absence());
            if is_refused || start.elapsed() > CONTROLLER_BACK_WITHIN {
                return Err(error);
            }
            say(&format!("{error:#}; asking again"));
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Say that the installation stopped, and wait for what the admin says to that.
    async fn stopped(&self, array: Option<Array>, why: String) -> anyhow::Result<Told> {
        say(&format!("STOPPED: {why}"));
        say("nothing more happens here until the admin says `coe-ctl deploy retry` or `cancel`");
        let stopped = Said { stage: DeployStage::Stopped, stopped: Some(why), ..Said::default() };
        let mut is_left = false;
        loop {
            match tokio::time::timeout(TELL_WITHIN, self.link.call(stopped.clone())).await {
                Ok(Ok((Told::GoOn, _))) => {}
                Ok(Ok((told, _))) => return Ok(told),
                Ok(Err(error)) if !error.is_absence() => return Err(error.into()),
                _ => {
                    // Whoever comes back, or takes over, hears at least of it.
                    if let Some(array) = array.as_ref().filter(|_| !is_left) {
                        is_left = array.leave(&words::say(Word::Progress(stopped.clone()))).await.is_ok();
                    }
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
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
fn prepare(link: &Arc<Link>, array: &Array, deployment: &Deployment, disk: &DiskFacts, image: &Layout) -> Prepare {
    let runtime = tokio::runtime::Handle::current();
    let (link, array) = (link.clone(), array.clone());
    let (deployment, disk, image) = (deployment.clone(), disk.clone(), image.clone());
    Box::new(move |proven| {
        say("proven; it is named before it can boot");
        finish::prepare(Path::new(&disk.path), &image, &deployment, proven)?;
        let finishing = disk.serial.map(|serial| proven.finishing(serial));
        let said = Said { stage: DeployStage::Finish, done: 1, total: 1, finishing, ..Said::default() };
        let told = runtime.block_on(tokio::time::timeout(TELL_WITHIN, link.call(said.clone())));
        match told {
            Ok(Ok((Told::Cancelled, _))) => bail!("cancelled; the disk was left unbootable"),
            Ok(Err(error)) if !error.is_absence() => bail!("cancelled; the disk was left unbootable"),
            Ok(Ok(_)) => {}
            // If the power goes in just this time, the next installer hears of it from stashes.
            _ => match runtime.block_on(array.leave_with_holders(&deployment.image, &words::say(Word::Progress(said))))
            {
                Ok(()) => say("the controller does not answer; stashes know it"),
                Err(error) => say(&format!("neither the controller nor a stash hears that the disk is ready: {error}")),
            },
        }
        say("named; it can boot next");
        Ok(())
    })
}

impl Installer {
    async fn attempt(&self, source: &Source, deployment: &Deployment) -> anyhow::Result<()> {
        let (image, link) = (&deployment.image, &self.link);
        source.key().await?;
        let disks = scan::disks().await;
        let disk = choose(&disks, &deployment.disk, source.root.disk_len).map_err(anyhow::Error::msg)?;
        say(&format!("disk {}", disk.describe()));
        let left = left_before(disk, deployment, source.root.disk_len)?;
        if left == Some(CutOff::AtTheEnd) {
            say("the try before this one had come to its end when it was cut off");
            let report = Report { image: image.clone(), error: None, lied: Vec::new(), written: 0, took_ms: 0 };
            return self.conclude(source, report, disk).await;
        }
        let may_wipe = deployment.wipe || left == Some(CutOff::BeforeIt);
        let consent = Consent { wipe: may_wipe.then(|| disk.serial.clone()).flatten() };
        let path = Path::new(&disk.path);
        // Whether there is something to lose is asked first; only then consent counts.
        let target =
            Target::open(path, &source.root, &Consent { wipe: None }).or_else(|refused| match consent.wipe {
                Some(_) => Target::open(path, &source.root, &consent),
                None if deployment.wipe => Err(refused),
                None => Err(refused.context("deploy again with --wipe if it may be destroyed")),
            })?;
        if !source.from_controller {
            let begun = Said { stage: DeployStage::Install, total: source.root.totals.in_use, ..Said::default() };
            let array = source.array().clone();
            tokio::spawn(async move { array.leave(&words::say(Word::Progress(begun))).await });
        }
        let progress = Arc::new(Progress::default());
        let (result, mut report) = {
            let fit = Fit { grow: Grow::Last, new_guids: deployment.new_guids };
            let first = finish::can_come_first(&source.root.disk);
            let prepare = first.then(|| prepare(link, source.array(), deployment, disk, &source.root.disk));
            let installing = install(source, target, fit, prepare, progress.clone());
            let teller = Teller::new(source.root.totals.in_use, source.root.disk_len);
            tokio::select! {
                ended = installing => ended,
                () = teller.tell_until_cancelled(link, &progress) => bail!("cancelled; the disk was left unbootable"),
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
        self.conclude(source, report, disk).await
    }

    /// Everything is done: the array hears it, and the firmware.
    async fn conclude(&self, source: &Source, report: Report, disk: &DiskFacts) -> anyhow::Result<()> {
        let (image, word) = (report.image.clone(), words::say(Word::Ended(report)));
        // Until the controller knows, or so many stashes that no installer gets the image's key for this deployment any more, the machine is
        // not started: it would be installed again, over whatever somebody did on it by then.
        let mut is_left = false;
        loop {
            match source::tell(&self.link, &word).await {
                Ok(()) => {
                    // A controller can be lost, too: whoever answers now knows it besides.
                    let left = source.array().leave_with_holders(&image, &word);
                    let _ = tokio::time::timeout(KNOW_BESIDES_WITHIN, left).await;
                    break;
                }
                Err(error) if !error.is_absence() => return Err(error.into()),
                Err(_) => {}
            }
            match source.array().leave_for_good(&image, &word).await {
                Ok(()) => {
                    say("the controller is away; stashes tell it when it is back");
                    break;
                }
                Err(error) => {
                    is_left = is_left || source.array().leave(&word).await.is_ok();
                    say(&format!(
                        "installed, but neither the controller nor enough stashes hear it ({error}); waiting"
                    ));
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let (path, layout) = (disk.path.clone(), source.root.disk.clone());
        let entry =
            move || partitions::read_table_again(&path).and_then(|()| boot_entry::make(Path::new(&path), &layout));
        match tokio::task::spawn_blocking(entry).await? {
            Ok(true) => say("boot entry made; the next start is from the disk"),
            Ok(false) => {}
            // Every image boots without one, from the path that firmware tries by itself.
            Err(error) => say(&format!("no boot entry made: {error:#}")),
        }
        say("installed; starting the machine from its disk");
        Ok(())
    }
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

    /// Tell, over and over, until the controller says that the deployment was cancelled.
    async fn tell_until_cancelled(mut self, link: &Link, progress: &Progress) {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            if self.tell(link, progress).await == Some(Told::Cancelled) {
                return;
            }
        }
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
            Err(error) if !error.is_absence() => Some(Told::Cancelled),
            Err(_) => None,
        }
    }
}
