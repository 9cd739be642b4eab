//! Label matchers.

use std::fmt;

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Hir, HirKind};

use crate::labels::is_identifier;
use crate::quote::Quoted;
use crate::re2;

/// How a matcher compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

impl MatchOp {
    /// As PromQL writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// A regex that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct MatcherError {
    /// What the regex compiler says.
    pub message: String,
}

/// One condition on one label. An absent label counts as the empty value.
#[derive(Clone)]
pub struct Matcher {
    op: MatchOp,
    name: String,
    value: String,
    /// For the regex operators only.
    pattern: Option<Pattern>,
}

/// A fully anchored, dot-all regex, with the shapes that need no regex engine recognised.
#[derive(Clone)]
enum Pattern {
    /// One of these values, ascending.
    Set(Vec<String>),
    /// `prefix.*`
    Prefix(String),
    /// `.*suffix`
    Suffix(String),
    /// `.*infix.*`
    Contains(String),
    /// Literals with gaps between them, such as `a.*b|c.+`; any of these, ascending by their heads.
    Globs {
        globs: Vec<Glob>,
        /// The length of every head, if all have the same: then those that may match are searched, not tried one by one.
        head_len: Option<usize>,
    },
    /// `.*`
    Anything,
    /// `.+`
    NonEmpty,
    /// Everything else; `prefix` is a literal every match starts with, maybe empty. `states` estimates the automaton.
    General { prefix: String, regex: Box<Regex>, states: usize },
}

/// Literals with gaps between them: `head(.*literal)…`, the last literal at the value's end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob {
    head: String,
    /// Each gap with the least number of characters it spans and the literal behind it, which may be empty.
    tail: Vec<(usize, String)>,
}

/// Compiled size one regex may reach, and the length of its text; a larger one is refused. Nothing stops the compiler
/// half way: this much it does within 50 ms.
const REGEX_SIZE_LIMIT: usize = 4 << 20;
const REGEX_TEXT_LIMIT: usize = 64 << 10;
/// What a compiled regex holds whatever it says, in states.
const REGEX_BASE_STATES: usize = 300;
/// Most values a regex may list and still be matched as a set.
const SET_LIMIT: usize = 4096;
/// Most alternatives with gaps that are tried one after the other; beyond, an automaton is faster.
const GLOB_LIMIT: usize = 32;

