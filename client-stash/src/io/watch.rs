//! Watching the machine that the stash lives on: its disk, its battery, what its network costs, and what else it has to do.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::Timelike as _;
use protocol::message::member::{Aside, Wish};
use protocol::pace::Bucket;
use serde::{Deserialize, Serialize};

use super::file::FileStorage;
use super::folder::{Folder, Settings};
use super::writer::Writer;
use crate::limits::REGION_LEN;
use crate::manners::{self, Level, Limit, Sizes};
use crate::storage::Storage as _;

/// How often disk and load are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A disk that does not answer for so long is away. One that sleeps, or writes a lot back, answers sooner.
const LOOKED_WITHIN: Duration = Duration::from_secs(20);
/// How often battery and network are: asking costs a process.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Percent of the time in which somebody waited for the disk: from here on the stash stands back.
const PRESSURE_MAX: f64 = 20.0;
/// Bytes a second that it moves at the most while it stands back.
const STANDING_BACK: u64 = 10_000_000;
/// Nobody waits longer for a fragment that others have, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Repair goes on when no installer has been served for so long.
const INSTALLERS_QUIET: Duration = Duration::from_millis(300);
/// Room for small files on a full disk.
const BALLAST_LEN: u64 = 16 << 20;

/// What was seen last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// How full the disk is.
    pub level: Level,
    /// Bytes free on it, when it was looked at last.
    #[serde(default)]
    pub free: Option<u64>,
    /// Whether others wait for the disk.
    pub is_busy: bool,
    /// Whether the machine runs on its battery.
    pub on_battery: bool,
    /// Whether its network costs money.
    pub is_metered: bool,
    /// Whether the stash file is not to be had: its medium is unplugged, or somebody moved it.
    #[serde(default)]
    pub is_away: bool,
    /// Bytes a second that the network may have now.
    pub network: Option<u64>,
    /// The same for the disk.
    pub disk: Option<u64>,
}

#[derive(Default)]
struct State {
    seen: Seen,
    network: Bucket,
    disk: Bucket,
}

/// What the rest of the service asks before it moves bytes.
pub struct Manners {
    start: Instant,
    limits: Mutex<Vec<Limit>>,
    state: Mutex<State>,
    /// The medium failed since it was looked at.
    has_failed: AtomicBool,
    /// Bytes that must be elsewhere before the file can be as small as it should be.
    too_much: AtomicU64,
    /// When an installer was served last.
    installer_served: Mutex<Option<Instant>>,
}

impl Manners {
    /// With the limits that the machine's owner set.
    #[must_use]
    pub fn new(limits: Vec<Limit>) -> Arc<Self> {
        let manners = Self {
            start: Instant::now(),
            limits: Mutex::new(limits),
            state: Mutex::default(),
            has_failed: AtomicBool::new(false),
            too_much: AtomicU64::new(0),
            installer_served: Mutex::default(),
        };
        manners.lock().seen = manners.look_at_limits(Seen::default());
        Arc::new(manners)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen last.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.lock().seen.clone()
    }

    /// Why the stash stands aside, if it does.
    #[must_use]
    pub fn aside(&self, is_paused: bool) -> Option<Aside> {
        let seen = &self.lock().seen;
        match () {
            () if seen.is_away => Some(Aside::Away),
            () if is_paused => Some(Aside::Paused),
            () if seen.is_metered => Some(Aside::Metered),
            () => None,
        }
    }

