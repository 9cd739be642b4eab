//! Quantiles of plain floats, and how floats are written in texts.

use std::cmp::Ordering;
use std::ops::Range;

use skald_model::GoFloat;

use super::env::Env;
use crate::ast::Span;

/// The `q`-quantile by linear interpolation; NaN counts as smaller than every number. Orders `values`.
pub(crate) fn quantile(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    let last = values.len() - 1;
    let rank = q * last as f64;
    let lower = (rank.floor().max(0.0) as usize).min(last);
    let upper = (lower + 1).min(last);
    let weight = rank - rank.floor();
    let (_, low, above) = values.select_nth_unstable_by(lower, nan_first);
    let low = *low;
    let high = if upper == lower { low } else { above.iter().copied().min_by(nan_first).unwrap_or(low) };
    low * (1.0 - weight) + high * weight
}

/// The values of a window in order, kept from one window to the next.
#[derive(Debug, Default)]
pub(crate) struct SortedWindow {
    /// [`order_key`] of each value, ascending.
    keys: Vec<u64>,
}

/// An integer of the order of `value`: NaN first, negative zero before zero.
fn order_key(value: f64) -> u64 {
    let bits = value.to_bits();
    match value.is_nan() {
        true => 0,
        false if bits >> 63 == 1 => !bits,
        false => bits | 1 << 63,
    }
}

fn value_of(key: u64) -> f64 {
    match key {
        0 => f64::NAN,
        _ if key >> 63 == 1 => f64::from_bits(key & !(1 << 63)),
        _ => f64::from_bits(!key),
    }
}

impl SortedWindow {
    /// Goes from the window `before` of `values` to `now`, neither of whose ends is earlier; says how much work it was.
    pub(crate) fn slide(&mut self, values: &[f64], before: Range<usize>, now: Range<usize>) -> usize {
        let moved = (now.end - before.end) + (now.start - before.start);
        // Moving a value costs moving half of the others, but those as one piece of memory.
        if now.start >= before.end || moved.saturating_mul(8) > now.len() {
            self.keys.clear();
            self.keys.extend(values[now.clone()].iter().map(|value| order_key(*value)));
            self.keys.sort_unstable();
            return 8 * now.len();
        }
        for value in &values[before.start..now.start] {
            let at = self.keys.partition_point(|key| *key < order_key(*value));
            self.keys.remove(at);
        }
        for value in &values[before.end..now.end] {
            let key = order_key(*value);
            let at = self.keys.partition_point(|other| *other < key);
            self.keys.insert(at, key);
        }
        moved * (16 + now.len() / 16)
    }

    /// The `q`-quantile of the window, which is not empty, as [`quantile`] has it.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        if q.is_nan() {
            return f64::NAN;
        }
        if q < 0.0 {
            return f64::NEG_INFINITY;
        }
        if q > 1.0 {
            return f64::INFINITY;
        }
        let last = self.keys.len() - 1;
        let rank = q * last as f64;
        let lower = (rank.floor().max(0.0) as usize).min(last);
        let upper = (lower + 1).min(last);
        let weight = rank - rank.floor();
        value_of(self.keys[lower]) * (1.0 - weight) + value_of(self.keys[upper]) * weight
    }

    /// The median of the window's distances from its median; NaN if there is one.
    pub(crate) fn median_deviation(&self) -> f64 {
        if self.keys.first() == Some(&0) {
            return f64::NAN;
        }
        let median = self.quantile(0.5);
        let distance = |at: usize| (value_of(self.keys[at]) - median).abs();
        if !median.is_finite() {
            return quantile(0.5, &mut (0..self.keys.len()).map(distance).collect::<Vec<_>>());
        }
        // Distances grow from the median to both sides, so the ones of the wanted ranks are found as in two sorted
        // lists: so many of the nearest are to the left that no other to the right is nearer, and the other way round.
        let last = self.keys.len() - 1;
        let middle = self.keys.partition_point(|key| value_of(*key) < median);
        let to_left = |i: usize| if i < middle { distance(middle - 1 - i) } else { f64::INFINITY };
        let to_right = |i: usize| if middle + i <= last { distance(middle + i) } else { f64::INFINITY };
        let rank = 0.5 * last as f64;
        let lower = rank.floor() as usize;
        let nearest = lower + 1;
        let (mut least, mut most) = (nearest.saturating_sub(self.keys.len() - middle), nearest.min(middle));
        while least < most {
            let left = (least + most) / 2;
            if to_left(left) < to_right(nearest - left - 1) {
                least = left + 1;
            } else {
                most = left;
            }
        }
        let (left, right) = (least, nearest - least);
        let farthest_left = if left > 0 { to_left(left - 1) } else { 0.0 };
        let farthest_right = if right > 0 { to_right(right - 1) } else { 0.0 };
        let low = farthest_left.max(farthest_right);
        let high = if lower < last { to_left(left).min(to_right(right)) } else { low };
        let weight = rank - rank.floor();
        low * (1.0 - weight) + high * weight
    }
}