impl Matcher {
    /// Builds a matcher; regexes are anchored at both ends and `.` matches newlines, as in Prometheus 3.
    pub fn new(op: MatchOp, name: impl Into<String>, value: impl Into<String>) -> Result<Self, MatcherError> {
        let (name, value) = (name.into(), value.into());
        let pattern = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(Pattern::new(&value)?),
        };
        Ok(Self { op, name, value, pattern })
    }

    /// Builds an equality matcher.
    pub fn equal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { op: MatchOp::Equal, name: name.into(), value: value.into(), pattern: None }
    }

    /// How it compares.
    pub fn op(&self) -> MatchOp {
        self.op
    }

    /// The label it looks at.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value or regex it compares with.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether a label of this value (empty when absent) satisfies the matcher.
    #[inline]
    pub fn matches(&self, value: &str) -> bool {
        match self.op {
            MatchOp::Equal => self.value == value,
            MatchOp::NotEqual => self.value != value,
            MatchOp::Regex => self.pattern.as_ref().is_some_and(|p| p.matches(value)),
            MatchOp::NotRegex => !self.pattern.as_ref().is_some_and(|p| p.matches(value)),
        }
    }

    /// Whether series without the label satisfy the matcher.
    pub fn matches_empty(&self) -> bool {
        self.matches("")
    }

    /// The values an `=~` matcher lists, ascending, when it is nothing but a list of literals.
    pub fn set_matches(&self) -> Option<&[String]> {
        match (&self.op, &self.pattern) {
            (MatchOp::Regex | MatchOp::NotRegex, Some(Pattern::Set(values))) => Some(values),
            _ => None,
        }
    }

    /// About how much a regex matcher holds: values of its list, or states of its automaton, each some 50 bytes. Whoever
    /// takes many matchers from strangers bounds the sum.
    pub fn regex_cost(&self) -> usize {
        match &self.pattern {
            Some(Pattern::Set(values)) => values.len(),
            Some(Pattern::Globs { globs, .. }) => globs.iter().map(|glob| 1 + glob.tail.len()).sum(),
            Some(Pattern::General { states, .. }) => *states,
            _ => 0,
        }
    }

    /// Literals with one of which every value that the regex matches starts, ascending; none of them starts with another.
    /// A single empty one when there are none.
    pub fn prefixes(&self) -> Vec<&str> {
        match &self.pattern {
            Some(Pattern::Globs { globs, .. }) => {
                let mut prefixes: Vec<&str> = Vec::with_capacity(globs.len());
                for glob in globs {
                    if prefixes.last().is_none_or(|last| !glob.head.starts_with(last)) {
                        prefixes.push(&glob.head);
                    }
                }
                prefixes
            }
            _ => vec![self.prefix()],
        }
    }

    /// A literal every value that the regex matches starts with; empty when there is none.
    pub fn prefix(&self) -> &str {
        match &self.pattern {
            Some(Pattern::Prefix(prefix) | Pattern::General { prefix, .. }) => prefix,
            Some(Pattern::Globs { globs, .. }) => {
                let first = globs.first().map_or("", |glob| glob.head.as_str());
                globs.iter().fold(first, |prefix, glob| common_prefix(prefix, &glob.head))
            }
            _ => "",
        }
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, MatcherError> {
        let refuse = |message: String| MatcherError { message };
        if let Some(values) = listed(text) {
            return Ok(Self::Set(values));
        }
        if text.len() > REGEX_TEXT_LIMIT {
            let why = format!("regex of {} bytes is longer than the limit of {REGEX_TEXT_LIMIT}", text.len());
            return Err(refuse(format!("error parsing regexp: {why}")));
        }
        let text = &re2::translate(text).map_err(|e| refuse(e.to_string()))?;
        let hir = regex_syntax::ParserBuilder::new()
            .dot_matches_new_line(true)
            .nest_limit(250)
            .build()
            .parse(text)
            .map_err(|e| refuse(format!("error parsing regexp: {}", one_line(&e.to_string()))))?;
        if let Some(simple) = Self::simple(&hir) {
            return Ok(simple);
        }
        let regex = RegexBuilder::new(&format!("^(?s:{text})$"))
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|e| refuse(format!("error parsing regexp: {}", one_line(&e.to_string()))))?;
        let prefix = match hir.kind() {
            HirKind::Concat(parts) => parts.first().and_then(literal).unwrap_or_default(),
            _ => String::new(),
        };
        Ok(Self::General { prefix, regex: Box::new(regex), states: REGEX_BASE_STATES + states(&hir) })
    }

    fn simple(hir: &Hir) -> Option<Self> {
        if let Some(mut values) = literal_set(hir) {
            values.sort_unstable();
            values.dedup();
            return Some(Self::Set(values));
        }
        match any_repetition(hir) {
            Some(0) => return Some(Self::Anything),
            Some(1) => return Some(Self::NonEmpty),
            _ => {}
        }
        let globs = globs(hir)?;
        let [Glob { head, tail }] = globs.as_slice() else { return Some(Self::globs(globs)) };
        Some(match tail.as_slice() {
            [(0, end)] if end.is_empty() => Self::Prefix(head.clone()),
            [(0, end)] if head.is_empty() => Self::Suffix(end.clone()),
            [(0, infix), (0, end)] if head.is_empty() && end.is_empty() => Self::Contains(infix.clone()),
            _ => Self::globs(globs),
        })
    }

    fn globs(mut globs: Vec<Glob>) -> Self {
        globs.sort_by(|a, b| a.head.cmp(&b.head));
        let len = globs.first().map(|glob| glob.head.len());
        let head_len = len.filter(|&len| globs.iter().all(|glob| glob.head.len() == len));
        Self::Globs { globs, head_len }
    }

    #[inline]
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Set(values) => values.binary_search_by(|v| v.as_str().cmp(value)).is_ok(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Self::Contains(infix) => value.contains(infix.as_str()),
            Self::Globs { globs, head_len: None } => globs.iter().any(|glob| glob.matches(value)),
            Self::Globs { globs, head_len: Some(len) } => {
                if *len == 0 {
                    return globs.iter().any(|glob| glob.matches(value));
                }
                let Some(head) = value.as_bytes().get(..*len) else { return false };
                let first = globs.partition_point(|glob| glob.head.as_bytes() < head);
                let mut alike = globs[first..].iter().take_while(|glob| glob.head.as_bytes() == head);
                alike.any(|glob| glob.matches(value))
            }
            Self::Anything => true,
            Self::NonEmpty => !value.is_empty(),
            Self::General { prefix, regex, .. } => strip_prefix(value, prefix).is_some() && regex.is_match(value),
        }
    }
}

