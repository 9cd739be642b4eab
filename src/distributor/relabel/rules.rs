//! Rules as they are written in the settings, and what is made of them once.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};
use skald_model::{MatchOp, Matcher, re2};
use skald_proto::remote_write::is_legacy_label_name;

use super::template::Template;
use crate::settings::{Given, Record, SettingValue, Shown, nearest, parse_records};

const SEPARATOR: &str = ";";
const ANYTHING: &str = "(.*)";
const FIRST_GROUP: &str = "$1";

/// Largest compiled regex in bytes.
const REGEX_SIZE_LIMIT: usize = 4 << 20;

const FIELDS: [&str; 7] = ["source_labels", "separator", "target_label", "regex", "modulus", "replacement", "action"];
const ACTIONS: [&str; 11] = [
    "replace",
    "keep",
    "drop",
    "keepequal",
    "dropequal",
    "hashmod",
    "labelmap",
    "labeldrop",
    "labelkeep",
    "lowercase",
    "uppercase",
];

/// Relabelling rules, in the order in which they apply. Equal when they are written alike.
#[derive(Debug, Clone, Default)]
pub struct RelabelRules(Arc<[Rule]>);

impl PartialEq for RelabelRules {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|rule| &rule.written).eq(other.0.iter().map(|rule| &rule.written))
    }
}

/// A rule as it is written.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    source_labels: Vec<String>,
    separator: String,
    target_label: String,
    regex: String,
    modulus: u64,
    replacement: String,
    action: String,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            source_labels: Vec::new(),
            separator: SEPARATOR.to_owned(),
            target_label: String::new(),
            regex: ANYTHING.to_owned(),
            modulus: 0,
            replacement: FIRST_GROUP.to_owned(),
            action: "replace".to_owned(),
        }
    }
}

/// A rule, ready to be applied.
#[derive(Debug)]
pub(super) struct Rule {
    written: Written,
    pub(super) action: Action,
}

/// What a rule does with the values of its source labels, joined by its separator.
#[derive(Debug)]
pub(super) enum Action {
    /// Sets a label to a text made of what the regex matched, if it did.
    Replace(Replace),
    /// Leaves the series out unless they match.
    Keep(Matcher),
    /// Leaves the series out if they match.
    Drop(Matcher),
    /// Leaves the series out unless they are the target label's value.
    KeepEqual,
    /// Leaves the series out if they are the target label's value.
    DropEqual,
    /// Sets the target label to a number below this one, chosen by their MD5.
    HashMod(u64),
    /// Copies labels whose names match to other names.
    LabelMap(Replace),
    /// Takes labels off whose names match.
    LabelDrop(Matcher),
    /// Takes labels off whose names do not match.
    LabelKeep(Matcher),
    /// Sets the target label to them in lower case.
    Lowercase,
    /// Sets the target label to them in upper case.
    Uppercase,
}

/// A regex and what is made of what it matches.
#[derive(Debug)]
pub(super) struct Replace {
    pub(super) matcher: Matcher,
    /// What a label is called; unused by `labelmap`.
    pub(super) target: Template,
    pub(super) replacement: Template,
    /// Finds the groups, when some are asked for that are not the whole text.
    pub(super) groups: Option<Regex>,
}

impl RelabelRules {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// Whether all names are valid; `legacy` says whether letters, digits and `_` are the only characters they may have. The
    /// error names the rule.
    pub fn check_names(&self, legacy: bool) -> Result<(), String> {
        for (index, rule) in self.0.iter().enumerate() {
            rule.written.check_names(legacy).map_err(|why| rule.written.complaint(index, &why))?;
        }
        Ok(())
    }
}

impl Rule {
    pub(super) fn sources(&self) -> &[String] {
        &self.written.source_labels
    }

    pub(super) fn separator(&self) -> &str {
        &self.written.separator
    }

    pub(super) fn target(&self) -> &str {
        &self.written.target_label
    }
}

