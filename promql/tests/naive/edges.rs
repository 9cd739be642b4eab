//! `anchored` and `smoothed`.

use std::rc::Rc;

use skald_model::ResetHint;

use crate::histogram::{Hist, Incompatible};
use crate::value::{Sample, V, Window};

/// The value at `t` on the line between two samples; a counter that drops starts from zero.
fn between(a: (i64, f64), b: (i64, f64), t: i64, counter: bool) -> f64 {
    let from = if counter && b.1 < a.1 { 0.0 } else { a.1 };
    from + (b.1 - from) * (t - a.0) as f64 / (b.0 - a.0) as f64
}

fn between_hists(a: &(i64, Rc<Hist>), b: &(i64, Rc<Hist>), t: i64, counter: bool) -> Result<Hist, Incompatible> {
    if t == a.0 {
        return Ok(Hist::clone(&a.1));
    }
    if t == b.0 {
        return Ok(Hist::clone(&b.1));
    }
    let share = (t - a.0) as f64 / (b.0 - a.0) as f64;
    if counter && b.1.is_reset(&a.1) {
        return Ok(b.1.times(share));
    }
    b.1.plus(&a.1, -1.0)?.times(share).plus(&a.1, 1.0)
}

/// An instant selector's value with `smoothed`.
pub fn smoothed(samples: &[Sample], t: i64, lookback: i64) -> Option<V> {
    let around: Vec<&Sample> =
        samples.iter().filter(|s| t - lookback < s.t && s.t <= t + lookback && !s.v.is_stale()).collect();
    let mixed = around.iter().any(|s| s.v.float().is_some()) && around.iter().any(|s| s.v.float().is_none());
    if mixed {
        return None;
    }
    if let Some(exact) = around.iter().find(|s| s.t == t) {
        return Some(exact.v.clone());
    }
    let before = around.iter().rfind(|s| s.t < t)?;
    let after = around.iter().find(|s| s.t > t);
    match (&before.v, after.map(|s| (s.t, &s.v))) {
        (V::F(a), Some((time, V::F(b)))) => Some(V::F(between((before.t, *a), (time, *b), t, false))),
        (V::H(a), Some((_, V::H(b)))) if a.is_custom() != b.is_custom() => None,
        (V::H(a), Some((time, V::H(b)))) => {
            let counter = a.hint != ResetHint::Gauge || b.hint != ResetHint::Gauge;
            between_hists(&(before.t, Rc::clone(a)), &(time, Rc::clone(b)), t, counter).ok().map(V::hist)
        }
        (V::H(a), None) => Some(V::hist(a.with_hint(ResetHint::Unknown))),
        (v, _) => Some(v.clone()),
    }
}

/// The samples that `changes` and `resets` look at with `anchored`: those inside and the one before.
pub fn anchored(window: &Window) -> Option<Vec<Sample>> {
    let first = window.samples.iter().position(|s| s.t > window.start)?;
    Some(window.samples[first.saturating_sub(1)..].to_vec())
}

/// First and last sample that count, or nothing if all are on one side.
fn bounds(times: &[i64], window: &Window, smoothed: bool) -> Option<(usize, usize)> {
    let newest = times.len() - 1;
    let first = times.iter().rposition(|t| *t <= window.start).unwrap_or(0);
    let last = if smoothed { times.iter().position(|t| *t >= window.end).unwrap_or(newest) } else { newest };
    if times[last] <= window.start || smoothed && times[first] > window.end {
        return None;
    }
    Some((first, last))
}

/// `rate`, `increase` and `delta` without extrapolation; the windows bring the samples around them.
pub fn rate(window: &Window, counter: bool, per_second: bool, smoothed: bool) -> Option<V> {
    let seconds = window.seconds();
    let (floats, hists) = (window.floats(), window.hists());
    if !floats.is_empty() && !hists.is_empty() {
        return None;
    }
    if hists.is_empty() {
        let change = float_change(&floats, window, counter, smoothed)?;
        return Some(V::F(if per_second { change / seconds } else { change }));
    }
    let change = hist_change(&hists, window, counter, smoothed)?;
    let change = if per_second { change.over(seconds) } else { change };
    Some(V::hist(change.with_hint(ResetHint::Gauge).compact()))
}

fn float_change(all: &[(i64, f64)], window: &Window, counter: bool, smoothed: bool) -> Option<f64> {
    let times: Vec<i64> = all.iter().map(|(t, _)| *t).collect();
    let (first, last) = bounds(&times, window, smoothed)?;
    let left = match all[first] {
        (t, _) if smoothed && t < window.start => between(all[first], all[first + 1], window.start, counter),
        (_, value) => value,
    };
    let right = match all[last] {
        (t, _) if smoothed && last > 0 && t > window.end => between(all[last - 1], all[last], window.end, counter),
        (_, value) => value,
    };
    let mut change = right - left;
    if counter {
        let inside = all[first..=last].iter().filter(|(t, _)| window.start < *t && *t < window.end);
        let mut lost = 0.0;
        let mut before = left;
        for value in inside.map(|(_, value)| *value).chain([right]) {
            if value < before {
                lost += before;
            }
            before = value;
        }
        change += lost;
    }
    Some(change)
}

fn hist_change(all: &[(i64, Rc<Hist>)], window: &Window, counter: bool, smoothed: bool) -> Option<Hist> {
    let times: Vec<i64> = all.iter().map(|(t, _)| *t).collect();
    let (first, last) = bounds(&times, window, smoothed)?;
    if all[first..=last].iter().any(|(_, h)| h.is_custom() != all[first].1.is_custom()) {
        return None;
    }
    let cut_left = smoothed && all[first].0 < window.start;
    let left = if cut_left {
        between_hists(&all[first], &all[first + 1], window.start, counter).ok()?
    } else {
        Hist::clone(&all[first].1)
    };
    let right = if smoothed && last > 0 && all[last].0 > window.end {
        between_hists(&all[last - 1], &all[last], window.end, counter).ok()?
    } else {
        Hist::clone(&all[last].1)
    };
    let change = right.plus(&left, -1.0).ok()?;
    if !counter {
        return Some(change);
    }
    // The interpolated left end already lies behind a reset that it spans.
    let skipped = cut_left && all[first + 1].1.is_reset(&all[first].1);
    let mut before = if skipped { Hist::clone(&all[first + 1].1) } else { left };
    let next = first + 1 + usize::from(skipped);
    if next > last {
        return Some(change);
    }
    let mut lost: Option<Hist> = None;
    for h in all[next..last].iter().map(|(_, h)| Hist::clone(h)).chain([right]) {
        if h.is_reset(&before) {
            lost = Some(match lost {
                None => before,
                Some(lost) => lost.plus(&before, 1.0).ok()?,
            });
        }
        before = h;
    }
    match lost {
        Some(lost) => change.plus(&lost, 1.0).ok(),
        None => Some(change),
    }
}
