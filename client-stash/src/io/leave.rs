//! Leaving the array: the owner wants it, the controller has everything put elsewhere, and then nothing of the stash stays here.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};

use protocol::message::member::Wish;
use tokio::sync::Notify;

use super::file::FileStorage;
use super::folder::Folder;
use super::switch::Switch;

/// How far it is.
pub struct Leave {
    folder: Folder,
    wanted: Switch,
    at_once: Switch,
    to_hand_over: Mutex<Option<u64>>,
    problem: Mutex<Option<String>>,
    /// Tries to reach the controller that failed, one after the other.
    unheard: AtomicU32,
    /// Somebody wants it, now.
    pub(super) asked: Notify,
}

/// Nobody who wants it at once waits longer for a controller that is away.
const TRIES: u32 = 5;

impl Leave {
    /// As it was left in a stash's folder.
    #[must_use]
    pub fn of(folder: Folder) -> Self {
        let (wanted, at_once) = (folder.leave(), folder.leave_at_once());
        let (to_hand_over, problem, asked) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { folder, wanted, at_once, to_hand_over, problem, unheard: AtomicU32::new(0), asked }
    }

    /// Whether its owner wants it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.wanted.is_on()
    }

    /// Fragments that others must have before, as the controller said last.
    #[must_use]
    pub fn to_hand_over(&self) -> Option<u64> {
        *self.to_hand_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its owner wants it; with `at_once` nobody waits for anything.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn begin(&self, at_once: bool) -> io::Result<()> {
        self.at_once.set(at_once)?;
        self.wanted.set(true)?;
        self.asked.notify_one();
        Ok(())
    }

    /// Its owner wants it to stay.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn stop(&self) -> io::Result<()> {
        self.wanted.set(false)?;
        self.at_once.set(false)?;
        self.hear(None);
        self.asked.notify_one();
        Ok(())
    }

    /// What the controller is told.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        self.is_on().then_some(if self.at_once.is_on() { Wish::LeaveNow } else { Wish::Leave })
    }

    /// What the controller said of it.
    pub fn hear(&self, to_hand_over: Option<u64>) {
        *self.to_hand_over.lock().unwrap_or_else(PoisonError::into_inner) = to_hand_over;
    }

    /// Whether nothing keeps it here; `told`: what the controller that is in charge has just been told, and understood.
    #[must_use]
    pub fn may_go(&self, told: Option<Wish>) -> bool {
        match self.wish() {
            Some(Wish::LeaveNow) => told == Some(Wish::LeaveNow) || self.unheard.load(Ordering::Relaxed) >= TRIES,
            Some(Wish::Leave) => told == Some(Wish::Leave) && self.to_hand_over() == Some(0),
            _ => false,
        }
    }

    /// Whether the controller was reached, and if not, why.
    pub fn reached(&self, problem: Option<String>) {
        let unheard = if problem.is_some() { self.unheard.load(Ordering::Relaxed) + 1 } else { 0 };
        self.unheard.store(unheard, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why the controller was not reached last.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// End this process, with nothing of the stash left. If something cannot be removed, its owner hears of it, and starting the service
    /// again tries again.
    pub fn go(&self, storage: &FileStorage) -> ! {
        if self.problem().is_some() {
            tracing::warn!("the controller was not told: `coe-ctl node remove --lost` tells it");
        }
        let erased = self.folder.erase(self.folder.is_stash_file(storage));
        match &erased {
            Ok(()) => tracing::info!("this stash has left the array; nothing of it is here any more"),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "this stash has left the array, and not all of it could be removed"
            ),
        }
        std::process::exit(i32::from(erased.is_err()))
    }
}
