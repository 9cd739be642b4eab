//! `rate`, `increase` and `delta` of native histograms.
//!
//! Which samples follow a reset, which are laid out differently from the one before, and which are gauges is noted once
//! per sample ([`Noted`]); where a window's histograms have one layout, as they mostly do, buckets are subtracted in
//! place, without a running sum.

use std::collections::VecDeque;
use std::sync::Arc;

use skald_model::histogram::bucket_indexes;
use skald_model::{FloatHistogram, ResetHint, Span};

use super::rate::extrapolation;
use super::start::{self, Starts};
use super::{Call, RangeFunction, Window};
use crate::eval::error::EvalError;
use crate::eval::histogram::bucket::is_custom;
use crate::eval::histogram::counts::Layout;
use crate::eval::histogram::reset::{has_plain_layout, is_reset, same_layout};
use crate::eval::histogram::sum::HistogramSum;
use crate::eval::histogram::{self, Combination};
use crate::eval::points::Point;

/// The value of a window of histograms only, at least one; two unless the counter's `start` lies in the window.
pub(super) fn value(
    window: &Window<'_>,
    start: Option<i64>,
    call: &mut Call<'_, '_, '_>,
) -> Result<Option<Point>, EvalError> {
    let work = call.noted.advance(window, call.starts);
    call.env.tick(work)?;
    let is_counter = call.function != RangeFunction::Delta;
    if is_counter && window.len() > 1 && !call.noted.gauges.is_empty() {
        histogram::warn_not_counter(call.labels, call.span, call.env);
    }
    let range = window.end - window.start;
    if start.is_none()
        && let Some(change) = same_layout_change(window, call)
    {
        let zero_from = is_counter.then(|| window.histograms[0].count);
        let factor = extrapolation(window, window.histogram_times, change.count, zero_from, call.function, range);
        return Ok(Some(Point::Histogram(Arc::new(change.finish(factor, call.scratch)))));
    }
    let first = &window.histograms[0];
    let mut change = match change(window, call) {
        Some(change) => change,
        None if window.len() > 1 => return Ok(None),
        None => HistogramSum::plain(first),
    };
    let factor = match start {
        Some(start) => {
            if window.len() > 1 {
                if change.add(first, 1.0).is_err() {
                    histogram::warn_incompatible_schemas(call.labels, call.span, call.env);
                    return Ok(None);
                }
                if change.is_reconciled() {
                    histogram::info_reconciled(Combination::Addition, call.span, call.env);
                }
            }
            start::extrapolation(window, window.histogram_times, start, call.function, range)
        }
        None => {
            let zero_from = is_counter.then(|| first.count);
            extrapolation(window, window.histogram_times, change.count(), zero_from, call.function, range)
        }
    };
    change.scale(factor);
    // A single sample stays what it was.
    let reset_hint = if window.len() > 1 { ResetHint::Gauge } else { first.reset_hint };
    Ok(Some(Point::Histogram(Arc::new(FloatHistogram { reset_hint, ..change.finish() }))))
}

fn is_gauge(histogram: &FloatHistogram) -> bool {
    histogram.reset_hint == ResetHint::Gauge
}

/// The difference of the last and first histogram, and for counters what was lost in resets between.
fn change(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Option<HistogramSum> {
    let (labels, span, starts) = (call.labels, call.span, call.starts);
    let histograms = window.histograms;
    let is_counter = call.function != RangeFunction::Delta;
    let [first, .., last] = histograms else { return None };
    // What the first sample looked like does not matter if the counter was reset right after it.
    let restarted = is_counter && call.noted.restarts(window);
    let layout = if restarted { &histograms[1] } else { first };
    let others = if is_counter { &histograms[1..] } else { std::slice::from_ref(last) };
    if others.iter().any(|h| is_custom(h) != is_custom(layout)) {
        histogram::warn_incompatible_schemas(labels, span, call.env);
        return None;
    }
    let mut sum = HistogramSum::plain(last);
    // The result is as coarse as the coarsest sample of the window, and is worked out at that resolution.
    let coarsest = others.iter().map(|h| h.schema).chain([layout.schema]).min().unwrap_or(last.schema);
    sum.coarsen(coarsest);
    let mut reconciled = false;
    if !restarted {
        sum.add(first, -1.0).ok()?;
        if sum.is_reconciled() {
            histogram::info_reconciled(Combination::Subtraction, span, call.env);
            reconciled = true;
        }
    } else {
        // The result has the resolution of what it was taken from.
        let empty = FloatHistogram {
            schema: layout.schema,
            custom_values: Arc::clone(&layout.custom_values),
            ..FloatHistogram::default()
        };
        sum.add(&empty, -1.0).ok()?;
    }
    if is_counter {
        starts.warn_overlaps(window, call);
        for at in call.noted.resets_inside(window).skip(usize::from(restarted)) {
            sum.add(&histograms[at - 1], 1.0).ok()?;
            if sum.is_reconciled() && !reconciled {
                histogram::info_reconciled(Combination::Addition, span, call.env);
                reconciled = true;
            }
        }
    } else if !is_gauge(first) || !is_gauge(last) {
        histogram::warn_not_gauge(labels, span, call.env);
    }
    Some(sum)
}

/// The change of histograms of one layout; its buckets, positive ones first, are in the call's scratch.
struct SameLayoutChange<'a> {
    like: &'a FloatHistogram,
    zero_count: f64,
    count: f64,
    sum: f64,
}

