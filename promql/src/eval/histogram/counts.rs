//! Bucket counts of one sign as running sums.

use skald_model::Span;

use super::bucket::{buckets, laid_out};
use crate::eval::kahan::KahanSum;

/// Counts by bucket index, in columns, so that adding a histogram of a known layout is one plain loop.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Ascending, each once.
    indexes: Vec<i32>,
    sums: Vec<f64>,
    /// What rounding took from the sums; empty where addition is plain.
    compensations: Vec<f64>,
    compensated: bool,
}

impl Counts {
    pub(super) fn of(spans: &[Span], counts: &[f64], compensated: bool) -> Self {
        let counts = laid_out(spans, counts);
        let indexes: Vec<i32> = buckets(spans, counts).map(|(index, _)| index).collect();
        let compensations = if compensated { vec![0.0; counts.len()] } else { Vec::new() };
        let mut own = Self { indexes, sums: counts.to_vec(), compensations, compensated };
        if own.indexes.windows(2).any(|w| w[0] >= w[1]) {
            // Not a valid histogram.
            let list = buckets(spans, counts).collect();
            own = Self { compensated, ..Self::default() };
            own.add(list, 1.0);
        }
        own
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        4 * self.indexes.capacity() + 8 * (self.sums.capacity() + self.compensations.capacity())
    }

