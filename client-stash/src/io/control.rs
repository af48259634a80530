//! A socket between this machine's owner and the service: one line of JSON each way. It lies in the stash's folder, which nobody else enters.

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

use super::pause::Pause;
use super::scrub::{Scrubbed, Scrubber};
use super::writer::Writer;

/// A question is shorter than this.
const ASK_MAX: u64 = 4096;
/// The service answers at once, or is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What the owner may ask for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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
}

/// How the service is, after that.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Live {
    /// Live fragments.
    pub fragments: u64,
    /// Bytes of regions in use.
    pub used: u64,
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
    pub pause: Arc<Pause>,
    /// Reads everything again.
    pub scrubber: Arc<Scrubber>,
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
            Ask::Pause | Ask::Resume => {
                let done = self.pause.set(matches!(ask, Ask::Pause)).map_err(|e| e.to_string());
                self.scrubber.look_again();
                done
            }
        };
        let usage = self.writer.usage().await;
        Live {
            fragments: usage.fragments,
            used: usage.used,
            paused: self.pause.is_on(),
            scrub: self.scrubber.scrubbed(),
            error: done.err(),
        }
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
