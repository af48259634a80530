//! Leaving the array: the owner wants it, the controller has everything put elsewhere, and then nothing of the stash stays here.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::message::member::Wish;
use tokio::sync::Notify;

use super::folder::Folder;
use super::switch::Switch;

/// How far it is.
pub struct Leave {
    folder: Folder,
    wanted: Switch,
    at_once: AtomicBool,
    to_hand_over: Mutex<Option<u64>>,
    /// Somebody wants it, now.
    pub(super) asked: Notify,
}

impl Leave {
    /// As it was left in a stash's folder.
    #[must_use]
    pub fn of(folder: Folder) -> Self {
        let wanted = folder.leave();
        let (at_once, to_hand_over, asked) = (AtomicBool::new(false), Mutex::default(), Notify::new());
        Self { folder, wanted, at_once, to_hand_over, asked }
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
        self.wanted.set(true)?;
        self.at_once.store(at_once, Ordering::Relaxed);
        self.asked.notify_one();
        Ok(())
    }

    /// Its owner wants it to stay.
    ///
    /// # Errors
    /// The file system's; then nothing changed.
    pub fn stop(&self) -> io::Result<()> {
        self.wanted.set(false)?;
        self.hear(None);
        self.asked.notify_one();
        Ok(())
    }

    /// What the controller is told.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        let at_once = self.at_once.load(Ordering::Relaxed);
        self.is_on().then_some(if at_once { Wish::LeaveNow } else { Wish::Leave })
    }

    /// What the controller said of it.
    pub fn hear(&self, to_hand_over: Option<u64>) {
        *self.to_hand_over.lock().unwrap_or_else(PoisonError::into_inner) = to_hand_over;
    }

    /// Whether nothing keeps it here; `heard`: whether the controller was reached just now.
    #[must_use]
    pub fn may_go(&self, heard: bool) -> bool {
        self.is_on() && (self.at_once.load(Ordering::Relaxed) || heard && self.to_hand_over() == Some(0))
    }

    /// End this process, with nothing of the stash left. If files cannot be removed, its owner hears of it and may do so.
    pub fn go(&self) -> ! {
        match self.folder.erase() {
            Ok(()) => tracing::info!("this stash has left the array; nothing of it is here any more"),
            Err(error) => {
                tracing::error!(%error, folder = %self.folder.path().display(), "this stash has left the array; remove its folder");
            }
        }
        std::process::exit(0)
    }
}
