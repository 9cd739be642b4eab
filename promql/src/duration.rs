//! Durations as Prometheus writes them: `1h30m`, units from years down to milliseconds, each at most once.

use std::fmt;

use skald_model::Quoted;

/// Units in the order they must appear, with their length in milliseconds. `m` and `ms` are told apart by the whole
/// run of letters.
const UNITS: [(&str, u64); 7] = [
    ("y", 365 * 24 * 3_600_000),
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Longest duration in milliseconds: what 63 bits of nanoseconds hold, about 292 years.
pub const MAX_MS: i64 = i64::MAX / 1_000_000;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Nothing there.
    #[error("empty duration string")]
    Empty,
    /// Wrong shape, or units out of order.
    #[error("not a valid duration string: {}", Quoted(.0))]
    Malformed(String),
    /// A unit that does not exist.
    #[error("unknown unit {} in duration {}", Quoted(.unit), Quoted(.text))]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Longer than [`MAX_MS`].
    #[error("duration out of range")]
    OutOfRange,
}

/// Reads a duration without sign; the result is in milliseconds. A bare `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    if text == "0" {
        return Ok(0);
    }
    let malformed = || DurationError::Malformed(text.to_owned());
    let mut rest = text;
    let mut next_unit = 0;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value: u64 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(|b| !b.is_ascii_digit()).count();
        if letters == 0 {
            return Err(malformed());
        }
        let unit = &rest[..letters];
        rest = &rest[letters..];
        let Some(position) = UNITS.iter().position(|(name, _)| *name == unit) else {
            return Err(DurationError::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() });
        };
        if position < next_unit {
            return Err(malformed());
        }
        next_unit = position + 1;
        total = value
            .checked_mul(UNITS[position].1)
            .and_then(|ms| total.checked_add(ms))
            .filter(|ms| *ms <= MAX_MS.unsigned_abs())
            .ok_or(DurationError::OutOfRange)?;
    }
    i64::try_from(total).map_err(|_| DurationError::OutOfRange)
}

/// Milliseconds which print as Prometheus prints durations: `90d`, `1h30m`, `-5m`, `0s`.
///
/// Years and weeks appear only when nothing smaller remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationMs(pub i64);

impl fmt::Display for DurationMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let mut ms = self.0.unsigned_abs();
        for (unit, length) in UNITS {
            if matches!(unit, "y" | "w") && !ms.is_multiple_of(length) {
                continue;
            }
            if ms >= length {
                write!(f, "{}{unit}", ms / length)?;
                ms %= length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let check = |text: &str, ms: i64| assert_eq!(parse_duration(text), Ok(ms), "{text}");
        check("0", 0);
        check("0s", 0);
        check("5m", 300_000);
        check("1h30m", 5_400_000);
        check("1y2w3d4h5m6s7ms", 31_536_000_000 + 1_209_600_000 + 259_200_000 + 14_400_000 + 306_007);
        check("106751d", 106_751 * 86_400_000);
    }

    #[test]
    fn bad_durations_are_refused() {
        let check = |text: &str, message: &str| assert_eq!(parse_duration(text).unwrap_err().to_string(), message);
        check("", "empty duration string");
        check("1", r#"not a valid duration string: "1""#);
        check("-1s", r#"not a valid duration string: "-1s""#);
        check("1.5h", r#"unknown unit "." in duration "1.5h""#);
        check("5m1h", r#"not a valid duration string: "5m1h""#);
        check("5m5m", r#"not a valid duration string: "5m5m""#);
        check("1hs", r#"unknown unit "hs" in duration "1hs""#);
        check("106752d", "duration out of range");
        check("99999999999999999999s", r#"not a valid duration string: "99999999999999999999s""#);
        check("18446744073709551615y", "duration out of range");
    }

    #[test]
    fn durations_print_shortest() {
        let check =
            |text: &str, printed: &str| assert_eq!(DurationMs(parse_duration(text).unwrap()).to_string(), printed);
        check("0", "0s");
        check("60s", "1m");
        check("90d", "90d");
        check("14d", "2w");
        check("15d", "15d");
        check("365d", "1y");
        check("366d", "366d");
        check("1500ms", "1s500ms");
        check("3600s", "1h");
        assert_eq!(DurationMs(-90_000).to_string(), "-1m30s");
    }
}