    /// Index and sum of each bucket, without the compensation.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i32, f64)> {
        self.indexes.iter().copied().zip(self.sums.iter().copied())
    }

    /// Adds `factor` times the counts of a histogram.
    pub(super) fn add_spans(&mut self, spans: &[Span], counts: &[f64], factor: f64) {
        if !self.has(spans) {
            self.add(buckets(spans, counts).collect(), factor);
            return;
        }
        let (mut at, mut next, mut rest) = (0, 0, counts);
        for span in spans {
            next += i64::from(span.offset);
            at = self.position(at, next);
            next += i64::from(span.length);
            let (run, others) = rest.split_at(rest.len().min(span.length as usize));
            self.add_run(at, run, factor);
            (at, rest) = (at + run.len(), others);
        }
    }

    /// Whether all buckets that the spans lay out are there.
    fn has(&self, spans: &[Span]) -> bool {
        let (mut at, mut next) = (0, 0);
        spans.iter().all(|span| {
            next += i64::from(span.offset);
            if span.length == 0 {
                return true;
            }
            at = self.position(at, next);
            let begins = self.indexes.get(at).is_some_and(|index| i64::from(*index) == next);
            next += i64::from(span.length);
            at = at.saturating_add(span.length as usize);
            // As indexes ascend, the right one at the right distance has all others before it.
            begins && self.indexes.get(at - 1).is_some_and(|index| i64::from(*index) == next - 1)
        })
    }

    /// The first position from `at` on with an index not below `index`.
    fn position(&self, at: usize, index: i64) -> usize {
        match self.indexes.get(at) {
            Some(own) if i64::from(*own) < index => {
                at + self.indexes[at..].partition_point(|own| i64::from(*own) < index)
            }
            _ => at,
        }
    }

    fn add_run(&mut self, at: usize, run: &[f64], factor: f64) {
        let sums = &mut self.sums[at..at + run.len()];
        if !self.compensated {
            sums.iter_mut().zip(run).for_each(|(sum, count)| *sum += count * factor);
            return;
        }
        let compensations = &mut self.compensations[at..at + run.len()];
        for ((sum, compensation), count) in sums.iter_mut().zip(compensations).zip(run) {
            let total = KahanSum { sum: *sum, compensation: *compensation }.plus(count * factor);
            (*sum, *compensation) = (total.sum, total.compensation);
        }
    }

    /// Adds `factor` times the counts of a list; equal indexes may stand together.
    pub(super) fn add(&mut self, mut list: Vec<(i32, f64)>, factor: f64) {
        if list.windows(2).any(|w| w[0].0 > w[1].0) {
            list.sort_by_key(|(index, _)| *index);
        }
        self.make_room(&list);
        let mut at = 0;
        for (index, count) in list {
            at = self.position(at, i64::from(index));
            self.add_run(at, &[count], factor);
        }
    }

    /// Adds buckets without a count for the indexes that are missing.
    fn make_room(&mut self, list: &[(i32, f64)]) {
        let mut at = 0;
        let missing = list.iter().filter(|(index, _)| {
            at = self.position(at, i64::from(*index));
            self.indexes.get(at) != Some(index)
        });
        let mut missing: Vec<i32> = missing.map(|(index, _)| *index).collect();
        missing.dedup();
        if missing.is_empty() {
            return;
        }
        let mut wider = Self { compensated: self.compensated, ..Self::default() };
        wider.indexes.reserve_exact(self.indexes.len() + missing.len());
        wider.sums.reserve_exact(self.indexes.len() + missing.len());
        let mut own = 0;
        for index in missing.into_iter().map(Some).chain([None]) {
            let end = index.map_or(self.indexes.len(), |index| self.position(own, i64::from(index)));
            wider.indexes.extend_from_slice(&self.indexes[own..end]);
            wider.sums.extend_from_slice(&self.sums[own..end]);
            if self.compensated {
                wider.compensations.extend_from_slice(&self.compensations[own..end]);
            }
            own = end;
            if let Some(index) = index {
                wider.indexes.push(index);
                // Negative zero is what every first value survives.
                wider.sums.push(-0.0);
                if self.compensated {
                    wider.compensations.push(0.0);
                }
            }
        }
        *self = wider;
    }

    /// Gives every bucket another index, in the same order; those that become one are added up.
    pub(super) fn map_indexes(&mut self, map: impl Fn(i32) -> i32) {
        let mut kept: usize = 0;
        for i in 0..self.indexes.len() {
            let index = map(self.indexes[i]);
            let (sum, compensation) = (self.sums[i], self.compensations.get(i).copied().unwrap_or(0.0));
            if kept > 0 && self.indexes[kept - 1] == index {
                self.add_run(kept - 1, &[sum], 1.0);
                if self.compensated {
                    self.compensations[kept - 1] += compensation;
                }
                continue;
            }
            (self.indexes[kept], self.sums[kept]) = (index, sum);
            if self.compensated {
                self.compensations[kept] = compensation;
            }
            kept += 1;
        }
        self.truncate(kept);
    }

    fn truncate(&mut self, buckets: usize) {
        self.indexes.truncate(buckets);
        self.sums.truncate(buckets);
        self.compensations.truncate(buckets);
    }

    /// Takes the first buckets out, up to the first for which `is_inside` says no.
    pub(super) fn take_while(&mut self, is_inside: impl Fn(i32) -> bool) -> Vec<f64> {
        let inside = self.indexes.partition_point(|index| is_inside(*index));
        self.indexes.drain(..inside);
        let sums = self.sums.drain(..inside);
        if !self.compensated {
            return sums.map(|sum| sum + 0.0).collect();
        }
        let compensations = self.compensations.drain(..inside);
        sums.zip(compensations).map(|(sum, compensation)| sum + compensation).collect()
    }

    /// Multiplies every count, or with `divide` divides it.
    pub(super) fn scale(&mut self, by: f64, divide: bool) {
        let scaled = |value: f64| if divide { value / by } else { value * by };
        self.sums.iter_mut().for_each(|sum| *sum = scaled(*sum));
        // Nothing to compensate stays nothing, whatever it is multiplied with or divided by.
        let lost = self.compensations.iter_mut().filter(|lost| **lost != 0.0);
        lost.for_each(|lost| *lost = scaled(*lost));
    }

    /// Spans and one part of each count, empty buckets included.
    pub(super) fn raw(&self, part: impl Fn(&KahanSum) -> f64) -> (Vec<Span>, Vec<f64>) {
        let mut layout = Layout::with_capacity(self.indexes.len());
        for (i, index) in self.indexes.iter().enumerate() {
            let compensation = self.compensations.get(i).copied().unwrap_or(0.0);
            layout.push(i64::from(*index), part(&KahanSum { sum: self.sums[i], compensation }));
        }
        layout.finish()
    }

    /// Spans and counts, without empty buckets.
    pub(super) fn layout(&self) -> (Vec<Span>, Vec<f64>) {
        // Plain sums are added to zero as well, which turns a negative zero into a positive one.
        let value = |i: usize| self.sums[i] + self.compensations.get(i).copied().unwrap_or(0.0);
        let mut layout = Layout::with_capacity(self.indexes.len());
        for (i, index) in self.indexes.iter().enumerate() {
            let count = value(i);
            if count != 0.0 {
                layout.push(i64::from(*index), count);
            }
        }
        layout.finish()
    }
}