impl Written {
    fn of(record: Record) -> Result<Self, String> {
        let mut written = Self::default();
        for (key, value) in record.entries {
            match (key.as_str(), value) {
                ("source_labels", Given::List(labels)) => written.source_labels = labels,
                ("separator", Given::Text(text)) => written.separator = text,
                ("target_label", Given::Text(text)) => written.target_label = text,
                ("regex", Given::Text(text)) => written.regex = text,
                ("replacement", Given::Text(text)) => written.replacement = text,
                ("action", Given::Text(text)) => written.action = text.to_lowercase(),
                ("modulus", Given::Text(text)) => {
                    written.modulus =
                        text.parse().map_err(|_| format!("modulus {text:?} is not valid, expected a whole number"))?;
                }
                (unknown, _) => {
                    let near = nearest(unknown, FIELDS).map(|near| format!(", did you mean `{near}`?"));
                    return Err(format!("there is no `{unknown}`{}", near.unwrap_or_default()));
                }
            }
        }
        Ok(written)
    }

    fn complaint(&self, index: usize, why: &str) -> String {
        format!("rule {} ({}): {why}", index + 1, self.action)
    }

    /// What Prometheus demands of each action, but for names.
    fn check(&self) -> Result<(), String> {
        let plain = Self::default();
        match self.action.as_str() {
            "replace" | "hashmod" | "lowercase" | "uppercase" | "keepequal" | "dropequal"
                if self.target_label.is_empty() =>
            {
                return Err("`target_label` is missing".to_owned());
            }
            "lowercase" | "uppercase" if self.replacement != plain.replacement => {
                return Err("`replacement` has no meaning here".to_owned());
            }
            "hashmod" if self.modulus == 0 => return Err("`modulus` is missing, expected more than 0".to_owned()),
            "keepequal" | "dropequal" => {
                let allowed = Self {
                    source_labels: self.source_labels.clone(),
                    target_label: self.target_label.clone(),
                    action: self.action.clone(),
                    ..plain
                };
                if *self != allowed {
                    return Err("takes `source_labels` and `target_label` only".to_owned());
                }
            }
            "labeldrop" | "labelkeep" => {
                let allowed = Self { regex: self.regex.clone(), action: self.action.clone(), ..plain };
                if *self != allowed {
                    return Err("takes `regex` only".to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_names(&self, legacy: bool) -> Result<(), String> {
        let valid = |name: &str| if legacy { is_legacy_label_name(name.as_bytes()) } else { !name.is_empty() };
        let valid_template = |text: &str| if legacy { is_legacy_template(text) } else { !text.is_empty() };
        let wrong = |field: &str, text: &str| Err(format!("`{field}` {text:?} is no valid label name"));
        if let Some(source) = self.source_labels.iter().find(|source| !valid(source)) {
            return wrong("source_labels", source);
        }
        let target = self.target_label.as_str();
        match self.action.as_str() {
            "replace" if target.contains('$') && !valid_template(target) => wrong("target_label", target),
            "replace" if !target.contains('$') && !valid(target) => wrong("target_label", target),
            "hashmod" | "lowercase" | "uppercase" | "keepequal" | "dropequal" if !valid(target) => {
                wrong("target_label", target)
            }
            "labelmap" if !valid_template(&self.replacement) => wrong("replacement", &self.replacement),
            _ => Ok(()),
        }
    }

    fn compile(self) -> Result<Rule, String> {
        self.check()?;
        let matcher = || {
            Matcher::new(MatchOp::Regex, "", &self.regex)
                .map_err(|error| format!("`regex` {:?} is not valid: {error}", self.regex))
        };
        let action = match self.action.as_str() {
            "replace" | "labelmap" => {
                let replace = self.replace(matcher()?)?;
                if self.action == "replace" { Action::Replace(replace) } else { Action::LabelMap(replace) }
            }
            "keep" => Action::Keep(matcher()?),
            "drop" => Action::Drop(matcher()?),
            "keepequal" => Action::KeepEqual,
            "dropequal" => Action::DropEqual,
            "hashmod" => Action::HashMod(self.modulus),
            "labeldrop" => Action::LabelDrop(matcher()?),
            "labelkeep" => Action::LabelKeep(matcher()?),
            "lowercase" => Action::Lowercase,
            "uppercase" => Action::Uppercase,
            unknown => {
                let near = nearest(unknown, ACTIONS).map(|near| format!(", did you mean `{near}`?"));
                return Err(format!("there is no such action{}", near.unwrap_or_default()));
            }
        };
        Ok(Rule { written: self, action })
    }

    fn replace(&self, matcher: Matcher) -> Result<Replace, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("`regex` {:?} is not valid: {error}", self.regex);
        let translated = re2::translate(&self.regex).map_err(|error| wrong(&error))?;
        let regex = RegexBuilder::new(&format!("^(?s:{translated})$")).size_limit(REGEX_SIZE_LIMIT).build();
        let regex = regex.map_err(|error| wrong(&error))?;
        let target = Template::new(&self.target_label, &regex);
        let replacement = Template::new(&self.replacement, &regex);
        let whole = usize::from(matches!(self.regex.as_str(), "(.*)" | "(.+)"));
        let highest = target.highest_group().max(replacement.highest_group());
        Ok(Replace { matcher, target, replacement, groups: (highest > whole).then_some(regex) })
    }

    /// What differs from the defaults.
    fn to_json(&self) -> Value {
        let plain = Self::default();
        let mut map = Map::new();
        let texts = [
            ("action", &self.action, &plain.action),
            ("separator", &self.separator, &plain.separator),
            ("regex", &self.regex, &plain.regex),
            ("target_label", &self.target_label, &plain.target_label),
            ("replacement", &self.replacement, &plain.replacement),
        ];
        for (key, value, usual) in texts {
            if value != usual || key == "action" {
                map.insert(key.to_owned(), json!(value));
            }
        }
        if !self.source_labels.is_empty() {
            map.insert("source_labels".to_owned(), json!(self.source_labels));
        }
        if self.modulus != 0 {
            map.insert("modulus".to_owned(), json!(self.modulus));
        }
        Value::Object(map)
    }
}

/// Whether a template can only make legacy label names of matched legacy ones: letters, digits and `_`, the first of them no
/// digit, and references.
fn is_legacy_template(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first == '$' {
            let (inner, braced) = match rest[1..].strip_prefix('{') {
                Some(inner) => (inner, true),
                None => (&rest[1..], false),
            };
            let after = inner.trim_start_matches(word);
            let after_brace = if braced { after.strip_prefix('}') } else { Some(after) };
            match after_brace {
                Some(after_brace) if after.len() < inner.len() => rest = after_brace,
                _ => return false,
            }
        } else if word(first) && !(first.is_ascii_digit() && rest.len() == text.len()) {
            rest = &rest[1..];
        } else {
            return false;
        }
    }
    !text.is_empty()
}

impl SettingValue for RelabelRules {
    type Bound = ();
    const RECORDS: Option<&'static [&'static str]> = Some(&["source_labels"]);

    fn type_name() -> String {
        "list of rules".to_owned()
    }

    fn expected() -> String {
        "a list of relabelling rules, as Prometheus has them".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_records(parse_records(text, &["source_labels"])?)
    }

    fn parse_records(records: Vec<Record>) -> Result<Self, String> {
        let rule = |(index, record): (usize, Record)| {
            let written = Written::of(record).map_err(|why| format!("rule {}: {why}", index + 1))?;
            written.clone().compile().map_err(|why| written.complaint(index, &why))
        };
        let rules: Result<Vec<Rule>, String> = records.into_iter().enumerate().map(rule).collect();
        Ok(Self(rules?.into()))
    }

    fn show(&self) -> Shown {
        Shown::Bare(Value::Array(self.0.iter().map(|rule| rule.written.to_json()).collect()).to_string())
    }
}
