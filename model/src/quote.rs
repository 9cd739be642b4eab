//! Quoting of text as Go does it, because PromQL, its error messages and the API print strings that way.

use std::fmt;
use std::sync::LazyLock;

use regex_syntax::hir::{Class, ClassUnicode, HirKind};

/// A text which prints between double quotes, escaped as Go's `strconv.Quote` escapes it.
///
/// U+FFFD is always escaped: PromQL's lexer takes a literal one for damaged UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

/// A character which prints between single quotes, escaped as Go's `strconv.QuoteRune` escapes it.
#[derive(Debug, Clone, Copy)]
pub struct QuotedChar(pub char);

/// Bytes which print as [`Quoted`] does, those that are not UTF-8 as `\x..`.
#[derive(Debug, Clone, Copy)]
pub struct QuotedBytes<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        write_escaped(f, self.0)?;
        f.write_str("\"")
    }
}

impl fmt::Display for QuotedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for chunk in self.0.utf8_chunks() {
            write_escaped(f, chunk.valid())?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        f.write_str("\"")
    }
}

fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut plain_from = 0;
    for (at, c) in text.char_indices() {
        if c != '"' && c != '\\' && c != char::REPLACEMENT_CHARACTER && is_print(c) {
            continue;
        }
        f.write_str(&text[plain_from..at])?;
        plain_from = at + c.len_utf8();
        if c == '"' { f.write_str("\\\"")? } else { write_escape(f, c)? }
    }
    f.write_str(&text[plain_from..])
}

impl fmt::Display for QuotedChar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '\'' => f.write_str(r"'\''"),
            c if c != '\\' && is_print(c) => write!(f, "'{c}'"),
            c => {
                f.write_str("'")?;
                write_escape(f, c)?;
                f.write_str("'")
            }
        }
    }
}

fn write_escape(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\\' => f.write_str("\\\\"),
        '\x07' => f.write_str("\\a"),
        '\x08' => f.write_str("\\b"),
        '\x0c' => f.write_str("\\f"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\x0b' => f.write_str("\\v"),
        c if c < ' ' || c == '\x7f' => write!(f, "\\x{:02x}", c as u32),
        c if c <= '\u{ffff}' => write!(f, "\\u{:04x}", c as u32),
        c => write!(f, "\\U{:08x}", c as u32),
    }
}

/// Letters, marks, numbers, punctuation and symbols: what Go prints as it is, besides the ASCII space.
static PRINTABLE: LazyLock<Option<ClassUnicode>> = LazyLock::new(|| {
    let hir = regex_syntax::Parser::new().parse(r"[\p{L}\p{M}\p{N}\p{P}\p{S}]").ok()?;
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        _ => None,
    }
});

/// Whether Go's `unicode.IsPrint` says yes.
pub fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let Some(class) = &*PRINTABLE else { return false };
    let ranges = class.ranges();
    let after = ranges.partition_point(|r| r.start() <= c);
    after > 0 && c <= ranges[after - 1].end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        let check = |text: &str, expected: &str| assert_eq!(Quoted(text).to_string(), expected);
        check("", r#""""#);
        check("plain é ☺ 漢", r#""plain é ☺ 漢""#);
        check("a\"b\\c'd", r#""a\"b\\c'd""#);
        check("\x07\x08\x0c\n\r\t\x0b\0\x1f\x7f", r#""\a\b\f\n\r\t\v\x00\x1f\x7f""#);
        check("\u{a0}\u{200b}\u{feff}\u{2028}\u{e000}", r#""\u00a0\u200b\ufeff\u2028\ue000""#);
        check("\u{10ffff}\u{1f600}\u{301}", "\"\\U0010ffff\u{1f600}\u{301}\"");
        check("\u{fffd}", r#""\ufffd""#);
        assert_eq!(QuotedBytes(b"a\xc5z\n\xe2\x98\xba\xe2\x98").to_string(), r#""a\xc5z\n☺\xe2\x98""#);
    }

    #[test]
    fn characters_are_quoted_as_go_quotes_them() {
        let check = |c: char, expected: &str| assert_eq!(QuotedChar(c).to_string(), expected);
        check('x', "'x'");
        check('\'', r"'\''");
        check('"', "'\"'");
        check('\n', r"'\n'");
        check('\\', r"'\\'");
        check('\u{fffd}', "'\u{fffd}'");
    }
}