/// Spans and counts of buckets that come one by one, ascending.
pub(crate) struct Layout {
    spans: Vec<Span>,
    counts: Vec<f64>,
    next: i64,
}

impl Layout {
    pub(crate) fn with_capacity(buckets: usize) -> Self {
        let counts = Vec::with_capacity(buckets);
        Self { spans: Vec::new(), counts, next: 0 }
    }

    #[inline]
    pub(crate) fn push(&mut self, index: i64, count: f64) {
        match self.spans.last_mut() {
            Some(span) if index == self.next => span.length += 1,
            _ => {
                let offset = (index - self.next).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
                self.spans.push(Span { offset, length: 1 });
            }
        }
        self.next = index + 1;
        self.counts.push(count);
    }

    pub(crate) fn finish(self) -> (Vec<Span>, Vec<f64>) {
        (self.spans, self.counts)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn spans() -> impl Strategy<Value = Vec<Span>> {
        let span = (0i32..4, 0u32..4).prop_map(|(offset, length)| Span { offset, length });
        (-9i32..9, proptest::collection::vec(span, 0..5)).prop_map(|(first, mut spans)| {
            if let Some(span) = spans.first_mut() {
                span.offset = first;
            }
            spans
        })
    }

    proptest! {
        /// Whatever the layouts are, the sums are those of a map from index to Kahan sum.
        #[test]
        fn sums_are_those_of_a_map(
            histograms in proptest::collection::vec((spans(), proptest::collection::vec(-9i32..9, 16)), 1..8),
            compensated: bool,
            shift in 0u32..3,
        ) {
            let mut want: BTreeMap<i32, KahanSum> = BTreeMap::new();
            let mut got = Counts::of(&[], &[], compensated);
            for (i, (spans, counts)) in histograms.iter().enumerate() {
                let counts: Vec<f64> = counts.iter().map(|c| f64::from(*c) * 0.1).collect();
                let factor = if i % 3 == 2 { -1.0 } else { 1.0 };
                for (index, count) in buckets(spans, &counts) {
                    let total = want.entry(index).or_insert(KahanSum { sum: -0.0, compensation: 0.0 });
                    if compensated { total.add(count * factor) } else { total.sum += count * factor }
                }
                got.add_spans(spans, &counts, factor);
                prop_assert_eq!(want.iter().map(|(i, t)| (*i, t.sum)).collect::<Vec<_>>(), got.iter().collect::<Vec<_>>());
            }
            got.map_indexes(|index| index >> shift);
            let mut coarse: BTreeMap<i32, KahanSum> = BTreeMap::new();
            for (index, total) in want {
                match coarse.get_mut(&(index >> shift)) {
                    None => { coarse.insert(index >> shift, total); }
                    Some(first) => {
                        if compensated { first.add(total.sum) } else { first.sum += total.sum }
                        first.compensation += total.compensation;
                    }
                }
            }
            let populated = coarse.iter().map(|(i, t)| (*i, t.value())).filter(|(_, value)| *value != 0.0);
            let (spans, counts) = got.layout();
            prop_assert_eq!(buckets(&spans, &counts).collect::<Vec<_>>(), populated.collect::<Vec<_>>());
            prop_assert!(spans.iter().skip(1).all(|span| span.offset != 0));
        }

        #[test]
        fn invalid_layouts_do_no_harm(layouts: Vec<(Vec<(i32, u8)>, Vec<f64>)>) {
            let mut counts = Counts::default();
            for (spans, values) in layouts {
                let spans: Vec<Span> = spans.iter().map(|(offset, length)| Span { offset: *offset, length: u32::from(*length) }).collect();
                counts.add_spans(&spans, &values, 1.0);
                let _ = Counts::of(&spans, &values, true).layout();
            }
            let _ = counts.layout();
        }
    }
}
