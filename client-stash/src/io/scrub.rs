//! Reading everything again, slowly, from the medium itself: damage that nobody asks for is found before the last good piece is needed.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::io::credentials::write_private;
use serde::{Deserialize, Serialize};

use super::file::FileStorage;
use super::switch::Switch;
use super::watch::Manners;
use crate::store::{Reader, StoreError};

/// Everything is read once in so long.
const EVERY_S: u64 = 30 * 24 * 3600;
/// How often it is looked whether it is time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between looks whether others still need the disk.
const STAND_BACK: Duration = Duration::from_secs(2);
/// Bytes a second: a disk hardly notices it.
const PACE: f64 = 4e6;
/// The same when the owner waits for it.
const PACE_NOW: f64 = 100e6;

/// How far it is, or how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// When the last whole round ended, seconds since 1970; 0: none did.
    pub finished_unix_s: u64,
    /// When the round began that is under way, or was last.
    pub started_unix_s: u64,
    /// Whether one is under way.
    pub is_running: bool,
    /// Fragments read, of how many.
    pub checked: u64,
    /// See `checked`.
    pub of: u64,
    /// Fragments of that round that were damaged; the controller hears of each.
    pub damaged: u64,
    /// Fragments that the medium did not give.
    pub unreadable: u64,
}

#[derive(Default)]
struct State {
    scrubbed: Scrubbed,
    is_asked: bool,
}

/// Scrubs.
pub struct Scrubber {
    reader: Reader<FileStorage>,
    pause: Arc<Switch>,
    manners: Arc<Manners>,
    file: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Scrubber {
    /// Over a store; `file` keeps when it last ended.
    #[must_use]
    pub fn new(reader: Reader<FileStorage>, pause: Arc<Switch>, manners: Arc<Manners>, file: PathBuf) -> Arc<Self> {
        let kept: Option<Scrubbed> = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let scrubbed = Scrubbed { is_running: false, ..kept.unwrap_or_default() };
        let state = Mutex::new(State { scrubbed, is_asked: false });
        Arc::new(Self { reader, pause, manners, file, state, changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    #[must_use]
    pub fn scrubbed(&self) -> Scrubbed {
        self.lock().scrubbed.clone()
    }

    /// Begin now, or go on faster.
    pub fn ask(&self) {
        let mut state = self.lock();
        state.is_asked = true;
        if !state.scrubbed.is_running {
            // Whoever asks how far it is sees at once that it has begun.
            state.scrubbed = Scrubbed {
                finished_unix_s: state.scrubbed.finished_unix_s,
                started_unix_s: unix_s(),
                is_running: true,
                ..Scrubbed::default()
            };
        }
        self.changed.notify_all();
    }

    /// Scrub when it is time, in a thread of its own, as long as the process lives.
    pub fn start(self: &Arc<Self>) {
        let scrubber = self.clone();
        let started = std::thread::Builder::new().name("stash-scrub".into()).spawn(move || {
            loop {
                scrubber.wait_until_due();
                scrubber.round();
            }
        });
        started.expect("a thread can be started");
    }

    fn wait_until_due(&self) {
        let mut state = self.lock();
        loop {
            // A new stash has nothing yet that could have aged: its first round is due when a whole period has passed.
            let last = state.scrubbed.finished_unix_s.max(state.scrubbed.started_unix_s);
            if last == 0 {
                state.scrubbed.started_unix_s = unix_s();
                self.keep(&state.scrubbed);
            }
            let is_due = last > 0 && unix_s() > last.saturating_add(EVERY_S);
            if (is_due || state.is_asked) && !self.pause.is_on() {
                return;
            }
            state = self.changed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The owner paused the stash, or came back.
    pub fn look_again(&self) {
        // Whoever looks holds the lock until it waits, so nothing is missed.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn keep(&self, scrubbed: &Scrubbed) {
        let text = serde_json::to_vec(scrubbed).expect("numbers serialise");
        if let Err(error) = write_private(&self.file, &text) {
            tracing::warn!(%error, "when the stash was scrubbed is not noted");
        }
    }

    fn wait_while_paused(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |_| self.pause.is_on()).unwrap_or_else(PoisonError::into_inner));
    }

    fn round(&self) {
        let fragments = self.reader.in_order_on_disk();
        {
            let scrubbed = &mut self.lock().scrubbed;
            *scrubbed = Scrubbed {
                finished_unix_s: scrubbed.finished_unix_s,
                started_unix_s: unix_s(),
                is_running: true,
                of: fragments.len() as u64,
                ..Scrubbed::default()
            };
        }
        for (_, id) in fragments {
            self.wait_while_paused();
            // Nobody waits for this, unless its owner does.
            while self.manners.seen().is_away || (!self.lock().is_asked && self.manners.is_work_unwelcome()) {
                std::thread::sleep(STAND_BACK);
            }
            let (mut read, mut damaged, mut unreadable) = (0, 0, 0);
            let mut result = self.reader.get_from_medium(id);
            if let Err(StoreError::Io(_)) = result {
                // A medium that is unplugged, or a network that hiccups, is no damage: it is seen before this is tried again.
                self.manners.note_failure();
                std::thread::sleep(2 * STAND_BACK);
                while self.manners.seen().is_away {
                    std::thread::sleep(STAND_BACK);
                }
                result = self.reader.examine(id);
            }
            match result {
                Ok((_, payload)) => read = payload.len(),
                // Deleted meanwhile.
                Err(StoreError::NotHere(_)) => {}
                Err(error @ StoreError::Damaged(_)) => {
                    tracing::warn!(%error, "found by scrubbing");
                    damaged = 1;
                }
                Err(error) => {
                    tracing::warn!(%id, error = format!("{:#}", anyhow::Error::new(error)), "not readable");
                    unreadable = 1;
                }
            }
            let pace = {
                let mut state = self.lock();
                state.scrubbed.checked += 1;
                state.scrubbed.damaged += damaged;
                state.scrubbed.unreadable += unreadable;
                if state.is_asked { PACE_NOW } else { PACE }
            };
            std::thread::sleep(
                Duration::from_secs_f64(read as f64 / pace)
                    .max(self.manners.wait(read as u64, false).unwrap_or(STAND_BACK)),
            );
        }
        let mut state = self.lock();
        (state.is_asked, state.scrubbed.is_running, state.scrubbed.finished_unix_s) = (false, false, unix_s());
        self.keep(&state.scrubbed);
        tracing::info!(
            checked = state.scrubbed.checked,
            damaged = state.scrubbed.damaged,
            unreadable = state.scrubbed.unreadable,
            "scrubbed"
        );
    }
}