/// The same as [`change`], operation by operation; `None` where layouts differ.
fn same_layout_change<'c>(window: &Window<'c>, call: &mut Call<'_, '_, '_>) -> Option<SameLayoutChange<'c>> {
    let is_counter = call.function != RangeFunction::Delta;
    let [first, .., last] = window.histograms else { return None };
    let restarted = is_counter && call.noted.restarts(window);
    if !call.noted.has_one_layout(window, restarted) {
        return None;
    }
    let (first, last) = (&**first, &**last);
    let mut change = SameLayoutChange { like: last, zero_count: last.zero_count, count: last.count, sum: last.sum };
    let counts = &mut *call.scratch;
    counts.clear();
    counts.extend_from_slice(&last.positive_buckets);
    counts.extend_from_slice(&last.negative_buckets);
    if !restarted {
        change.add(first, -1.0, counts);
    }
    if is_counter {
        for at in call.noted.resets_inside(window).skip(usize::from(restarted)) {
            change.add(&window.histograms[at - 1], 1.0, counts);
        }
        call.starts.warn_overlaps(window, call);
    } else if !is_gauge(first) || !is_gauge(last) {
        histogram::warn_not_gauge(call.labels, call.span, call.env);
    }
    Some(change)
}

impl SameLayoutChange<'_> {
    fn add(&mut self, other: &FloatHistogram, factor: f64, counts: &mut [f64]) {
        let (positive, negative) = counts.split_at_mut(other.positive_buckets.len());
        positive.iter_mut().zip(&other.positive_buckets).for_each(|(sum, count)| *sum += count * factor);
        negative.iter_mut().zip(&other.negative_buckets).for_each(|(sum, count)| *sum += count * factor);
        self.zero_count += other.zero_count * factor;
        self.count += other.count * factor;
        self.sum += other.sum * factor;
    }

    /// The change times `factor`, without empty buckets.
    fn finish(&self, factor: f64, counts: &[f64]) -> FloatHistogram {
        let like = self.like;
        let (positive, negative) = counts.split_at(like.positive_buckets.len());
        let (positive_spans, positive_buckets) = scaled(&like.positive_spans, positive, factor);
        let (negative_spans, negative_buckets) = scaled(&like.negative_spans, negative, factor);
        FloatHistogram {
            reset_hint: ResetHint::Gauge,
            schema: like.schema,
            zero_threshold: like.zero_threshold,
            zero_count: self.zero_count * factor,
            count: self.count * factor,
            sum: self.sum * factor,
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_values: Arc::clone(&like.custom_values),
        }
    }
}

fn scaled(spans: &[Span], counts: &[f64], factor: f64) -> (Vec<Span>, Vec<f64>) {
    let scaled: Vec<f64> = counts.iter().map(|count| count * factor).collect();
    let is_compact = spans.iter().enumerate().all(|(i, span)| span.length > 0 && (i == 0 || span.offset != 0));
    if is_compact && scaled.iter().all(|count| *count != 0.0) {
        return (spans.to_vec(), scaled);
    }
    let mut layout = Layout::with_capacity(scaled.len());
    for (index, count) in bucket_indexes(spans).zip(scaled) {
        if count != 0.0 {
            layout.push(index, count);
        }
    }
    layout.finish()
}

/// What has been found out about the histograms of the window: by index in the series' column, ascending.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// The next histogram to look at.
    next: usize,
    /// Histograms that follow a reset; the first one of the window may be among them.
    resets: VecDeque<usize>,
    /// Where histograms of one layout begin, and whether it is a plain one.
    layouts: VecDeque<(usize, bool)>,
    gauges: VecDeque<usize>,
}

impl Noted {
    /// Forgets what lies before the window and looks at what is new in it; says how much work that was.
    fn advance(&mut self, window: &Window<'_>, starts: Starts<'_>) -> usize {
        let first = window.first_histogram;
        let mut work = 0;
        if self.next <= first {
            *self = Self { next: first, ..Self::default() };
        }
        while self.next < first + window.histograms.len() {
            let i = self.next - first;
            self.next += 1;
            let histogram = &*window.histograms[i];
            work += histogram.positive_buckets.len() + histogram.negative_buckets.len() + 8;
            if is_gauge(histogram) {
                self.gauges.push_back(first + i);
            }
            let Some(before) = i.checked_sub(1).map(|before| &*window.histograms[before]) else {
                self.layouts.push_back((first + i, has_plain_layout(histogram)));
                continue;
            };
            if !same_layout(histogram, before) {
                self.layouts.push_back((first + i, has_plain_layout(histogram)));
            }
            if starts.restarts_at(window, i) || is_reset(histogram, before) {
                self.resets.push_back(first + i);
            }
        }
        let drop_before = |list: &mut VecDeque<usize>| while list.pop_front_if(|at| *at < first).is_some() {};
        drop_before(&mut self.resets);
        drop_before(&mut self.gauges);
        while self.layouts.get(1).is_some_and(|(begins, _)| *begins <= first) {
            self.layouts.pop_front();
        }
        work
    }

    /// The resets inside the window, as indexes into it: after the first histogram.
    fn resets_inside(&self, window: &Window<'_>) -> impl Iterator<Item = usize> {
        let first = window.first_histogram;
        self.resets.iter().filter(move |at| **at > first).map(move |at| at - first)
    }

    /// Whether the second histogram follows a reset.
    fn restarts(&self, window: &Window<'_>) -> bool {
        self.resets_inside(window).next() == Some(1)
    }

    /// Whether all histograms (but the first, if it does not matter) have one plain layout.
    fn has_one_layout(&self, window: &Window<'_>, without_first: bool) -> bool {
        match (self.layouts.len(), self.layouts.back()) {
            (1, Some((_, plain))) => *plain,
            (2, Some((begins, plain))) => *plain && without_first && *begins == window.first_histogram + 1,
            _ => false,
        }
    }
}
