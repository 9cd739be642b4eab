//! A bounded store of exemplars: when it is full, the oldest makes room.

use std::collections::VecDeque;

use hashbrown::HashMap;
use skald_model::{Exemplar, Labels, Matcher, QueryRange};

use super::append::RejectReason;
use super::select::Pinned;
use super::{Head, locate};
use crate::postings::SeriesRef;

/// Exemplars of one series, ascending in time.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesExemplars {
    /// Which series.
    pub labels: Labels,
    /// Its exemplars.
    pub exemplars: Vec<Exemplar>,
}

/// Exemplars by series, and the order in which they came.
#[derive(Default)]
pub(super) struct ExemplarStore {
    by_series: HashMap<SeriesRef, VecDeque<(u64, Exemplar)>, foldhash::fast::FixedState>,
    /// Series and number of each exemplar in order of arrival; entries of removed series are skipped when met.
    arrivals: VecDeque<(SeriesRef, u64)>,
    next: u64,
    len: usize,
}

impl ExemplarStore {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All of them, the oldest arrival first.
    pub(super) fn in_order_of_arrival(&self) -> Vec<(SeriesRef, Exemplar)> {
        let numbered = |(series, exemplars): (&SeriesRef, &VecDeque<(u64, Exemplar)>)| {
            let series = *series;
            exemplars.iter().map(move |(number, exemplar)| (*number, series, exemplar.clone())).collect::<Vec<_>>()
        };
        let mut all: Vec<(u64, SeriesRef, Exemplar)> = self.by_series.iter().flat_map(numbered).collect();
        all.sort_unstable_by_key(|(number, ..)| *number);
        all.into_iter().map(|(_, series, exemplar)| (series, exemplar)).collect()
    }

    /// Whether an exemplar is new (`true`) or the newest one repeated. `pending` is one that will be stored before it.
    pub(super) fn judge(
        &self,
        series: SeriesRef,
        pending: Option<&Exemplar>,
        exemplar: &Exemplar,
    ) -> Result<bool, RejectReason> {
        let stored = self.by_series.get(&series).and_then(|of_series| of_series.back()).map(|(_, newest)| newest);
        let Some(newest) = pending.or(stored) else { return Ok(true) };
        if newest.timestamp == exemplar.timestamp
            && newest.labels == exemplar.labels
            && newest.value.to_bits() == exemplar.value.to_bits()
        {
            return Ok(false);
        }
        if exemplar.timestamp < newest.timestamp { Err(RejectReason::ExemplarOutOfOrder) } else { Ok(true) }
    }

    /// Stores an exemplar that was judged new; keeps at most `capacity`.
    pub(super) fn insert(&mut self, series: SeriesRef, exemplar: Exemplar, capacity: usize) {
        if capacity == 0 || self.judge(series, None, &exemplar) != Ok(true) {
            return;
        }
        self.by_series.entry(series).or_default().push_back((self.next, exemplar));
        self.arrivals.push_back((series, self.next));
        self.next += 1;
        self.len += 1;
        while self.len > capacity {
            let Some((series, number)) = self.arrivals.pop_front() else { return };
            let Some(of_series) = self.by_series.get_mut(&series) else { continue };
            if of_series.front().is_some_and(|(oldest, _)| *oldest == number) {
                of_series.pop_front();
                self.len -= 1;
                if of_series.is_empty() {
                    self.by_series.remove(&series);
                }
            }
        }
    }

    /// Forgets the exemplars of series that are gone.
    pub(super) fn remove_series(&mut self, series: &[SeriesRef]) {
        let mut removed = false;
        for series in series {
            if let Some(of_series) = self.by_series.remove(series) {
                self.len -= of_series.len();
                removed = true;
            }
        }
        if removed && self.arrivals.len() > 2 * self.len + 16 {
            let by_series = &self.by_series;
            let is_there = |(series, number): &(SeriesRef, u64)| {
                by_series.get(series).is_some_and(|of_series| of_series.front().is_some_and(|(n, _)| n <= number))
            };
            self.arrivals.retain(is_there);
        }
    }
}

impl Head {
    /// Exemplars within `range` of the series that satisfy one of the lists of matchers, ascending by labels.
    pub fn exemplars(&self, selectors: &[Vec<Matcher>], range: QueryRange) -> Vec<SeriesExemplars> {
        // Pinned, so that no slot changes its series between the store and the labels.
        let _pinned = Pinned::new(self);
        let mut by_slot: Vec<(SeriesRef, Vec<Exemplar>)> = Vec::new();
        for (slot, exemplars) in &self.exemplars.lock().by_series {
            let in_range = exemplars.iter().map(|(_, exemplar)| exemplar).filter(|e| range.contains(e.timestamp));
            let in_range: Vec<Exemplar> = in_range.cloned().collect();
            if !in_range.is_empty() {
                by_slot.push((*slot, in_range));
            }
        }
        let index = self.index.read();
        let pages = self.pages.read().clone();
        let mut found = Vec::new();
        let mut pairs = Vec::new();
        for (slot, exemplars) in by_slot {
            let (number, at) = locate(slot);
            let Some(page) = pages.get(number) else { continue };
            pairs.clear();
            page.read().labels(at, &mut pairs);
            let labels = index.labels(&pairs);
            let matches = |matchers: &Vec<Matcher>| {
                matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default()))
            };
            if !pairs.is_empty() && (selectors.is_empty() || selectors.iter().any(matches)) {
                found.push(SeriesExemplars { labels, exemplars });
            }
        }
        drop(index);
        found.sort_by(|a, b| a.labels.cmp(&b.labels));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplar(timestamp: i64) -> Exemplar {
        Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 1.0, timestamp }
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut store = ExemplarStore::default();
        for t in 0..10 {
            store.insert((t % 3) as u32, exemplar(t), 4);
        }
        let mut left: Vec<i64> = store.by_series.values().flatten().map(|(_, e)| e.timestamp).collect();
        left.sort_unstable();
        assert_eq!((left, store.len()), (vec![6, 7, 8, 9], 4));
        store.remove_series(&[0]);
        assert_eq!(store.len(), 2);
        for t in 10..14 {
            store.insert(7, exemplar(t), 4);
        }
        assert_eq!(store.by_series[&7].len(), 4);
        assert_eq!(store.len(), 4);
    }

    #[test]
    fn repeated_and_older_ones_are_told_apart() {
        let mut store = ExemplarStore::default();
        store.insert(1, exemplar(5), 10);
        assert_eq!(store.judge(1, None, &exemplar(5)), Ok(false));
        assert_eq!(store.judge(1, None, &exemplar(4)), Err(RejectReason::ExemplarOutOfOrder));
        assert_eq!(store.judge(1, None, &exemplar(6)), Ok(true));
        assert_eq!(store.judge(2, None, &exemplar(4)), Ok(true));
        store.insert(1, exemplar(9), 0);
        assert_eq!(store.len(), 1);
    }
}
