//! Which times have changed: the results cache's data version.
//!
//! Changes are numbered. A bucket of five minutes keeps the number of the last change in it, so the highest number among
//! the buckets of a range changes whenever anything in the range does. Buckets that go away leave the highest of their
//! numbers behind for all times before: a range there looks changed once more than it is, never unchanged.
//!
//! A change gets its number after it can be read, before it is acknowledged. So whoever takes the version first and the
//! samples second may find more than the version says, which costs a miss later, and never less.

use std::collections::{BTreeMap, BTreeSet};

use skald_model::{QueryRange, TimestampMs};

use super::Head;

/// Length of a bucket.
const BUCKET_MS: i64 = 5 * 60 * 1000;
/// Buckets kept: two weeks. Beyond, the older half goes.
const MAX_BUCKETS: usize = 4096;

/// The state of some stretch of a head's time. Equal versions of one stretch mean equal samples, but for those that were
/// fresh ([`super::AppendLimits::fresh_from`]) when they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DataVersion {
    /// Which life of the head: another one after every restart.
    pub incarnation: u64,
    /// Number of the last change.
    pub change: u64,
}

/// A copy of the change counters of some range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSnapshot {
    incarnation: u64,
    forgotten: Forgotten,
    /// Bucket and number of its last change, ascending; those without changes are not here.
    buckets: Vec<(i64, u64)>,
}

/// What is left of buckets that went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forgotten {
    /// First bucket that none of them was at or above.
    before: i64,
    /// The highest of their numbers.
    change: u64,
}

/// The change counters of a head.
#[derive(Debug)]
pub(super) struct Changes {
    incarnation: u64,
    last: u64,
    forgotten: Forgotten,
    buckets: BTreeMap<i64, u64>,
}

/// The buckets that a request changes.
#[derive(Debug, Default)]
pub(super) struct ChangedBuckets {
    /// The times of the bucket noted last, half-open: the next sample is most likely in it, too.
    current: (TimestampMs, TimestampMs),
    buckets: BTreeSet<i64>,
}

fn bucket_of(time: TimestampMs) -> i64 {
    time.div_euclid(BUCKET_MS)
}

