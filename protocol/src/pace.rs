//! How fast, and at which hours: what background work may use.

use std::time::Duration;

/// Minutes of a day.
pub const DAY: u16 = 24 * 60;

/// Whether a minute of the day is between two others; over midnight if the second is earlier. Both the same: always.
#[must_use]
pub fn is_between(minute: u16, from: u16, to: u16) -> bool {
    let (from, to) = (from % DAY, to % DAY);
    from == to || if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
}

/// Understand an hour such as `08:30`.
///
/// # Errors
/// Says what is wanted.
pub fn minute_of_day(text: &str) -> Result<u16, String> {
    let parsed = text.split_once(':').and_then(|(hour, minute)| {
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        (hour <= 24 && minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
    });
    parsed.ok_or_else(|| "want an hour such as 08:30".into())
}

/// Lets bytes through at a rate.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// When what was let through so far will have been paid for, since some start.
    paid_until: Duration,
}

impl Bucket {
    /// How long whoever moves `bytes` now has to wait, at `rate` bytes a second.
    pub fn take(&mut self, now: Duration, bytes: u64, rate: u64) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        // What was not used is not saved, but for a moment.
        self.paid_until = self.paid_until.max(now.saturating_sub(Duration::from_millis(100))) + cost;
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_understood() {
        let at = |text| minute_of_day(text).unwrap();
        assert_eq!((at("00:00"), at("08:30"), at("24:00")), (0, 510, DAY));
        for bad in ["8", "25:00", "24:01", "08:60", "", ":"] {
            assert!(minute_of_day(bad).is_err(), "{bad}");
        }
        let night = |text| is_between(at(text), at("20:00"), at("06:00"));
        assert!(night("20:00") && night("23:59") && night("00:00") && !night("06:00") && !night("12:00"));
        assert!(is_between(7, 0, DAY) && is_between(7, 60, 60) && !is_between(at("18:00"), at("08:00"), at("18:00")));
    }

    #[test]
    fn a_bucket_keeps_its_rate() {
        let mut bucket = Bucket::default();
        let mut now = Duration::from_secs(1000);
        for _ in 0..100 {
            now += bucket.take(now, 1_000_000, 10_000_000);
        }
        let took = now - Duration::from_secs(1000);
        assert!((9.8..10.1).contains(&took.as_secs_f64()), "100 MB at 10 MB/s took {took:?}");
        assert!(bucket.take(now + Duration::from_secs(60), 1, 10).as_secs() == 0, "a pause is no debt");
    }
}
