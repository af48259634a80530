//! A socket between this machine's owner and the service: one line of JSON each way. It lies in the stash's folder, which nobody else enters.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::folder::Folder;
use super::leave::Leave;
use super::scrub::{Scrubbed, Scrubber};
use super::switch::Switch;
use super::watch::{Manners, Seen};
use super::writer::{Problem, Resizing, Writer};
use crate::limits::{REGION_LEN, REGIONS_MAX, REGIONS_MIN};
use crate::manners::Limit;
use crate::store::Partition;

/// A question is shorter than this.
const ASK_MAX: u64 = 4096;
/// The service answers at once, or is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What the owner may ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Only say how it is.
    Status,
    /// Read everything again, now.
    Scrub,
    /// Step aside.
    Pause,
    /// Come back.
    Resume,
    /// Offer so many bytes.
    Resize(u64),
    /// Keep these limits instead of those before.
    Limit(Vec<Limit>),
    /// Leave the array: hand over what is here first, or, if nobody shall wait for that, at once.
    Leave {
        /// At once.
        now: bool,
    },
    /// Stay after all.
    Stay,
}

/// How the service is, after that.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Live {
    /// Live fragments.
    pub fragments: u64,
    /// Bytes of records, dead ones included.
    pub used: u64,
    /// Bytes of the file.
    pub file: u64,
    /// Bytes that it could give back now, without anything leaving it.
    pub could_give_back: u64,
    /// Each owner's part; owner 1 is the array's images.
    pub partitions: BTreeMap<u32, Partition>,
    /// Whether it is being made smaller.
    pub resizing: Option<Resizing>,
    /// Bytes that must be elsewhere in the array before the file can be as small as it should be.
    #[serde(default)]
    pub too_much: u64,
    /// Whether it leaves the array.
    #[serde(default)]
    pub leaving: bool,
    /// Fragments that others must have before it may leave, as the controller said last.
    #[serde(default)]
    pub to_hand_over: Option<u64>,
    /// Why the controller was not reached last.
    #[serde(default)]
    pub controller_problem: Option<String>,
    /// What it sees of its machine.
    pub machine: Seen,
    /// Times that the disk failed to write, since the service started.
    pub failures: u64,
    /// Regions of which something cannot be read.
    pub unreadable_regions: u32,
    /// What failed last, and is not over.
    pub last_error: Option<Problem>,
    /// Whether it steps aside.
    pub paused: bool,
    /// How far scrubbing is.
    pub scrub: Scrubbed,
    /// Why it was not done.
    pub error: Option<String>,
}

fn socket(folder: &Path) -> PathBuf {
    folder.join(".control")
}

/// Whether there can be a socket in a folder that no service runs in.
///
/// # Errors
/// The file system's.
pub fn check_socket(folder: &Path) -> std::io::Result<()> {
    let path = socket(folder);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    drop(std::os::unix::net::UnixListener::bind(&path)?);
    fs::remove_file(&path)
}

/// Ask the service of this folder; `None` if none runs.
///
/// # Errors
/// If it does not answer, or could not do it.
pub fn ask(folder: &Path, ask: Ask) -> anyhow::Result<Option<Live>> {
    let mut stream = match UnixStream::connect(socket(folder)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context("ask the service"),
    };
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&ask)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("wait for the service")?;
    let live: Live = serde_json::from_str(&line).context("understand the service")?;
    match live.error {
        Some(error) => bail!("{error}"),
        None => Ok(Some(live)),
    }
}

/// What the socket needs.
pub struct Control {
    /// Knows how full it is.
    pub writer: Writer,
    /// Steps aside.
    pub pause: Arc<Switch>,
    /// Reads everything again.
    pub scrubber: Arc<Scrubber>,
    /// How fast it may be.
    pub manners: Arc<Manners>,
    /// Leaves.
    pub leave: Arc<Leave>,
    /// Keeps what its owner says.
    pub folder: Folder,
}