/// The values of a regex that is nothing but a list of literals, ascending. Such lists have thousands of values, and no
/// parser is needed to tell.
fn listed(text: &str) -> Option<Vec<String>> {
    let inside = ["(?:", "("].iter().find_map(|open| text.strip_prefix(open)?.strip_suffix(')'));
    let (mut values, mut value) = (Vec::new(), String::new());
    let mut chars = inside.unwrap_or(text).chars();
    while let Some(c) = chars.next() {
        match c {
            '|' => values.push(std::mem::take(&mut value)),
            '\\' => value.push(chars.next().filter(char::is_ascii_punctuation)?),
            '.' | '^' | '$' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' => return None,
            c => value.push(c),
        }
    }
    values.push(value);
    values.sort_unstable();
    values.dedup();
    Some(values)
}

impl Glob {
    fn literal(text: &str) -> Self {
        Self { head: text.to_owned(), tail: Vec::new() }
    }

    /// This one, then `next`.
    fn then(&self, next: &Self) -> Self {
        let mut joined = self.clone();
        joined.tail.last_mut().map_or(&mut joined.head, |(_, literal)| literal).push_str(&next.head);
        for (gap, literal) in &next.tail {
            match joined.tail.last_mut() {
                // Two gaps with nothing between them are one.
                Some((before, between)) if between.is_empty() => {
                    *before += gap;
                    *between = literal.clone();
                }
                _ => joined.tail.push((*gap, literal.clone())),
            }
        }
        joined
    }

    /// Each literal where it first occurs behind the one before: if any places fit, these do.
    fn matches(&self, value: &str) -> bool {
        let Some(mut rest) = strip_prefix(value, &self.head) else { return false };
        let Some(((last_gap, last), middle)) = self.tail.split_last() else { return rest.is_empty() };
        for (gap, literal) in middle {
            let Some(behind) = behind_gap(rest, *gap) else { return false };
            let Some(at) = behind.find(literal.as_str()) else { return false };
            rest = &behind[at + literal.len()..];
        }
        behind_gap(rest, *last_gap).is_some_and(|behind| last.is_empty() || behind.ends_with(last.as_str()))
    }
}

/// `text` without `prefix`, if it begins with it.
///
/// Empty ones are common and apart: a string without memory of its own has an address where there is none, and comparing
/// no bytes there costs some processors a hundred nanoseconds.
#[inline]
fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(text) } else { text.strip_prefix(prefix) }
}

/// `text` without its first `gap` characters, if it has so many.
fn behind_gap(text: &str, gap: usize) -> Option<&str> {
    let mut chars = text.chars();
    (0..gap).all(|_| chars.next().is_some()).then_some(chars.as_str())
}

fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map(|((at, _), _)| at);
    &a[..same.unwrap_or_else(|| a.len().min(b.len()))]
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// An estimate of the states of an expression's automaton.
fn states(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(l) => l.0.len(),
        HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => 2 * class.ranges().len(),
        HirKind::Class(regex_syntax::hir::Class::Bytes(class)) => class.ranges().len(),
        HirKind::Repetition(r) => {
            states(&r.sub).saturating_mul(r.max.unwrap_or(r.min).max(1) as usize).saturating_add(1)
        }
        HirKind::Capture(c) => states(&c.sub).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(0, |sum, part| states(part).saturating_add(sum))
        }
    }
}

/// The text of a (captured) literal.
fn literal(hir: &Hir) -> Option<String> {
    match hir.kind() {
        HirKind::Literal(l) => String::from_utf8(l.0.to_vec()).ok(),
        HirKind::Capture(c) => literal(&c.sub),
        _ => None,
    }
}

/// `Some(n)` for "n or more of any character".
fn any_repetition(hir: &Hir) -> Option<u32> {
    match hir.kind() {
        HirKind::Capture(c) => any_repetition(&c.sub),
        HirKind::Repetition(r) if r.max.is_none() => {
            let any = Hir::dot(regex_syntax::hir::Dot::AnyChar);
            (*r.sub == any).then_some(r.min)
        }
        _ => None,
    }
}

/// The expression as a few alternatives of literals with gaps, when it is nothing else.
fn globs(hir: &Hir) -> Option<Vec<Glob>> {
    if let Some(least) = any_repetition(hir) {
        return Some(vec![Glob { head: String::new(), tail: vec![(least as usize, String::new())] }]);
    }
    let globs = match hir.kind() {
        HirKind::Capture(capture) => globs(&capture.sub)?,
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(globs(part)?);
                if all.len() > GLOB_LIMIT {
                    return None;
                }
            }
            all
        }
        HirKind::Concat(parts) => {
            let mut all = vec![Glob::literal("")];
            for part in parts {
                let tails = globs(part)?;
                if all.len() * tails.len() > GLOB_LIMIT {
                    return None;
                }
                all = all.iter().flat_map(|head| tails.iter().map(|tail| head.then(tail))).collect();
            }
            all
        }
        _ => literal_set(hir)?.iter().map(|text| Glob::literal(text)).collect(),
    };
    (globs.len() <= GLOB_LIMIT).then_some(globs)
}

