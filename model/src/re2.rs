//! Regexes are written in the syntax of RE2, as Go has it; this module writes them in that of the `regex` crate.
//!
//! What differs: here `\d`, `\w`, `\s` and `\b` know ASCII only; `\Q...\E` quotes; octal escapes exist; a brace that
//! begins no repetition, and `[`, `&&`, `--` inside a class, are plain characters; repetitions do not stack and repeat
//! at most 1000 times; the flags are `i`, `m`, `s` and `U`. Errors have Go's wording.

use std::iter::Peekable;
use std::str::CharIndices;

/// Most repetitions, those of repeated repetitions multiplied.
const MAX_REPEAT: u32 = 1000;

/// Why a text is no regex; prints as Go prints it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {code}: `{text}`")]
pub struct Re2Error {
    /// What is wrong.
    pub code: &'static str,
    /// The part that is wrong.
    pub text: String,
}

/// `pattern` in the syntax of the `regex` crate.
pub fn translate(pattern: &str) -> Result<String, Re2Error> {
    let mut translator = Translator {
        pattern,
        chars: pattern.char_indices().peekable(),
        out: String::with_capacity(pattern.len() + 8),
        groups: Vec::new(),
        atom: None,
        largest: 0,
        last_repeat: None,
        names: Vec::new(),
        flags: None,
    };
    translator.run()?;
    Ok(translator.out)
}

struct Translator<'a> {
    pattern: &'a str,
    chars: Peekable<CharIndices<'a>>,
    out: String,
    /// Of each open group, the largest repetition among what precedes it in the group around it.
    groups: Vec<u32>,
    /// How often what a repetition operator would apply to is repeated inside; `None` if there is nothing.
    atom: Option<u32>,
    /// The largest repetition in the current group so far.
    largest: u32,
    /// Where the repetition operator right before this place began.
    last_repeat: Option<usize>,
    /// Names of groups so far.
    names: Vec<&'a str>,
    /// Where in `out` the flags right before this place begin.
    flags: Option<usize>,
}

/// What an escape stands for.
enum Escape {
    Char(char),
    /// Part of a class, and whether it stands for everything else.
    Class(&'static str, bool),
    /// `\p{...}`
    Property(String),
}

impl<'a> Translator<'a> {
    fn run(&mut self) -> Result<(), Re2Error> {
        while let Some((at, c)) = self.chars.next() {
            let last_repeat = self.last_repeat.take();
            let flags = self.flags.take();
            match c {
                '*' | '+' | '?' => self.repeat(at, 1, last_repeat, flags)?,
                '{' => match self.counted(at)? {
                    Some(times) => self.repeat(at, times, last_repeat, flags)?,
                    None => self.literal('{'),
                },
                '(' => self.group(at, flags)?,
                ')' => {
                    let Some(before) = self.groups.pop() else { return self.fail("unexpected )", self.pattern) };
                    self.out.push(')');
                    self.atom = Some(self.largest.max(1));
                    self.largest = self.largest.max(before);
                }
                '|' => {
                    self.out.push('|');
                    self.atom = None;
                }
                '[' => self.class(at)?,
                '\\' => self.escape_outside(at)?,
                '.' | '^' | '$' => {
                    self.out.push(c);
                    self.atom = Some(1);
                }
                c => self.literal(c),
            }
        }
        if self.groups.is_empty() { Ok(()) } else { self.fail("missing closing )", self.pattern) }
    }

    fn fail<T>(&self, code: &'static str, text: &str) -> Result<T, Re2Error> {
        Err(Re2Error { code, text: text.to_owned() })
    }

