//! Durations as settings, written as Go and Prometheus write them: `2h`, `100ms`, `1h30m`.

use std::time::Duration;

use super::value::{SettingValue, Shown};

/// Units from the largest. Shown in the same order, except that weeks and years are only read.
const UNITS: [(&str, u64); 9] = [
    ("y", 365 * 86_400_000_000_000),
    ("w", 7 * 86_400_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads `1h30m`, `1.5s`, `100ms`, `7d`, `0`. Units stand from larger to smaller, each at most once.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut units_left = UNITS.as_slice();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = if unit == "µs" { "us" } else { unit };
        let at = units_left.iter().position(|(name, _)| *name == unit)?;
        let nanos = units_left[at].1;
        units_left = &units_left[at + 1..];
        let part = match number.split_once('.') {
            None => number.parse::<u64>().ok()?.checked_mul(nanos)?,
            Some((whole, fraction)) if fraction.len() <= 9 => {
                let whole = whole.parse::<u64>().ok()?.checked_mul(nanos)?;
                let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
                let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(nanos) / scale;
                whole.checked_add(u64::try_from(fraction).ok()?)?
            }
            Some(_) => return None,
        };
        total = total.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(total))
}

/// Writes a duration in the units of [`parse_duration`], the largest first: `1h30m`, `100ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, nanos) in UNITS.iter().skip(2) {
        let count = rest / u128::from(*nanos);
        // 36h reads better than 1d12h.
        if count == 0 || (*name == "d" && !rest.is_multiple_of(u128::from(*nanos))) {
            continue;
        }
        text.push_str(&format!("{count}{name}"));
        rest -= count * u128::from(*nanos);
    }
    text
}

impl SettingValue for Duration {
    type Bound = Duration;

    fn type_name() -> String {
        "duration".to_owned()
    }

    fn expected() -> String {
        "a duration such as `100ms`, `2h` or `1h30m`".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text).ok_or_else(|| match text.parse::<f64>() {
            Ok(_) => "the unit is missing".to_owned(),
            Err(_) => String::new(),
        })
    }

    fn show(&self) -> Shown {
        Shown::Text(format_duration(*self))
    }

    fn bound(&self) -> Option<&Self::Bound> {
        Some(self)
    }

    fn show_bound(bound: &Self::Bound) -> String {
        format_duration(*bound)
    }
}