    /// The medium failed: it is looked at soon.
    pub fn note_failure(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Bytes that must be elsewhere in the array before the file can be as small as it should be.
    #[must_use]
    pub fn too_much(&self) -> u64 {
        self.too_much.load(Ordering::Relaxed)
    }

    /// What the controller is told of that.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        match self.too_much() {
            0 => None,
            bytes if self.seen().level == Level::Drop => Some(Wish::LessNow(bytes)),
            bytes => Some(Wish::Less(bytes)),
        }
    }

    /// So many bytes must go elsewhere.
    pub fn has_too_much(&self, bytes: u64) {
        self.too_much.store(bytes, Ordering::Relaxed);
    }

    /// Other limits, from now on.
    pub fn set_limits(&self, limits: Vec<Limit>) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        let mut state = self.lock();
        state.seen = self.look_at_limits(state.seen.clone());
    }

    fn look_at_limits(&self, seen: Seen) -> Seen {
        let now = chrono::Local::now();
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let (network, disk) = manners::allowed(&limits, (now.hour() * 60 + now.minute()) as u16);
        Seen { network, disk, ..seen }
    }

    /// Whether work that can wait should.
    #[must_use]
    pub fn is_work_unwelcome(&self) -> bool {
        let seen = &self.lock().seen;
        seen.is_busy || seen.on_battery
    }

    /// How long to wait for this many bytes of the disk, and of the network if they go there. `None`: longer than anybody would, and
    /// nothing is held against it.
    #[must_use]
    pub fn wait(&self, bytes: u64, is_network: bool) -> Option<Duration> {
        let now = self.start.elapsed();
        let mut state = self.lock();
        let busy = state.seen.is_busy.then_some(STANDING_BACK);
        let rate = |limit: Option<u64>| limit.into_iter().chain(busy).min();
        let (network, disk) = (rate(state.seen.network), rate(state.seen.disk));
        let (mut on_disk, mut on_network) = (state.disk.clone(), state.network.clone());
        let mut wait = disk.map_or(Duration::ZERO, |rate| on_disk.take(now, bytes, rate));
        if let (Some(rate), true) = (network, is_network) {
            wait = wait.max(on_network.take(now, bytes, rate));
        }
        if wait > PATIENCE {
            return None;
        }
        (state.disk, state.network) = (on_disk, on_network);
        Some(wait)
    }

    fn served(&self) -> MutexGuard<'_, Option<Instant>> {
        self.installer_served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody who installs, or reads, is being served: people wait for that.
    pub fn serves_installer(&self) {
        *self.served() = Some(Instant::now());
    }

    /// Whether somebody was, of late.
    #[must_use]
    pub fn served_within(&self, time: Duration) -> bool {
        self.served().is_some_and(|at| at.elapsed() <= time.max(INSTALLERS_QUIET))
    }

    /// Let those go first, for so long at the most. Nobody waits for repair; but it must not wait for ever.
    pub async fn after_installers(&self, most: Duration) {
        let until = Instant::now() + most;
        let quiet_at = || self.served().map(|at| at + INSTALLERS_QUIET).filter(|at| *at > Instant::now());
        while let Some(quiet_at) = quiet_at() {
            tokio::time::sleep_until(quiet_at.min(until).into()).await;
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Whether what is moving already is as much as anybody waits for.
    #[must_use]
    pub fn is_choked(&self) -> bool {
        let now = self.start.elapsed();
        let state = self.lock();
        [&state.disk, &state.network].into_iter().any(|bucket| bucket.clone().take(now, 0, 1) > PATIENCE / 2)
    }
}

/// Whether the machine runs on its battery: no mains is online, and a battery discharges.
fn on_battery() -> bool {
    let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let supplies = fs::read_dir("/sys/class/power_supply").into_iter().flatten().flatten();
    let supplies: Vec<_> = supplies.map(|entry| entry.path()).collect();
    let has_mains =
        supplies.iter().any(|dir| read(dir, "type").trim() != "Battery" && read(dir, "online").trim() == "1");
    let is_empty_soon = |dir: &std::path::PathBuf| {
        // A mouse has a battery, too.
        read(dir, "type").trim() == "Battery"
            && read(dir, "scope").trim() != "Device"
            && read(dir, "status").trim() == "Discharging"
    };
    !has_mains && supplies.iter().any(is_empty_soon)
}

/// Whether the network costs money, as NetworkManager says or guesses (its D-Bus interface, property `Metered`: 1 yes, 3 probably).
fn is_metered() -> bool {
    let manager = "org.freedesktop.NetworkManager";
    let mut ask = Command::new("busctl");
    ask.args(["--system", "get-property", manager, "/org/freedesktop/NetworkManager", manager, "Metered"]);
    let said = ask.stdin(Stdio::null()).stderr(Stdio::null()).output();
    said.is_ok_and(|out| matches!(String::from_utf8_lossy(&out.stdout).trim(), "u 1" | "u 3"))
}

fn ballast(path: &Path) -> std::io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Room that is given back when the disk is full: settings and certificates must still be written then.
fn keep_ballast(folder: &Folder, level: Level) {
    let path = folder.path().join(".ballast");
    let done = match level {
        Level::Drop if path.exists() => fs::remove_file(&path),
        Level::Fine if !path.exists() => ballast(&path).and_then(|file| {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, BALLAST_LEN).or_else(|_| file.set_len(BALLAST_LEN))
        }),
        _ => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "no ballast: a full disk may stop this stash from writing small files");
    }
}