impl Control {
    async fn answer(&self, ask: Ask) -> Live {
        let done = match ask {
            Ask::Status => Ok(()),
            Ask::Scrub if self.pause.is_on() => Err("the stash is paused: `coe-stash resume`".into()),
            Ask::Scrub => {
                self.scrubber.ask();
                Ok(())
            }
            Ask::Resize(size) => self.resize(size).await,
            Ask::Limit(limits) => self.limit(limits).map_err(|e| format!("{e:#}")),
            Ask::Leave { now } => self.leave.begin(now).map_err(|e| e.to_string()),
            Ask::Stay => self.leave.stop().map_err(|e| e.to_string()),
            Ask::Pause | Ask::Resume => {
                let done = self.pause.set(matches!(ask, Ask::Pause)).map_err(|e| e.to_string());
                self.scrubber.look_again();
                done
            }
        };
        let report = self.writer.report().await;
        let usage = report.usage;
        Live {
            fragments: usage.fragments,
            used: usage.used,
            file: usage.file,
            could_give_back: u64::from(report.regions.saturating_sub(report.least_regions)) * REGION_LEN,
            partitions: usage.partitions,
            resizing: report.resizing,
            too_much: self.manners.too_much(),
            leaving: self.leave.is_on(),
            to_hand_over: self.leave.to_hand_over(),
            controller_problem: self.leave.problem(),
            machine: self.manners.seen(),
            failures: usage.failures,
            unreadable_regions: usage.unreadable_regions,
            last_error: report.last_error,
            paused: self.pause.is_on(),
            scrub: self.scrubber.scrubbed(),
            error: done.err(),
        }
    }

    async fn resize(&self, size: u64) -> Result<(), String> {
        let regions = u32::try_from(size / REGION_LEN).unwrap_or(u32::MAX);
        if !(REGIONS_MIN..=REGIONS_MAX).contains(&regions) {
            return Err(format!("a stash has {} MiB to 16 TiB", (u64::from(REGIONS_MIN) * REGION_LEN) >> 20));
        }
        let mut settings = self.folder.settings().map_err(|e| format!("{e:#}"))?;
        // First what is wanted: making it smaller goes on after a restart, and nothing makes it larger again meanwhile.
        let before = settings.clone();
        settings.size = u64::from(regions) * REGION_LEN;
        self.folder.save_settings(&settings).map_err(|e| format!("{e:#}"))?;
        let report = self.writer.report().await;
        // As small as it can be; and what is too much goes elsewhere, before it can be smaller still.
        let begun = self.writer.resize(regions.max(report.least_regions.min(report.regions))).await;
        if begun.is_ok() {
            self.manners.has_too_much(u64::from(report.least_regions.saturating_sub(regions)) * REGION_LEN);
        }
        if begun.is_err() {
            self.folder.save_settings(&before).map_err(|e| format!("{e:#}"))?;
        }
        begun
    }

    fn limit(&self, limits: Vec<Limit>) -> anyhow::Result<()> {
        let mut settings = self.folder.settings()?;
        settings.limits.clone_from(&limits);
        self.folder.save_settings(&settings)?;
        self.manners.set_limits(limits);
        Ok(())
    }

    /// Listen in a stash's folder.
    ///
    /// # Errors
    /// The file system's, for one if the folder's path is too long for a socket.
    pub fn listen(self, folder: &Path) -> std::io::Result<impl Future<Output = ()> + use<>> {
        let path = socket(folder);
        // Whoever left it there is gone: this process has the stash file to itself.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let control = Arc::new(self);
        Ok(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let control = control.clone();
                tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut line = String::new();
                    let mut read = tokio::io::BufReader::new(read.take(ASK_MAX));
                    let asked = tokio::time::timeout(ANSWER_WITHIN, read.read_line(&mut line));
                    if !matches!(asked.await, Ok(Ok(_))) {
                        return;
                    }
                    let live = match serde_json::from_str(&line) {
                        Ok(ask) => control.answer(ask).await,
                        Err(error) => Live { error: Some(format!("not a question: {error}")), ..Live::default() },
                    };
                    let text = serde_json::to_string(&live).expect("plain data serialises");
                    let _ = write.write_all(format!("{text}\n").as_bytes()).await;
                });
            }
        })
    }
}
