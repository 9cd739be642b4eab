//! Printing of numbers as Go does it, because the API and label values hold numbers as Prometheus prints them.

use std::fmt;

/// A number which prints without exponent, in as few digits as say which it is.
///
/// Where two such texts are equally near to it, Go takes the even one and Rust the larger: 2^50 + 1/4 is
/// `1125899906842624.2` here.
#[derive(Debug, Clone, Copy)]
pub struct GoFloat(pub f64);

/// Most digits of a shortest text.
const MAX_DIGITS: u32 = 17;

impl fmt::Display for GoFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        let decimals = exact_decimals(value);
        // With n decimals in all, a text is exactly between two others only when it has n - 1.
        if !(2..=MAX_DIGITS + 1).contains(&decimals) {
            return write!(f, "{value}");
        }
        let decimals = decimals as usize;
        let shortest = format!("{value}");
        let shown = shortest.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        if shown + 1 != decimals {
            return f.write_str(&shortest);
        }
        // Ends in 5; without it, it is the neighbour towards zero.
        let exact = format!("{value:.decimals$}");
        let lower = &exact[..exact.len() - 1];
        let is_even = lower.bytes().last().is_some_and(|digit| digit % 2 == 0);
        let is_same = || lower.parse() == Ok(value);
        f.write_str(if is_even && is_same() { lower } else { &shortest })
    }
}

/// How many decimals the number has when every digit is written: one for each binary one. 0 for what is no number.
fn exact_decimals(value: f64) -> u32 {
    if value == 0.0 || !value.is_finite() {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 52) as i32 & 0x7ff;
    let (mantissa, exponent) = match exponent {
        0 => (bits & ((1 << 52) - 1), -1074),
        exponent => ((bits & ((1 << 52) - 1)) | 1 << 52, exponent - 1075),
    };
    u32::try_from(-(exponent + mantissa.trailing_zeros() as i32)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: f64, expected: &str) {
        assert_eq!(GoFloat(value).to_string(), expected);
        assert_eq!(expected.parse(), Ok(value));
    }

    #[test]
    #[expect(clippy::excessive_precision, reason = "between two texts: the digit too many is the point")]
    fn between_two_texts_the_even_one_is_taken() {
        check(1_125_899_906_842_624.25, "1125899906842624.2");
        check(1_125_899_906_842_624.75, "1125899906842624.8");
        check(-1_752_494_486_122_820.25, "-1752494486122820.2");
        // An interpolation's answer that Prometheus 2.42 and 3 print so.
        check(-2_748_761_688_595.156_25, "-2748761688595.1562");
        check(2_748_761_688_595.218_75, "2748761688595.2188");
    }

    #[test]
    fn others_print_as_they_did() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.25, "0.25"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (1e21, "1000000000000000000000"),
            (1e-7, "0.0000001"),
            (5e-324, &format!("0.{}5", "0".repeat(323))),
            (1_700_000_000.123, "1700000000.123"),
            (2_251_799_813_685_248.5, "2251799813685248.5"),
            (f64::MAX, &f64::MAX.to_string()),
        ] {
            check(value, expected);
        }
        assert_eq!(GoFloat(f64::NAN).to_string(), "NaN");
    }
}
