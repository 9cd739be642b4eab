//! What numbers and strings are worth.

use skald_model::Quoted;

/// The value of a number as the lexer lets it through: decimal, hexadecimal, octal (a leading 0 followed by octal digits
/// only), `Inf`, `NaN`, with `_` between digits.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    if let Some(value) = integer(text) {
        #[expect(clippy::cast_precision_loss, reason = "numbers are floats; the nearest one is meant")]
        return Ok(value as f64);
    }
    let fail = |why: &str| Err(format!("error parsing number: strconv.ParseFloat: parsing {}: {why}", Quoted(text)));
    if !underscores_ok(text) {
        return fail("invalid syntax");
    }
    let Ok(value) = text.replace('_', "").parse::<f64>() else { return fail("invalid syntax") };
    if value.is_infinite() && text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return fail("value out of range");
    }
    Ok(value)
}

/// Integers, whose prefix decides the base; `None` also when 63 bits do not hold it.
fn integer(text: &str) -> Option<i64> {
    if !underscores_ok(text) {
        return None;
    }
    let lower = text.replace('_', "").to_ascii_lowercase();
    let (digits, base) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
        None => (lower.as_str(), 10),
    };
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    i64::from_str_radix(digits, base).ok()
}

/// Whether every `_` stands between digits, or between the prefix of the base and a digit.
fn underscores_ok(text: &str) -> bool {
    if !text.contains('_') {
        return true;
    }
    let bytes = text.as_bytes();
    let hex = bytes.len() > 1 && bytes[0] == b'0' && matches!(bytes[1], b'x' | b'X');
    let mut digit_before = hex;
    let mut underscore_before = false;
    for b in &bytes[if hex { 2 } else { 0 }..] {
        let digit = b.is_ascii_digit() || (hex && b.is_ascii_hexdigit());
        if (*b == b'_' && !digit_before) || (*b != b'_' && !digit && underscore_before) {
            return false;
        }
        underscore_before = *b == b'_';
        digit_before = digit;
    }
    !underscore_before
}

/// The value of a string literal whose escapes the lexer has checked, its quotes included.
///
/// Bytes that are written as escapes and do not form UTF-8 become U+FFFD: no label value can hold them, so they can
/// never be met either way.
pub(crate) fn unquote(literal: &str) -> String {
    unquote_bytes(literal).unwrap_or_else(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of a string literal, or its bytes if they are not UTF-8.
pub(crate) fn unquote_bytes(literal: &str) -> Result<String, Vec<u8>> {
    let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
    if literal.starts_with('`') || !inner.contains('\\') {
        return Ok(inner.to_owned());
    }
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = unescape(&rest[at + 1..], &mut bytes);
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(std::string::FromUtf8Error::into_bytes)
}

/// Appends what the escape at the start of `rest` (its backslash removed) stands for; returns what follows it.
fn unescape<'a>(rest: &'a str, out: &mut Vec<u8>) -> &'a str {
    let Some(c) = rest.chars().next() else { return "" };
    let (digits_at, digits, base) = match c {
        '0'..='7' => (0, 3, 8),
        'x' => (1, 2, 16),
        'u' => (1, 4, 16),
        'U' => (1, 8, 16),
        c => {
            let mut utf8 = [0; 4];
            let plain = match c {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                c => c,
            };
            out.extend_from_slice(plain.encode_utf8(&mut utf8).as_bytes());
            return &rest[c.len_utf8()..];
        }
    };
    let end = digits_at + digits;
    let value = rest.get(digits_at..end).and_then(|d| u32::from_str_radix(d, base).ok());
    match (value, c) {
        (Some(value), 'u' | 'U') => {
            let mut utf8 = [0; 4];
            let c = char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
            out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
        }
        (Some(value), _) => out.push(u8::try_from(value).unwrap_or(b'?')),
        (None, _) => {}
    }
    rest.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_value_go_gives_them() {
        let check = |text: &str, value: f64| assert_eq!(number(text).map(f64::to_bits), Ok(value.to_bits()), "{text}");
        check("1", 1.0);
        check("5.", 5.0);
        check(".5", 0.5);
        check("5e-3", 0.005);
        check("0xc", 12.0);
        check("0X_1F", 31.0);
        check("0755", 493.0);
        check("010", 8.0);
        check("08", 8.0);
        check("0_7", 7.0);
        check("1_000_000", 1e6);
        check("1_0.2_5e1_0", 10.25e10);
        check("9223372036854775807", 9_223_372_036_854_775_807.0);
        check("9223372036854775808", 9_223_372_036_854_775_808.0);
        check("iNf", f64::INFINITY);
        assert!(number("NaN").unwrap().is_nan());
    }

    #[test]
    fn bad_numbers_are_refused() {
        let check = |text: &str, why: &str| {
            let expected = format!("error parsing number: strconv.ParseFloat: parsing \"{text}\": {why}");
            assert_eq!(number(text), Err(expected));
        };
        check("1e1000", "value out of range");
        check("0x", "invalid syntax");
        check("0x8000000000000000", "invalid syntax");
        check("1e+", "invalid syntax");
    }

    #[test]
    fn strings_are_unescaped() {
        let check = |literal: &str, value: &str| assert_eq!(unquote(literal), value, "{literal}");
        check(r#""""#, "");
        check(r#""a\a\b\f\n\r\t\v\\\"z""#, "a\x07\x08\x0c\n\r\t\x0b\\\"z");
        check(r"'\'\x41\101\u263a\U0001F600'", "'AA\u{263a}\u{1f600}");
        check(r#""\xc3\xa9 \xff""#, "é \u{fffd}");
        check(r"`\n`", r"\n");
    }
}
