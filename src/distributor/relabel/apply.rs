//! What a rule does to the labels of a series.

use std::fmt::Write;

use md5::{Digest, Md5};
use regex::CaptureLocations;
use skald_proto::remote_write::is_legacy_label_name;

use super::MAX_SERIES_BYTES;
use super::labels::Working;
use super::rules::{Action, Replace, Rule};

/// Most labels of a series while rules are applied; each `labelmap` may double them.
const MAX_LABELS: usize = 1024;

/// What becomes of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    Drop,
    /// The rules make too much of it.
    TooLarge,
}

/// What a rule made of the last values it saw. Neighbours in a write mostly share what rules look at (job, instance, metric),
/// and comparing is cheaper than matching.
#[derive(Debug, Default)]
pub(super) struct Memo {
    seen: Option<String>,
    matched: bool,
    target: String,
    replacement: String,
    groups: Option<CaptureLocations>,
}

impl Memo {
    pub(super) fn new(rule: &Rule) -> Self {
        let groups = match &rule.action {
            Action::Replace(replace) => replace.groups.as_ref().map(|regex| regex.capture_locations()),
            _ => None,
        };
        Self { groups, ..Self::default() }
    }

    /// Whether `value` is not what was seen last; it is from now on.
    fn is_new(&mut self, value: &str) -> bool {
        match &mut self.seen {
            Some(seen) if seen == value => false,
            Some(seen) => {
                seen.clear();
                seen.push_str(value);
                true
            }
            None => {
                self.seen = Some(value.to_owned());
                true
            }
        }
    }
}

/// Applies a rule; `value` is a buffer.
pub(super) fn apply<'s>(
    rule: &'s Rule,
    memo: &mut Memo,
    legacy_names: bool,
    labels: &mut Working<'s>,
    value: &mut String,
) -> Verdict {
    value.clear();
    for (i, source) in rule.sources().iter().enumerate() {
        if i > 0 {
            value.push_str(rule.separator());
        }
        value.push_str(labels.get(source));
    }
    let keep_if = |keep: bool| if keep { Verdict::Keep } else { Verdict::Drop };
    match &rule.action {
        Action::Keep(matcher) | Action::Drop(matcher) => {
            if memo.is_new(value) {
                memo.matched = matcher.matches(value);
            }
            return keep_if(memo.matched == matches!(rule.action, Action::Keep(_)));
        }
        Action::KeepEqual => return keep_if(labels.get(rule.target()) == value),
        Action::DropEqual => return keep_if(labels.get(rule.target()) != value),
        Action::Replace(replace) => {
            if memo.is_new(value) && !expand(replace, memo, legacy_names, value) {
                // What it says of this value is not known.
                memo.seen = None;
                return Verdict::TooLarge;
            }
            if memo.matched {
                match replace.target.is_plain() {
                    true => labels.set_made(rule.target(), |made| made.push_str(&memo.replacement)),
                    false => labels.set_both(&memo.target, &memo.replacement),
                }
            }
        }
        Action::HashMod(modulus) => {
            if memo.is_new(value) {
                let digest = Md5::digest(value.as_bytes());
                let low = digest.iter().skip(8).fold(0, |number, byte| (number << 8) | u64::from(*byte));
                memo.replacement.clear();
                let _ = write!(memo.replacement, "{}", low % modulus);
            }
            labels.set_made(rule.target(), |made| made.push_str(&memo.replacement));
        }
        Action::LabelMap(replace) => {
            let mut fits = true;
            labels.copy_all(|name, mapped| match names(replace, name, mapped) {
                Some(copies) => copies,
                None => {
                    fits = false;
                    false
                }
            });
            if !fits || labels.len() > MAX_LABELS {
                return Verdict::TooLarge;
            }
        }
        Action::LabelDrop(matcher) => labels.retain(|name| !matcher.matches(name)),
        Action::LabelKeep(matcher) => labels.retain(|name| matcher.matches(name)),
        Action::Lowercase => labels.set_made(rule.target(), |made| made.extend(value.chars().map(lower))),
        Action::Uppercase => labels.set_made(rule.target(), |made| made.extend(value.chars().map(upper))),
    }
    if labels.made_bytes() > MAX_SERIES_BYTES { Verdict::TooLarge } else { Verdict::Keep }
}

/// Remembers which label is set to what, if any; false when that is too large.
fn expand(replace: &Replace, memo: &mut Memo, legacy_names: bool, value: &str) -> bool {
    memo.matched = false;
    memo.target.clear();
    memo.replacement.clear();
    let fits = match (&replace.groups, &mut memo.groups) {
        (Some(regex), Some(groups)) => {
            if regex.captures_read(groups, value).is_none() {
                return true;
            }
            let group = |number| groups.get(number).map_or("", |(start, end)| &value[start..end]);
            replace.target.expand(value.len(), group, MAX_SERIES_BYTES, &mut memo.target)
                && replace.replacement.expand(value.len(), group, MAX_SERIES_BYTES, &mut memo.replacement)
        }
        _ => {
            if !replace.matcher.matches(value) {
                return true;
            }
            replace.target.expand(value.len(), |_| value, MAX_SERIES_BYTES, &mut memo.target)
                && replace.replacement.expand(value.len(), |_| value, MAX_SERIES_BYTES, &mut memo.replacement)
        }
    };
    let target = memo.target.as_bytes();
    memo.matched = if legacy_names { is_legacy_label_name(target) } else { !target.is_empty() };
    fits
}

/// Appends the name that a label is copied to; whether it is, `None` when that is too large.
fn names(replace: &Replace, name: &str, mapped: &mut String) -> Option<bool> {
    if !replace.matcher.matches(name) {
        return Some(false);
    }
    let fits = match replace.groups.as_ref().map(|regex| regex.captures(name)) {
        Some(Some(groups)) => {
            let group = |number| groups.get(number).map_or("", |group| group.as_str());
            replace.replacement.expand(name.len(), group, MAX_SERIES_BYTES, mapped)
        }
        Some(None) => return Some(false),
        None => replace.replacement.expand(name.len(), |_| name, MAX_SERIES_BYTES, mapped),
    };
    fits.then_some(!mapped.is_empty())
}

/// A letter in lower case by Unicode's simple mapping: one character for one, as Go has it.
fn lower(c: char) -> char {
    // The only one whose full mapping is longer.
    if c == 'İ' { 'i' } else { c.to_lowercase().next().unwrap_or(c) }
}

/// A letter in upper case by Unicode's simple mapping.
fn upper(c: char) -> char {
    let mut full = c.to_uppercase();
    match (c, full.len()) {
        (_, 1) => full.next().unwrap_or(c),
        // Greek letters with iota subscript: the simple mapping keeps the iota.
        ('\u{1F80}'..='\u{1F87}' | '\u{1F90}'..='\u{1F97}' | '\u{1FA0}'..='\u{1FA7}', _) => {
            char::from_u32(c as u32 + 8).unwrap_or(c)
        }
        ('\u{1FB3}' | '\u{1FC3}' | '\u{1FF3}', _) => char::from_u32(c as u32 + 9).unwrap_or(c),
        _ => c,
    }
}
