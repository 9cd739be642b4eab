//! Quantiles of plain floats, and how floats are written in texts.

use std::cmp::Ordering;

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
    if value.is_finite() { format!("{value}") } else { format_g(value) }
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