    /// Where the next character stands.
    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.pattern.len(), |(at, _)| *at)
    }

    fn accept(&mut self, c: char) -> bool {
        self.chars.next_if(|(_, next)| *next == c).is_some()
    }

    fn skip_to(&mut self, at: usize) {
        while self.chars.next_if(|(next, _)| *next < at).is_some() {}
    }

    fn literal(&mut self, c: char) {
        push_escaped(&mut self.out, c);
        self.atom = Some(1);
    }

    /// A repetition operator of up to `times` which began at `at` and is consumed but for a `?` after it. It applies to
    /// what stands before the `flags`, if there are any in between.
    fn repeat(
        &mut self,
        at: usize,
        times: u32,
        last_repeat: Option<usize>,
        flags: Option<usize>,
    ) -> Result<(), Re2Error> {
        let operator_end = self.at();
        self.accept('?');
        let end = self.at();
        if let Some(first) = last_repeat {
            return self.fail("invalid nested repetition operator", &self.pattern[first..end]);
        }
        let Some(inside) = self.atom else {
            return self.fail("missing argument to repetition operator", &self.pattern[at..end]);
        };
        let total = inside.saturating_mul(times);
        if times > 1 && total > MAX_REPEAT {
            return self.fail("invalid repeat count", &self.pattern[at..operator_end]);
        }
        let flags = flags.map(|from| self.out.split_off(from)).unwrap_or_default();
        self.out.push_str(&self.pattern[at..end]);
        self.out.push_str(&flags);
        self.atom = Some(total.max(1));
        self.largest = self.largest.max(total);
        self.last_repeat = Some(at);
        Ok(())
    }

    /// `{n}`, `{n,}` or `{n,m}`, whose brace at `at` is consumed: the largest count. `None` if it is none of them; then
    /// nothing more is consumed.
    fn counted(&mut self, at: usize) -> Result<Option<u32>, Re2Error> {
        let rest = &self.pattern[at + 1..];
        let Some(end) = rest.find('}') else { return Ok(None) };
        let (min, max) = match rest[..end].split_once(',') {
            None => (&rest[..end], &rest[..end]),
            Some((min, "")) => (min, min),
            Some((min, max)) => (min, max),
        };
        let is_count =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s.len() == 1 || !s.starts_with('0'));
        if !is_count(min) || !is_count(max) {
            return Ok(None);
        }
        let text = &self.pattern[at..at + 1 + end + 1];
        let count = |s: &str| s.parse().unwrap_or(u32::MAX);
        let (min, max): (u32, u32) = (count(min), count(max));
        if min > max || max > MAX_REPEAT {
            return self.fail("invalid repeat count", text);
        }
        self.skip_to(at + text.len());
        Ok(Some(max))
    }

    /// A group or flags, whose parenthesis at `at` is consumed; other flags right before them are at `flags_before`.
    fn group(&mut self, at: usize, flags_before: Option<usize>) -> Result<(), Re2Error> {
        if !self.accept('?') {
            self.out.push('(');
            self.open();
            return Ok(());
        }
        let rest = &self.pattern[at + 2..];
        if rest.starts_with("P<") || rest.starts_with('<') {
            let name_at = at + 2 + if rest.starts_with('P') { 2 } else { 1 };
            let Some(length) = self.pattern[name_at..].find('>') else {
                return self.fail("invalid named capture", &self.pattern[at..]);
            };
            let name = &self.pattern[name_at..name_at + length];
            if name.is_empty() || !name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
                return self.fail("invalid named capture", &self.pattern[at..=name_at + length]);
            }
            // The regex crate takes fewer names; without one a group still groups.
            if name.starts_with(|c: char| c.is_ascii_digit()) || self.names.contains(&name) {
                self.out.push('(');
            } else {
                self.out.push_str("(?P<");
                self.out.push_str(name);
                self.out.push('>');
                self.names.push(name);
            }
            self.skip_to(name_at + length + 1);
            self.open();
            return Ok(());
        }
        let (mut negative, mut flag_seen) = (false, false);
        let mut flags = String::new();
        loop {
            let next = self.chars.next();
            match next.map(|(_, c)| c) {
                Some(c @ ('i' | 'm' | 's' | 'U')) => {
                    flag_seen = true;
                    flags.push(c);
                }
                Some('-') if !negative => {
                    negative = true;
                    flag_seen = false;
                    flags.push('-');
                }
                Some(c @ (':' | ')')) if !negative || flag_seen => {
                    let from = self.out.len();
                    if c == ':' || !flags.is_empty() {
                        self.out.push_str("(?");
                        self.out.push_str(&dedup_flags(&flags));
                        self.out.push(c);
                    }
                    if c == ':' {
                        self.open();
                    } else {
                        self.flags = flags_before.or(Some(from));
                    }
                    return Ok(());
                }
                _ => {
                    let end = self.at();
                    return self.fail("invalid or unsupported Perl syntax", &self.pattern[at..end]);
                }
            }
        }
    }

    fn open(&mut self) {
        self.groups.push(self.largest);
        self.largest = 0;
        self.atom = None;
    }

    fn escape_outside(&mut self, at: usize) -> Result<(), Re2Error> {
        let assertion = match self.chars.peek().map(|(_, c)| *c) {
            Some('A') => r"\A",
            Some('z') => r"\z",
            Some('b') => r"(?-u:\b)",
            Some('B') => r"(?-u:\B)",
            Some('Q') => {
                self.quoted(at + 2);
                return Ok(());
            }
            _ => "",
        };
        if !assertion.is_empty() {
            self.chars.next();
            self.out.push_str(assertion);
            self.atom = Some(1);
            return Ok(());
        }
        match self.escape(at)? {
            Escape::Char(c) => self.literal(c),
            Escape::Class(class, negated) => {
                self.out.push_str(if negated { "[^" } else { "[" });
                self.out.push_str(class);
                self.out.push(']');
            }
            Escape::Property(text) => self.out.push_str(&text),
        }
        self.atom = Some(1);
        Ok(())
    }

    /// Plain text from `at` to `\E` or the end.
    fn quoted(&mut self, at: usize) {
        let rest = &self.pattern[at..];
        let (text, end) = match rest.find("\\E") {
            Some(length) => (&rest[..length], at + length + 2),
            None => (rest, self.pattern.len()),
        };
        text.chars().for_each(|c| self.literal(c));
        self.skip_to(end);
    }

    /// What the escape whose backslash at `at` is consumed stands for.
    fn escape(&mut self, at: usize) -> Result<Escape, Re2Error> {
        let Some((_, c)) = self.chars.next() else {
            return self.fail("trailing backslash at end of expression", "");
        };
        Ok(match c {
            'd' => Escape::Class("0-9", false),
            'D' => Escape::Class("0-9", true),
            's' => Escape::Class(r"\t\n\x0C\r ", false),
            'S' => Escape::Class(r"\t\n\x0C\r ", true),
            'w' => Escape::Class("0-9A-Za-z_", false),
            'W' => Escape::Class("0-9A-Za-z_", true),
            'p' | 'P' => Escape::Property(self.property(at, c == 'P')?),
            _ => Escape::Char(self.escaped_char(at, c)?),
        })
    }

    fn escaped_char(&mut self, at: usize, c: char) -> Result<char, Re2Error> {
        let value = match c {
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            'x' => self.hex(),
            '0' => self.octal(0),
            // A digit alone would be a reference to a group.
            '1'..='7' if self.chars.peek().is_some_and(|(_, c)| c.is_digit(8)) => {
                self.octal(c.to_digit(8).unwrap_or(0))
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        };
        match value {
            Some(c) => Ok(c),
            None => {
                let end = self.at();
                self.fail("invalid escape sequence", &self.pattern[at..end])
            }
        }
    }

    fn octal(&mut self, first: u32) -> Option<char> {
        let mut value = first;
        for _ in 0..2 {
            let Some(digit) = self.chars.peek().and_then(|(_, c)| c.to_digit(8)) else { break };
            self.chars.next();
            value = value * 8 + digit;
        }
        char::from_u32(value)
    }

    /// The digits after `\x`.
    fn hex(&mut self) -> Option<char> {
        if !self.accept('{') {
            let high = self.chars.next()?.1.to_digit(16)?;
            let low = self.chars.next()?.1.to_digit(16)?;
            return char::from_u32(high * 16 + low);
        }
        let mut value = 0_u32;
        let mut digits = 0;
        while !self.accept('}') {
            value = value * 16 + self.chars.next()?.1.to_digit(16)?;
            digits += 1;
            if value > u32::from(char::MAX) {
                return None;
            }
        }
        if digits == 0 { None } else { char::from_u32(value) }
    }

    /// `\pN` or `\p{Name}`, of which `\p` at `at` is consumed.
    fn property(&mut self, at: usize, negated: bool) -> Result<String, Re2Error> {
        let braced = self.accept('{');
        let name_at = self.at();
        if braced {
            while self.chars.next_if(|(_, c)| *c != '}').is_some() {}
        } else {
            self.chars.next();
        }
        let name_end = self.at();
        let closed = !braced || self.accept('}');
        let end = self.at();
        let name = &self.pattern[name_at..name_end];
        let (name, inverted) = match name.strip_prefix('^') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let text = format!("\\{}{{{name}}}", if negated != inverted { 'P' } else { 'p' });
        let plain = !name.is_empty() && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
        if !closed || !plain || regex_syntax::parse(&text).is_err() {
            return self.fail("invalid character class range", &self.pattern[at..end]);
        }
        Ok(text)
    }

    /// A class in brackets, the opening one at `at` consumed.
    fn class(&mut self, at: usize) -> Result<(), Re2Error> {
        self.out.push('[');
        if self.accept('^') {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let item_at = self.at();
            if !first && self.accept(']') {
                break;
            }
            first = false;
            if self.posix_class(item_at)? {
                continue;
            }
            let Some((_, c)) = self.chars.next() else {
                return self.fail("missing closing ]", &self.pattern[at..]);
            };
            let low = match c {
                '\\' => match self.escape(item_at)? {
                    Escape::Char(c) => c,
                    Escape::Class(class, negated) => {
                        self.out.push_str(if negated { "[^" } else { "" });
                        self.out.push_str(class);
                        self.out.push_str(if negated { "]" } else { "" });
                        continue;
                    }
                    Escape::Property(text) => {
                        self.out.push_str(&text);
                        continue;
                    }
                },
                c => c,
            };
            let high = self.range_end(at)?;
            push_escaped(&mut self.out, low);
            if let Some(high) = high {
                if high < low {
                    let end = self.at();
                    return self.fail("invalid character class range", &self.pattern[item_at..end]);
                }
                self.out.push('-');
                push_escaped(&mut self.out, high);
            }
        }
        self.out.push(']');
        self.atom = Some(1);
        Ok(())
    }

    /// The end of a range, if a hyphen and something other than the closing bracket follow.
    fn range_end(&mut self, class_at: usize) -> Result<Option<char>, Re2Error> {
        let at = self.at();
        let rest = &self.pattern[at..];
        if !rest.starts_with('-') || rest.len() < 2 || rest.starts_with("-]") {
            return Ok(None);
        }
        self.chars.next();
        let at = self.at();
        match self.chars.next() {
            None => self.fail("missing closing ]", &self.pattern[class_at..]),
            Some((_, '\\')) => match self.chars.next() {
                None => self.fail("trailing backslash at end of expression", ""),
                Some((_, c)) => self.escaped_char(at, c).map(Some),
            },
            Some((_, c)) => Ok(Some(c)),
        }
    }

    /// `[:alpha:]` or its like at `at`, if there is one.
    fn posix_class(&mut self, at: usize) -> Result<bool, Re2Error> {
        let rest = &self.pattern[at..];
        if !rest.starts_with("[:") {
            return Ok(false);
        }
        let Some(length) = rest[2..].find(":]") else { return Ok(false) };
        let text = &rest[..length + 4];
        let name = rest[2..length + 2].trim_start_matches('^');
        let names = [
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
            "word", "xdigit",
        ];
        if !names.contains(&name) || rest[2..].starts_with("^^") {
            return self.fail("invalid character class range", text);
        }
        self.out.push_str(text);
        self.skip_to(at + text.len());
        Ok(true)
    }
}