/// Ascending, NaN first.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that slice methods take")]
pub(crate) fn nan_first(a: &f64, b: &f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
    }
}

/// Warns about a quantile outside 0 to 1.
pub(crate) fn check_quantile(q: f64, span: Span, env: &mut Env<'_>) {
    if q.is_nan() || !(0.0..=1.0).contains(&q) {
        env.annotations.warn(span, format!("quantile value should be between 0 and 1, got {}", format_g(q)));
    }
}

/// A float as Go's `%g` writes it.
pub(crate) fn format_g(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{value}")
}

/// A float as OpenMetrics writes it in labels: always with a point or an exponent.
pub(crate) fn format_open_metrics(value: f64) -> String {
    let text = format_g(value);
    if value.is_finite() && !text.contains(['.', 'e']) { text + ".0" } else { text }
}

/// A float with two significant digits, as Go's `%.2g`.
pub(crate) fn format_two_digits(value: f64) -> String {
    match format!("{value:.1e}").parse::<f64>() {
        Ok(rounded)
            if rounded.is_finite() && rounded != 0.0 && !(-4..2).contains(&(rounded.abs().log10().floor() as i32)) =>
        {
            let scientific = format!("{rounded:e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        Ok(rounded) => format_g(rounded),
        Err(_) => format_g(value),
    }
}

/// A float as Prometheus writes sample values into label values: never with an exponent.
pub(crate) fn format_plain(value: f64) -> String {
    if value.is_finite() { GoFloat(value).to_string() } else { format_g(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolates_between_ranks() {
        assert_eq!(quantile(0.75, &mut [4.0, 0.0, 1.0]), 2.5);
        assert_eq!(quantile(0.0, &mut [4.0, 0.0, 1.0]), 0.0);
        assert_eq!(quantile(1.0, &mut [4.0, 0.0, 1.0]), 4.0);
        assert_eq!(quantile(0.8, &mut [0.0, 1.0, f64::NAN]), 0.6000000000000001);
        assert!(quantile(0.2, &mut [0.0, 1.0, f64::NAN]).is_nan());
        assert_eq!(quantile(-1.0, &mut [1.0]), f64::NEG_INFINITY);
        assert!(quantile(0.5, &mut []).is_nan());
    }

    /// Windows of every kind of float, sliding at different paces, against sorting each anew.
    #[test]
    fn sliding_windows_are_sorted() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN, f64::MAX, f64::MIN_POSITIVE];
        for odd_ones in [0, 1, 3, 6] {
            let values: Vec<f64> = (0..600)
                .map(|_| match random(20) {
                    0 if odd_ones > 0 => odd[random(odd_ones)],
                    _ => random(40) as f64 - 20.5,
                })
                .collect();
            let mut sorted = SortedWindow::default();
            let mut before = 0..0;
            while before.end < values.len() {
                let end = (before.end + random(9)).min(values.len());
                let now = (before.start + random(9)).min(end)..end;
                sorted.slide(&values, before.clone(), now.clone());
                before = now.clone();
                if now.is_empty() {
                    continue;
                }
                let mut window = values[now].to_vec();
                let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                for q in [-1.0, 0.0, 0.3, 0.5, 0.99, 1.0, 2.0, f64::NAN] {
                    let (got, want) = (sorted.quantile(q), quantile(q, &mut window));
                    assert!(same(got, want), "{q} of {window:?}: {got}, not {want}");
                }
                let has_nan = window.iter().any(|v| v.is_nan());
                let median = quantile(0.5, &mut window);
                window.iter_mut().for_each(|v| *v = (*v - median).abs());
                let want = if has_nan { f64::NAN } else { quantile(0.5, &mut window) };
                let got = sorted.median_deviation();
                assert!(same(got, want), "{window:?}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn writes_floats_as_go_does() {
        for (value, text) in
            [(1.1, "1.1"), (-0.0, "-0"), (1e6, "1e+06"), (1e21, "1e+21"), (1.5e-7, "1.5e-07"), (6.0, "6")]
        {
            assert_eq!(format_g(value), text);
        }
        assert_eq!((format_open_metrics(1.0), format_open_metrics(0.5)), ("1.0".to_owned(), "0.5".to_owned()));
        for (value, text) in [(1.0, "1"), (0.123, "0.12"), (123.0, "1.2e+02"), (0.0, "0"), (f64::INFINITY, "+Inf")] {
            assert_eq!(format_two_digits(value), text);
        }
        assert_eq!(format_plain(1e21), "1000000000000000000000");
    }
}