/// What a look at the disks said.
struct Look {
    /// None if they cannot be read now.
    settings: Option<Settings>,
    /// What is open is what lies where the stash file should.
    is_here: bool,
    /// The stash file can be opened anew, and read.
    can_be_opened: bool,
    /// What is open can be read.
    is_readable: bool,
    free: Option<u64>,
    own_free: Option<u64>,
    /// Bytes of what is open.
    len: Option<u64>,
}

impl Look {
    /// `before` are the settings that were read last: they may be on the same medium.
    fn at(folder: &Folder, before: &Settings, storage: &FileStorage, is_away: bool, has_failed: bool) -> Self {
        let settings = folder.settings().ok();
        let file = folder.file_of(settings.as_ref().unwrap_or(before));
        let is_here = storage.is_at(&file);
        let is_doubtful = is_away || has_failed || !is_here;
        Self {
            settings,
            is_here,
            can_be_opened: is_away && FileStorage::look(&file).is_ok(),
            is_readable: !is_doubtful || storage.is_readable(),
            free: folder.free_bytes().ok(),
            own_free: folder.own_free_bytes().ok(),
            len: storage.len().ok(),
        }
    }
}

/// Watch for ever. A medium that does not even answer, as a network folder whose server is gone, is away, too.
pub(super) async fn watch(
    folder: Folder,
    settings: Settings,
    manners: Arc<Manners>,
    writer: Writer,
    storage: Arc<FileStorage>,
) {
    let (mut settings, mut asked, mut looking, mut has_gone) = (settings, None::<Instant>, None, false);
    // One that has no room to be whole again was short from the start.
    let (was_short, mut short_looks) = (is_short(&writer, storage.len().ok()).await, 0);
    loop {
        let (is_away, has_failed) = (manners.seen().is_away, manners.has_failed.swap(false, Ordering::Relaxed));
        let mut task = looking.take().unwrap_or_else(|| {
            let (folder, settings, storage) = (folder.clone(), settings.clone(), storage.clone());
            tokio::task::spawn_blocking(move || Look::at(&folder, &settings, &storage, is_away, has_failed))
        });
        let look = match tokio::time::timeout(LOOKED_WITHIN, &mut task).await {
            Ok(look) => look.ok(),
            Err(_) => {
                looking = Some(task);
                None
            }
        };
        if let Some(found) = look.as_ref().and_then(|look| look.settings.clone()) {
            settings = found;
        }
        let mut seen = manners.look_at_limits(manners.seen());
        if asked.is_none_or(|at| at.elapsed() > ASK_EVERY) {
            asked = Some(Instant::now());
            let facts = tokio::task::spawn_blocking(|| (on_battery(), is_metered())).await;
            (seen.on_battery, seen.is_metered) = facts.unwrap_or_default();
        }
        seen.free = look.as_ref().and_then(|look| look.free).or(seen.free);
        let pressure = fs::read_to_string("/proc/pressure/io").ok().and_then(|text| manners::pressure(&text));
        seen.is_busy = pressure.is_some_and(|percent| percent > PRESSURE_MAX);
        let is_stuck = writer.stuck_for().await > LOOKED_WITHIN;
        let is_well = look.as_ref().is_some_and(|look| look.is_here && look.is_readable);
        // One that did not answer for a while, and lost nothing, goes on. Of one that was gone, everything that was known is out of date.
        has_gone |= look.is_some() && !is_well;
        if has_gone && !is_stuck && is_away && look.as_ref().is_some_and(|look| look.can_be_opened) {
            tracing::info!("the stash file is back");
            start_again();
        }
        seen.is_away = has_gone || is_stuck || !is_well;
        // It may be growing, or being made smaller: then it is as long as it should be at the next look.
        let is_cut_off = !was_short && is_short(&writer, look.as_ref().and_then(|look| look.len)).await;
        short_looks = if is_cut_off { short_looks + 1 } else { 0 };
        if short_looks > 1 {
            tracing::error!("another program cut the stash file off: looking for what is left of it");
            start_again();
        }
        if seen.is_away && !is_away {
            tracing::error!(
                "the stash file is away: its medium is unplugged, does not answer, or it was moved; waiting for it"
            );
        } else if is_away && !seen.is_away {
            tracing::info!("the medium of the stash file answers again");
        }
        if let (Some(free), false) = (look.as_ref().and_then(|look| look.free), seen.is_away) {
            let floors = settings.floors();
            seen.level = manners::level(free, &floors);
            let own = look.and_then(|look| look.own_free).map_or(seen.level, |free| manners::level(free, &floors));
            keep_ballast(&folder, own);
            fit(&folder, &manners, &writer, free).await;
        }
        let before = std::mem::replace(&mut manners.lock().seen, seen.clone());
        if before != (Seen { free: before.free, ..seen.clone() }) {
            tracing::info!(level = ?seen.level, busy = seen.is_busy, battery = seen.on_battery, metered = seen.is_metered, "machine");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a file has fewer bytes than it should.
async fn is_short(writer: &Writer, len: Option<u64>) -> bool {
    let report = writer.report().await;
    report.resizing.is_none() && len.is_some_and(|len| len < report.usage.file)
}

/// Begin anew in the same process: everything that was known of a medium that was away is out of date, and nobody else has to
/// start this service again.
fn start_again() {
    use std::os::unix::process::CommandExt as _;
    if let Ok(program) = std::env::current_exe() {
        let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
        tracing::error!(%error, "not started again");
    }
    // The program may have been replaced meanwhile. Whoever started this starts it again.
    std::process::exit(1);
}

/// Have the size that the disk's owner leaves.
async fn fit(folder: &Folder, manners: &Manners, writer: &Writer, free: u64) {
    let report = writer.report().await;
    // Its owner may have said something else just now.
    let Ok(settings) = folder.settings() else { return };
    let (size, floors) = (settings.size, settings.floors());
    if report.resizing.is_some() || report.regions == 0 {
        return;
    }
    let wish = u32::try_from(size / REGION_LEN).unwrap_or(u32::MAX);
    let sizes = Sizes { now: report.regions, wish, least: report.least_regions, region_len: REGION_LEN };
    let wanted = manners::wanted(free, &floors, &sizes);
    let too_much = u64::from(manners::too_many(free, &floors, &sizes)) * REGION_LEN;
    if wanted == sizes.now {
        manners.has_too_much(too_much);
    }
    if wanted == sizes.now {
        return;
    }
    tracing::info!(now = sizes.now, wanted, free, "regions of the stash: the disk's owner comes first");
    match tokio::time::timeout(LOOKED_WITHIN, writer.resize(wanted)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!(why, "the stash has the size that it had"),
        Err(_) => tracing::warn!("the disk does not answer: the stash has the size that it had"),
    }
    manners.has_too_much(too_much);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn repair_waits_for_installers_but_not_for_ever() {
        let manners = Manners::new(Vec::new());
        let most = 4 * INSTALLERS_QUIET;
        let took = async |manners: &Manners| {
            let start = Instant::now();
            manners.after_installers(most).await;
            start.elapsed()
        };
        assert!(took(&manners).await < INSTALLERS_QUIET, "nobody installs");
        manners.serves_installer();
        assert!(took(&manners).await >= INSTALLERS_QUIET * 9 / 10);
        let serving = tokio::spawn({
            let manners = manners.clone();
            async move {
                loop {
                    manners.serves_installer();
                    tokio::time::sleep(INSTALLERS_QUIET / 10).await;
                }
            }
        });
        manners.serves_installer();
        assert!(took(&manners).await >= most);
        serving.abort();
    }
}
