//! Where the time goes: CPU seconds of each stage of a pipeline, over all threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One stage.
#[derive(Default)]
pub struct Stage {
    cpu_ns: AtomicU64,
    bytes: AtomicU64,
}

/// What a stage took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct StageReport {
    /// Bytes that went in.
    pub bytes: u64,
    /// CPU seconds.
    pub cpu_s: f64,
}

fn thread_cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// CPU time of this process so far.
#[must_use]
pub fn process_cpu() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

impl Stage {
    /// Carry out work on `bytes` bytes; it must stay on this thread.
    pub fn run<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let before = thread_cpu_ns();
        let result = work();
        self.cpu_ns.fetch_add(thread_cpu_ns() - before, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        result
    }

    /// What it took so far.
    #[must_use]
    pub fn report(&self) -> StageReport {
        StageReport {
            bytes: self.bytes.load(Ordering::Relaxed),
            cpu_s: self.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}
