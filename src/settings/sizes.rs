//! Sizes in bytes as settings.

use std::fmt;

use super::value::{SettingValue, Shown};

/// A number of bytes, written with a unit: `100MiB`, `1GB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

/// Units from the largest; a size is shown in the first that divides it.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
];

impl ByteSize {
    /// A size in bytes.
    pub const fn bytes(count: u64) -> ByteSize {
        ByteSize(count)
    }

    /// A size in units of 1024 bytes.
    pub const fn kib(count: u64) -> ByteSize {
        ByteSize(count.saturating_mul(1 << 10))
    }

    /// A size in units of 1024² bytes.
    pub const fn mib(count: u64) -> ByteSize {
        ByteSize(count.saturating_mul(1 << 20))
    }

    /// A size in units of 1024³ bytes.
    pub const fn gib(count: u64) -> ByteSize {
        ByteSize(count.saturating_mul(1 << 30))
    }

    /// The size in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The size in bytes; more than the address space is the whole address space.
    pub const fn as_usize(self) -> usize {
        if self.0 > usize::MAX as u64 { usize::MAX } else { self.0 as usize }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl SettingValue for ByteSize {
    type Bound = ByteSize;

    fn type_name() -> String {
        "size".to_owned()
    }

    fn expected() -> String {
        "a size such as `100MiB`, `1GB` or a number of bytes".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "" | "B" | "b" => 1,
            name => {
                let known = UNITS.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(name));
                known.ok_or_else(|| format!("`{name}` is not a unit of size"))?.1
            }
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(ByteSize).ok_or_else(|| "larger than 16EiB".to_owned());
        }
        let bytes = number.parse::<f64>().map_err(|_| String::new())? * unit as f64;
        if bytes.fract() != 0.0 || bytes > (1u64 << 53) as f64 {
            return Err("not a whole number of bytes".to_owned());
        }
        Ok(ByteSize(bytes as u64))
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }

    fn bound(&self) -> Option<&Self::Bound> {
        Some(self)
    }

    fn show_bound(bound: &Self::Bound) -> String {
        bound.to_string()
    }
}