/// Every string the expression matches, when that is a short list.
fn literal_set(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(_) => Some(vec![literal(hir)?]),
        HirKind::Capture(c) => literal_set(&c.sub),
        HirKind::Class(class) => {
            let regex_syntax::hir::Class::Unicode(class) = class else { return None };
            let count: usize = class.iter().map(|r| r.end() as usize - r.start() as usize + 1).sum();
            if count > 64 {
                return None;
            }
            Some(class.iter().flat_map(|r| (r.start()..=r.end()).map(String::from)).collect())
        }
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(literal_set(part)?);
                if all.len() > SET_LIMIT {
                    return None;
                }
            }
            Some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![String::new()];
            for part in parts {
                let tails = literal_set(part)?;
                if all.len().saturating_mul(tails.len()) > SET_LIMIT {
                    return None;
                }
                all = all.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect();
            }
            Some(all)
        }
        HirKind::Repetition(_) | HirKind::Look(_) => None,
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (self.op, &self.name, &self.value) == (other.op, &other.name, &other.value)
    }
}

impl Eq for Matcher {}

impl std::hash::Hash for Matcher {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.op, &self.name, &self.value).hash(state);
    }
}

/// As PromQL writes it; a name that is no plain identifier stands in quotes.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_identifier(&self.name) {
            f.write_str(&self.name)?
        } else {
            write!(f, "{}", Quoted(&self.name))?
        }
        write!(f, "{}{}", self.op.as_str(), Quoted(&self.value))
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(regex: &str, yes: &[&str], no: &[&str]) {
        let matcher = Matcher::new(MatchOp::Regex, "l", regex).unwrap();
        for value in yes {
            assert!(matcher.matches(value), "{regex} should match {value:?}");
        }
        for value in no {
            assert!(!matcher.matches(value), "{regex} should not match {value:?}");
        }
    }

    #[test]
    fn regexes_are_anchored_and_dot_all() {
        check("a.c", &["abc", "a\nc"], &["abcd", "xabc"]);
        check("", &[""], &["a"]);
        check(".*", &["", "x", "a\nb"], &[]);
        check(".+", &["x"], &[""]);
        check("a|b|cd", &["a", "b", "cd"], &["", "c", "ab"]);
        check("(foo|bar)baz", &["foobaz", "barbaz"], &["foo", "baz"]);
        check("node.*", &["node", "node_x\n"], &["anode"]);
        check(".*_total", &["_total", "x_total"], &["x_totals"]);
        check(".*err.*", &["err", "an error"], &["er"]);
        check("(?i)abc", &["ABC", "abc"], &["abd"]);
        check("a{2,3}", &["aa", "aaa"], &["a", "aaaa"]);
        check("[0-9]+x", &["1x", "22x"], &["x"]);
    }

    #[test]
    fn shapes_are_recognised() {
        let set = Matcher::new(MatchOp::Regex, "l", "b|a|a[12]").unwrap();
        assert_eq!(set.set_matches().unwrap(), ["a", "a1", "a2", "b"]);
        assert_eq!(Matcher::new(MatchOp::Regex, "l", "foo[0-9]+").unwrap().prefix(), "foo");
        let globs = Matcher::new(MatchOp::Regex, "l", "foo-.*-a|fo-.+|foé.*|foo-bar.*").unwrap();
        assert_eq!((globs.prefix(), globs.prefixes()), ("fo", vec!["fo-", "foo-", "foé"]));
        let is_glob = |regex: &str| {
            let matcher = Matcher::new(MatchOp::Regex, "l", regex).unwrap();
            matches!(matcher.pattern, Some(Pattern::Globs { .. }))
        };
        for regex in ["a.*b", "a.+", ".+a", ".*a.*b.*", "a.*|b.*", "(x|y).*z", "a[0-9]b.*", "app-1.*|app-2.*", ".*.+a"]
        {
            assert!(is_glob(regex), "{regex}");
        }
        for regex in ["[0-9]+", "a.b", "a.*[a-z][a-z]", "a{2,}.*", "(?i)abcdef.*"] {
            assert!(!is_glob(regex), "{regex}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn shapes_match_what_the_regex_matches(
            regex in r"((a|b|é|ab|\.\*|\.\+|\.|\(a\|b\)|\[ab\]|\(a\.\*\|b\)|\|){1,6})",
            values in proptest::collection::vec("[abé\n]{0,7}", 20),
        ) {
            let matcher = Matcher::new(MatchOp::Regex, "l", regex.clone());
            let full = Regex::new(&format!("^(?s:{regex})$"));
            prop_assert_eq!(matcher.is_ok(), full.is_ok(), "{}", regex);
            if let (Ok(matcher), Ok(full)) = (matcher, full) {
                for value in values {
                    prop_assert_eq!(matcher.matches(&value), full.is_match(&value), "{} {:?}", regex, value);
                    prop_assert!(!matcher.matches(&value) || value.starts_with(matcher.prefix()));
                    let prefixes = matcher.prefixes();
                    let begun = prefixes.iter().filter(|prefix| value.starts_with(*prefix)).count();
                    prop_assert!(begun == 1 || begun == 0 && !matcher.matches(&value), "{:?}", prefixes);
                }
            }
        }
    }

    #[test]
    fn regexes_have_the_syntax_of_re2() {
        check(r"\d+", &["12"], &["\u{664}", "a"]);
        check(r"\w\b.*", &["a", "a é"], &["é", "ab"]);
        check("a{b|\\Qc.\\E", &["a{b", "c."], &["cd"]);
        check("[[]+", &["[["], &["]"]);
        check("(?U)a+.*", &["aa"], &["b"]);
        check("(?-s)a.b", &["axb"], &["a\nb"]);
        check("(?i:é)a", &["Éa"], &["éA"]);
        check(r"(?m)a$\n^b", &["a\nb"], &["ab"]);
        assert!(Matcher::new(MatchOp::Regex, "l", "(?x)a").is_err());
        assert!(Matcher::new(MatchOp::Regex, "l", "a**").is_err());
    }

    #[test]
    fn display_quotes_as_go_does() {
        assert_eq!(Matcher::equal("a", "x\u{7f}\"").to_string(), r#"a="x\x7f\"""#);
        assert_eq!(Matcher::new(MatchOp::NotRegex, "a.b", "c|d").unwrap().to_string(), r#""a.b"!~"c|d""#);
        assert_eq!(Matcher::equal("", "").to_string(), r#"""="""#);
    }

    #[test]
    fn regexes_tell_what_they_hold() {
        let cost = |regex: &str| Matcher::new(MatchOp::Regex, "l", regex).unwrap().regex_cost();
        assert_eq!((cost(".*"), cost("a.*"), cost("a|b|c")), (0, 0, 3));
        assert_eq!(cost("[a-p][a-p][a-p]"), 4096);
        assert!(cost("(a|b){500}x+") >= 1000 && cost(r"\pL{10}x+") > 10_000);
        assert_eq!(Matcher::equal("l", "a|b").regex_cost(), 0);
    }

    #[test]
    fn hostile_regexes_are_refused() {
        assert!(Matcher::new(MatchOp::Regex, "l", "(").is_err());
        assert!(Matcher::new(MatchOp::Regex, "l", "((a{1000}){1000}){1000}").is_err());
        assert!(Matcher::new(MatchOp::Regex, "l", "(".repeat(5000)).is_err());
        let long = Matcher::new(MatchOp::Regex, "l", "a?b".repeat(30_000)).unwrap_err().message;
        assert!(long.contains("90000 bytes is longer than the limit of 65536"), "{long}");
    }

    #[test]
    fn lists_of_literals_need_no_parser_whatever_their_length() {
        let hosts: Vec<String> = (0..20_000).map(|n| format!(r"host-{n}\.example\.com:9090")).collect();
        for pattern in [hosts.join("|"), format!("({})", hosts.join("|")), format!("(?:{})", hosts.join("|"))] {
            let matcher = Matcher::new(MatchOp::Regex, "l", pattern).unwrap();
            assert_eq!(matcher.set_matches().map(<[String]>::len), Some(20_000));
            assert!(matcher.matches("host-19999.example.com:9090") && !matcher.matches("host-1xexample.com:9090"));
        }
        for (text, values) in [("", vec![""]), ("|a", vec!["", "a"]), ("()", vec![""]), (r"b\||a\(", vec!["a(", "b|"])]
        {
            assert_eq!(listed(text), Some(values.into_iter().map(str::to_owned).collect()), "{text}");
        }
        for text in ["(", "a)", "(a)|(b)", r"(a\)", r"\d", r"a\", "(?i:a)", "a{2}", "[ab]", "(?P<n>a)", "a.b"] {
            assert_eq!(listed(text), None, "{text}");
        }
    }
}