/// Appends `c` so that it means itself, inside a class and outside.
fn push_escaped(out: &mut String, c: char) {
    if regex_syntax::is_meta_character(c) {
        out.push('\\');
    }
    out.push(c);
}

/// Flags of which each occurs once, the last time counting: the `regex` crate refuses repetitions.
fn dedup_flags(flags: &str) -> String {
    let (on, off) = flags.split_once('-').unwrap_or((flags, ""));
    let once = |flags: &str, except: &str| -> String {
        ['i', 'm', 's', 'U'].into_iter().filter(|f| flags.contains(*f) && !except.contains(*f)).collect()
    };
    let (on, off) = (once(on, off), once(off, ""));
    if off.is_empty() { on } else { format!("{on}-{off}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, translated: &str) {
        assert_eq!(translate(pattern).as_deref(), Ok(translated), "{pattern}");
        regex::Regex::new(translated).unwrap();
    }

    #[test]
    fn what_differs_is_rewritten() {
        check("a.*b|^c$", "a.*b|^c$");
        check(r"\d\D\w\s", r"[0-9][^0-9][0-9A-Za-z_][\t\n\x0C\r ]");
        check(r"[\d_\W]", r"[0-9_[^0-9A-Za-z_]]");
        check(r"\ba\B", r"(?-u:\b)a(?-u:\B)");
        check(r"\Qa.b\E+\Q[", r"a\.b+\[");
        check(r"\0\07\101\x41\x{263a}\-\_\<", "\0\x07AA☺\\-_<");
        check("a{2}b{2,}c{2,3}?", "a{2}b{2,}c{2,3}?");
        check("a{b{,2}c{1d{01}", r"a\{b\{,2\}c\{1d\{01\}");
        check("[[a&&+--c~]", r"[\[a\&\&\+-\-c\~]");
        check("[]a][^]a-]", r"[\]a][^\]a\-]");
        check("[[:alpha:][:^digit:]]", "[[:alpha:][:^digit:]]");
        check(r"\pL\p{Greek}\P{^Lu}[\pN]", r"\p{L}\p{Greek}\p{Lu}[\p{N}]");
        check("(?i)a(?s-m:b)(?:c)(?P<d>e)(?<f>g)(?)", "(?i)a(?s-m:b)(?:c)(?P<d>e)(?P<f>g)");
        check("(?P<1>a)(?P<x>b)(?P<x>c)", "(a)(?P<x>b)(c)");
        check("(?ii-s)a", "(?i-s)a");
        check("a(?i)(?m)*b", "a*(?i)(?m)b");
    }

    #[test]
    fn errors_have_the_wording_of_go() {
        let check = |pattern: &str, message: &str| {
            let expected = format!("error parsing regexp: {message}");
            assert_eq!(translate(pattern).unwrap_err().to_string(), expected, "{pattern}");
        };
        check("a(b", "missing closing ): `a(b`");
        check("a)b", "unexpected ): `a)b`");
        check("a[b", "missing closing ]: `[b`");
        check("*", "missing argument to repetition operator: `*`");
        check("a|+?", "missing argument to repetition operator: `+?`");
        check("(?i", "invalid or unsupported Perl syntax: `(?i`");
        check("a**", "invalid nested repetition operator: `**`");
        check("a+?{2}b", "invalid nested repetition operator: `+?{2}`");
        check("a{1001}", "invalid repeat count: `{1001}`");
        check("a{2,1}", "invalid repeat count: `{2,1}`");
        check("(a{100}){11}", "invalid repeat count: `{11}`");
        check(r"\y", r"invalid escape sequence: `\y`");
        check(r"\8", r"invalid escape sequence: `\8`");
        check(r"\1", r"invalid escape sequence: `\1`");
        check(r"\u263a", r"invalid escape sequence: `\u`");
        check("a\\", "trailing backslash at end of expression: ``");
        check("(?=a)", "invalid or unsupported Perl syntax: `(?=`");
        check("(?x)a", "invalid or unsupported Perl syntax: `(?x`");
        check("(?P<a", "invalid named capture: `(?P<a`");
        check("[b-a]", "invalid character class range: `b-a`");
        check("[[:nope:]]", "invalid character class range: `[:nope:]`");
        check(r"\p{Nope}", r"invalid character class range: `\p{Nope}`");
    }
}
