//! A replacement text with references to the groups of a regex, as Go's `Regexp.Expand` reads it.

use regex::Regex;

/// `$1`, `${1}`, `$name` and `${name}` stand for groups, `$$` for `$`. A name without braces is as long as it can be: `$1x` is
/// the group `1x`. A group that does not exist is empty; a `$` before anything else is itself.
#[derive(Debug, Clone)]
pub(super) struct Template {
    parts: Vec<Part>,
    is_plain: bool,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Group(usize),
}

impl Template {
    pub(super) fn new(text: &str, regex: &Regex) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                plain.push('$');
                rest = after;
            } else if let Some((name, after)) = reference(after) {
                let group = number(name).or_else(|| regex.capture_names().position(|known| known == Some(name)));
                if let Some(group) = group.filter(|group| *group < regex.captures_len()) {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::Group(group));
                }
                rest = after;
            } else {
                plain.push('$');
                rest = after;
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Self { parts, is_plain: !text.contains('$') }
    }

    /// Whether it stands for itself.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The highest number of a group it refers to.
    pub(super) fn highest_group(&self) -> usize {
        let groups = self.parts.iter().map(|part| if let Part::Group(group) = part { *group } else { 0 });
        groups.max().unwrap_or(0)
    }

    /// Appends the text with `group` for the groups; nothing, and false, when it might take more than `most` bytes. No group is
    /// longer than `value_len`.
    pub(super) fn expand<'v>(
        &self,
        value_len: usize,
        group: impl Fn(usize) -> &'v str,
        most: usize,
        out: &mut String,
    ) -> bool {
        let lengths = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Group(_) => value_len,
        });
        if lengths.fold(0, usize::saturating_add) > most {
            return false;
        }
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Group(number) => group(*number),
            });
        }
        true
    }
}

/// The name behind a `$`, and what follows.
fn reference(text: &str) -> Option<(&str, &str)> {
    let (inner, braced) = match text.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, rest) = inner.split_at(end);
    let rest = if braced { rest.strip_prefix('}')? } else { rest };
    (!name.is_empty()).then_some((name, rest))
}

/// A name that is a number: digits without a leading zero, not absurdly many.
fn number(name: &str) -> Option<usize> {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit()) && name.len() <= 9;
    if is_number && (name == "0" || !name.starts_with('0')) { name.parse().ok() } else { None }
}