impl ChangedBuckets {
    /// Notes a change at `time`.
    #[inline]
    pub(super) fn note(&mut self, time: TimestampMs) {
        if self.current.0 <= time && time < self.current.1 {
            return;
        }
        let bucket = bucket_of(time);
        let start = bucket.saturating_mul(BUCKET_MS);
        self.current = (start, start.saturating_add(BUCKET_MS));
        self.buckets.insert(bucket);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

impl Changes {
    pub(super) fn new(incarnation: u64) -> Self {
        let forgotten = Forgotten { before: i64::MIN, change: 0 };
        Self { incarnation, last: 0, forgotten, buckets: BTreeMap::new() }
    }

    /// Raises the counters of these buckets.
    pub(super) fn raise(&mut self, changed: &ChangedBuckets) {
        if changed.is_empty() {
            return;
        }
        self.last += 1;
        for bucket in &changed.buckets {
            self.buckets.insert(*bucket, self.last);
        }
        if self.buckets.len() > MAX_BUCKETS {
            let middle = self.buckets.keys().nth(self.buckets.len() - MAX_BUCKETS / 2).copied();
            self.forget(middle.unwrap_or(i64::MAX));
        }
    }

    /// Drops the counters of all times before the bucket of `oldest`.
    pub(super) fn forget_before(&mut self, oldest: TimestampMs) {
        self.forget(bucket_of(oldest));
    }

    fn forget(&mut self, before: i64) {
        let kept = self.buckets.split_off(&before);
        let gone = std::mem::replace(&mut self.buckets, kept);
        if let Some(highest) = gone.into_values().max() {
            // Times between two calls' bounds share the higher number: they look changed once more than they are.
            self.forgotten.before = self.forgotten.before.max(before);
            self.forgotten.change = self.forgotten.change.max(highest);
        }
    }

    pub(super) fn snapshot(&self, range: QueryRange) -> ChangeSnapshot {
        let buckets = if range.is_empty() {
            Vec::new()
        } else {
            let held = self.buckets.range(bucket_of(range.min)..=bucket_of(range.max));
            held.map(|(bucket, change)| (*bucket, *change)).collect()
        };
        ChangeSnapshot { incarnation: self.incarnation, forgotten: self.forgotten, buckets }
    }
}

impl ChangeSnapshot {
    /// The version of `range`, which lies within the range that the snapshot was taken of.
    pub fn version(&self, range: QueryRange) -> DataVersion {
        let incarnation = self.incarnation;
        if range.is_empty() {
            return DataVersion { incarnation, change: 0 };
        }
        let (first, last) = (bucket_of(range.min), bucket_of(range.max));
        let from = self.buckets.partition_point(|(bucket, _)| *bucket < first);
        let of_range = self.buckets[from..].iter().take_while(|(bucket, _)| *bucket <= last);
        let highest = of_range.map(|(_, change)| *change).max().unwrap_or(0);
        let forgotten = if first < self.forgotten.before { self.forgotten.change } else { 0 };
        DataVersion { incarnation, change: highest.max(forgotten) }
    }
}

impl Head {
    /// Gives the head the number that tells its versions from those of earlier heads of the same data: a random one.
    #[must_use]
    pub fn with_incarnation(mut self, incarnation: u64) -> Self {
        self.changes = Changes::new(incarnation).into();
        self
    }

    /// The change counters of `range`. Whoever labels an answer with them takes them before the samples.
    pub fn changes(&self, range: QueryRange) -> ChangeSnapshot {
        self.changes.lock().snapshot(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Change(Vec<TimestampMs>),
        Forget(TimestampMs),
        Look(TimestampMs, i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let time = || -20 * BUCKET_MS..60 * BUCKET_MS;
        let step = prop_oneof![
            4 => proptest::collection::vec(time(), 1..6).prop_map(Step::Change),
            1 => time().prop_map(Step::Forget),
            6 => (time(), 0..10 * BUCKET_MS).prop_map(|(from, length)| Step::Look(from, length)),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn a_version_is_current_as_long_as_nothing_changed(steps in steps()) {
            let mut changes = Changes::new(7);
            // What was looked at: its range and version, and whether something in it changed, or was forgotten, since.
            let mut looks: Vec<(QueryRange, DataVersion, bool, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Change(times) => {
                        let mut changed = ChangedBuckets::default();
                        times.iter().for_each(|time| changed.note(*time));
                        changes.raise(&changed);
                        for (range, _, has_changed, _) in &mut looks {
                            *has_changed |= times.iter().any(|time| range.contains(*time));
                        }
                    }
                    Step::Forget(before) => {
                        changes.forget_before(before);
                        prop_assert!(changes.buckets.keys().all(|bucket| *bucket >= bucket_of(before)));
                        looks.iter_mut().for_each(|look| look.3 = true);
                    }
                    Step::Look(min, length) => {
                        let range = QueryRange { min, max: min + length };
                        looks.push((range, changes.snapshot(range).version(range), false, false));
                    }
                }
                for (range, version, has_changed, has_forgotten) in &looks {
                    let wider = QueryRange { min: range.min - BUCKET_MS, max: range.max + 3 * BUCKET_MS };
                    let now = changes.snapshot(*range).version(*range);
                    prop_assert_eq!(now, changes.snapshot(wider).version(*range));
                    prop_assert!(!has_changed || now != *version, "{:?} changed and looks as before", range);
                    // A neighbour in the same bucket counts, too.
                    let whole = QueryRange {
                        min: bucket_of(range.min) * BUCKET_MS,
                        max: (bucket_of(range.max) + 1) * BUCKET_MS - 1,
                    };
                    if whole == *range && !has_forgotten {
                        prop_assert_eq!(*has_changed, now != *version);
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let mut changes = Changes::new(1);
        let old = QueryRange { min: 0, max: BUCKET_MS - 1 };
        let before = changes.snapshot(old).version(old);
        for bucket in 0..3 * MAX_BUCKETS as i64 {
            let mut changed = ChangedBuckets::default();
            changed.note(bucket * BUCKET_MS);
            changes.raise(&changed);
            assert!(changes.buckets.len() <= MAX_BUCKETS);
        }
        assert_ne!(changes.snapshot(old).version(old), before);
        let newest = QueryRange { min: (3 * MAX_BUCKETS as i64 - 1) * BUCKET_MS, max: TimestampMs::MAX };
        assert_eq!(changes.snapshot(newest).version(newest).change, 3 * MAX_BUCKETS as u64);
        // One request of all times at once.
        let mut changed = ChangedBuckets::default();
        for round in 0..3 {
            (0..10 * MAX_BUCKETS as i64).for_each(|bucket| changed.note((bucket * 2 + round) * BUCKET_MS));
        }
        changes.raise(&changed);
        assert!(changes.buckets.len() <= MAX_BUCKETS);
        for time in [TimestampMs::MIN, TimestampMs::MAX] {
            let all = QueryRange { min: time, max: time };
            let before = changes.snapshot(all).version(all);
            let mut changed = ChangedBuckets::default();
            changed.note(time);
            changes.raise(&changed);
            assert_ne!(changes.snapshot(all).version(all), before, "at {time}");
        }
    }
}
