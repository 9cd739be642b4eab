use std::collections::BTreeMap;

use md5::{Digest, Md5};
use proptest::prelude::*;
use regex::Regex;
use skald_model::Labels;

use super::*;
use crate::settings::{SettingValue, Shown};

/// Labels as `a=1 b=2`.
fn parse(text: &str) -> Labels {
    Labels::from_pairs(text.split_whitespace().map(|pair| pair.split_once('=').unwrap()))
}

fn run(limits: &Limits, labels: &Labels) -> Result<Option<Labels>, Outcome> {
    let tenant = TenantId::new("team").unwrap();
    let mut relabeller = Relabeller::new(&tenant, limits);
    let bytes = LabelBytes::from_labels(labels);
    let mut results = Vec::new();
    // Twice, as what was seen last is remembered.
    for _ in 0..2 {
        let mut written = Vec::new();
        results.push(match relabeller.relabel(LabelBytes::new_unchecked(&bytes), &mut written) {
            Outcome::Unchanged => Ok(Some(labels.clone())),
            Outcome::Dropped => Ok(None),
            Outcome::Changed => Ok(Some(LabelBytes::check(&written).expect("canonical").to_labels())),
            outcome => Err(outcome),
        });
    }
    assert_eq!(results[0], results[1]);
    results.swap_remove(0)
}

fn limits(rules: &str) -> Limits {
    Limits { metric_relabel_configs: RelabelRules::parse(rules).unwrap(), ..Limits::default() }
}

#[track_caller]
fn check(rules: &str, labels: &str, expected: Option<&str>) {
    let limits = limits(rules);
    limits.metric_relabel_configs.check_names(true).unwrap();
    assert_eq!(run(&limits, &parse(labels)), Ok(expected.map(parse)), "{rules}");
}

#[test]
fn replace() {
    check("[{target_label: x, replacement: y}]", "a=1", Some("a=1 x=y"));
    check("[{source_labels: [a], target_label: x}]", "a=1", Some("a=1 x=1"));
    check("[{source_labels: [a, b, c], target_label: x}]", "a=1 c=3", Some("a=1 c=3 x=1;;3"));
    check("[{source_labels: [a, b], separator: '-', target_label: x}]", "a=1 b=2", Some("a=1 b=2 x=1-2"));
    check("[{source_labels: [a, b], separator: '', target_label: x}]", "a=1 b=2", Some("a=1 b=2 x=12"));
    check(
        r#"[{source_labels: [a], regex: "(.)(.)", target_label: x, replacement: "$2$1"}]"#,
        "a=pq",
        Some("a=pq x=qp"),
    );
    check(
        r#"[{source_labels: [a], regex: "(?P<first>.).", target_label: x, replacement: "${first}y"}]"#,
        "a=pq",
        Some("a=pq x=py"),
    );
    check("[{source_labels: [a], regex: p, target_label: x}]", "a=pq", Some("a=pq"));
    check("[{source_labels: [a], regex: 'p|', target_label: x, replacement: z}]", "b=1", Some("b=1 x=z"));
    check("[{source_labels: [a], target_label: a, replacement: ''}]", "a=1 b=2", Some("b=2"));
    check("[{source_labels: [none], target_label: a}]", "a=1 b=2", Some("b=2"));
    check("[{target_label: __name__, replacement: up}]", "__name__=down a=1", Some("__name__=up a=1"));
    check("[{source_labels: [__name__], target_label: n}]", "__name__=m", Some("__name__=m n=m"));
    check("[{target_label: __x, replacement: y}]", "a=1", Some("__x=y a=1"));
    check("[{source_labels: [__meta_tenant_id], target_label: tenant}]", "a=1", Some("a=1 tenant=team"));
}

#[test]
fn targets_are_templates() {
    let rule = r#"[{source_labels: [a], regex: "(.*)-(.*)", target_label: "${1}_$2", replacement: "$2"}]"#;
    check(rule, "a=x-y", Some("a=x-y x_y=y"));
    check(rule, "a=1-y", Some("a=1-y"));
    check(rule, "a=x-", Some("a=x-"));
    check(rule, "a=x- x_=2", Some("a=x-"));
    let utf8 = Limits { name_validation_scheme: NameValidation::Utf8, ..limits(rule) };
    assert_eq!(run(&utf8, &parse("a=1-y")), Ok(Some(parse("a=1-y 1_y=y"))));
}

#[test]
fn templates_as_in_go() {
    #[track_caller]
    fn expand(replacement: &str, expected: &str) {
        let rule = serde_json::json!([{
            "source_labels": ["a"], "regex": "(?P<w>p)(q)(z)?", "target_label": "x", "replacement": replacement
        }]);
        check(&rule.to_string(), "a=pq", Some(&format!("a=pq {expected}")));
    }
    expand("$1", "x=p");
    expand("$0-$w", "x=pq-p");
    expand("$1x", "");
    expand("${1}x", "x=px");
    expand("$3|$4|${none}", "x=||");
    expand("$$1", "x=$1");
    expand("$$$1", "x=$p");
    expand("$", "x=$");
    expand("$-$1", "x=$-p");
    expand("${1", "x=${1");
    expand("${1-2}$2", "x=${1-2}q");
    expand("$01", "");
    expand("${ü}ü", "x=ü");
}

#[test]
fn keep_and_drop() {
    check("[{source_labels: [a], regex: '1|2', action: keep}]", "a=1", Some("a=1"));
    check("[{source_labels: [a], regex: '1|2', action: keep}]", "a=12", None);
    check("[{source_labels: [a], regex: '1.*', action: drop}]", "a=12", None);
    check("[{source_labels: [a], regex: '1.*', action: drop}]", "a=21", Some("a=21"));
    check("[{source_labels: [none], regex: '', action: drop}]", "a=21", None);
    check("[{action: keep}]", "a=1", Some("a=1"));
    check("[{action: DROP}]", "a=1", None);
    check("[{source_labels: [a, b], regex: '1;2', action: drop}]", "a=1 b=2", None);
    check("[{source_labels: [a], target_label: b, action: keepequal}]", "a=1 b=1", Some("a=1 b=1"));
    check("[{source_labels: [a], target_label: b, action: keepequal}]", "a=1 b=2", None);
    check("[{source_labels: [a], target_label: b, action: keepequal}]", "c=1", Some("c=1"));
    check("[{source_labels: [a], target_label: b, action: dropequal}]", "a=1 b=1", None);
    check("[{source_labels: [a], target_label: b, action: dropequal}]", "a=1 b=2", Some("a=1 b=2"));
    check("[{source_labels: [a, b], target_label: c, action: dropequal}]", "a=1 b=2 c=1;2", None);
}

#[test]
fn other_actions() {
    // As `printf '%s' 'foo;bar' | md5sum` ends: 0x90b76e71a83f3b4d, and of nothing 0xe9800998ecf8427e.
    let modulus = |text: &str, modulus: u64| {
        let digest = Md5::digest(text);
        u64::from_be_bytes(digest[8..].try_into().unwrap()) % modulus
    };
    assert_eq!(modulus("", u64::MAX), 0xe980_0998_ecf8_427e);
    let expected = format!("a=foo b=bar x={}", modulus("foo;bar", 1000));
    check("[{source_labels: [a, b], target_label: x, modulus: 1000, action: hashmod}]", "a=foo b=bar", Some(&expected));
    check("[{source_labels: [a], target_label: x, modulus: '1', action: hashmod}]", "a=foo", Some("a=foo x=0"));
    check(r#"[{regex: "a(.)", replacement: "b$1", action: labelmap}]"#, "a1=x a2=y b2=z", Some("a1=x a2=y b1=x b2=y"));
    check(r#"[{regex: "a.", replacement: b, action: labelmap}]"#, "a1=x a2=y", Some("a1=x a2=y b=y"));
    // A label that was set comes after those that were received.
    check(
        r#"[{target_label: a1, replacement: z}, {regex: "a.", replacement: b, action: labelmap}]"#,
        "a1=x a2=y",
        Some("a1=z a2=y b=z"),
    );
    check("[{regex: 'a.', action: labeldrop}]", "a1=x a2=y b=z", Some("b=z"));
    check("[{regex: 'a.', action: labelkeep}]", "a1=x a2=y b=z", Some("a1=x a2=y"));
    check("[{regex: '.*', action: labeldrop}]", "a1=x", None);
    check(
        "[{source_labels: [a, b], target_label: x, action: lowercase}]",
        "a=ÄB b=ΣİẞǅK",
        Some("a=ÄB b=ΣİẞǅK x=äb;σißǆk"),
    );
    check(
        "[{source_labels: [a], target_label: a, action: uppercase}]",
        "a=aßſﬁᾳŉǆ",
        Some("a=Aß SﬁᾼŉǄ".replace(' ', "").as_str()),
    );
}

#[test]
fn rules_see_what_earlier_ones_made() {
    check(
        r#"[{source_labels: [a], target_label: tmp, replacement: "<$1>"}, {source_labels: [tmp], target_label: b},
            {regex: tmp, action: labeldrop}]"#,
        "a=1",
        Some("a=1 b=<1>"),
    );
    check("[{target_label: a, replacement: '2'}, {target_label: a, replacement: '1'}]", "a=1", Some("a=1"));
    check("[{target_label: a, replacement: ''}, {target_label: a, replacement: '3'}]", "a=1", Some("a=3"));
}

#[test]
fn what_no_rule_changes_is_not_written() {
    let rules = "[{source_labels: [b], regex: x, target_label: c, replacement: y}, {source_labels: [a], target_label: a}, {regex: d, action: labeldrop}]";
    let limits = limits(rules);
    let tenant = TenantId::anonymous();
    let mut relabeller = Relabeller::new(&tenant, &limits);
    let mut outcome = |labels: &str| {
        let mut written = Vec::new();
        (
            relabeller.relabel(LabelBytes::new_unchecked(&LabelBytes::from_labels(&parse(labels))), &mut written),
            written.len(),
        )
    };
    assert_eq!(outcome("a=1 b=2"), (Outcome::Unchanged, 0), "a is set to what it was");
    assert_eq!(outcome("b=2"), (Outcome::Unchanged, 0));
    assert_eq!(outcome("b=x").0, Outcome::Changed);
    assert_eq!(outcome("b=2 d=1").0, Outcome::Changed);
}

#[test]
fn dropped_labels_go_last() {
    let limits = Limits { drop_labels: vec!["b".to_owned()], ..limits("[{source_labels: [b], target_label: c}]") };
    assert_eq!(run(&limits, &parse("a=1 b=2")), Ok(Some(parse("a=1 c=2"))));
    let only = Limits { drop_labels: vec!["b".to_owned()], ..Limits::default() };
    assert_eq!(run(&only, &parse("b=2")), Ok(None));
}

#[test]
fn what_grows_too_large_is_told() {
    let doubling = |i| format!(r#"{{regex: "(.*)", replacement: "${{1}}_{i}", action: labelmap}}"#);
    let doubling: Vec<String> = (0..20).map(doubling).collect();
    assert_eq!(run(&limits(&format!("[{}]", doubling.join(","))), &parse("a=1")), Err(Outcome::TooLarge));
    let large = format!("a={}", "x".repeat(700_000));
    assert_eq!(
        run(&limits(r#"[{source_labels: [a], target_label: b, replacement: "$1$1"}]"#), &parse(&large)),
        Err(Outcome::TooLarge)
    );
    assert_eq!(run(&limits("[{source_labels: [a], target_label: b}]"), &parse(&large)), Err(Outcome::TooLarge));
    assert!(run(&limits("[{source_labels: [a], target_label: a, replacement: b}]"), &parse(&large)).is_ok());
}

#[test]
fn wrong_rules_are_refused_by_number() {
    #[track_caller]
    fn refused(rules: &str, expected: &str) {
        let error = RelabelRules::parse(rules).and_then(|rules| rules.check_names(true)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    refused("[{action: drop}, {}]", "rule 2 (replace): `target_label` is missing");
    refused("[{action: dropp}]", "rule 1 (dropp): there is no such action, did you mean `drop`?");
    refused("[{target: a}]", "rule 1: there is no `target`");
    refused("[{regexp: a}]", "rule 1: there is no `regexp`, did you mean `regex`?");
    refused(
        "[{action: drop, regex: '('}]",
        "rule 1 (drop): `regex` \"(\" is not valid: error parsing regexp: missing closing )",
    );
    refused("[{target_label: x, regex: 'a**'}]", "rule 1 (replace): `regex` \"a**\" is not valid");
    refused("[{action: hashmod, target_label: x}]", "rule 1 (hashmod): `modulus` is missing");
    refused("[{action: hashmod, target_label: x, modulus: -1}]", "modulus \"-1\" is not valid");
    refused("[{target_label: 1x}]", "rule 1 (replace): `target_label` \"1x\" is no valid label name");
    refused("[{target_label: 'a-$1'}]", "rule 1 (replace): `target_label` \"a-$1\" is no valid label name");
    refused("[{action: labelmap, replacement: 'a.$1'}]", "rule 1 (labelmap): `replacement`");
    refused("[{action: uppercase, target_label: '$1'}]", "rule 1 (uppercase): `target_label`");
    refused("[{action: uppercase, target_label: x, replacement: y}]", "`replacement` has no meaning here");
    refused("[{action: keepequal, target_label: x, regex: y}]", "takes `source_labels` and `target_label` only");
    refused("[{action: labeldrop, source_labels: [y], regex: z}]", "takes `regex` only");
    refused("[{source_labels: ['a b'], target_label: x}]", "rule 1 (replace): `source_labels` \"a b\"");
    refused("[{source_labels: a, target_label: x}]", "sequence");
    refused("[{regex: a, regex: b}]", "`regex` is set twice");
    refused("{}", "expected a list of mappings");
    let utf8 = RelabelRules::parse("[{target_label: a.b}]").unwrap();
    assert!(utf8.check_names(true).is_err() && utf8.check_names(false).is_ok());
}

#[test]
fn what_is_shown_can_be_read() {
    let text =
        r#"[{source_labels: [a, b], regex: 012, target_label: x}, {action: hashmod, target_label: y, modulus: 3}]"#;
    let rules = RelabelRules::parse(text).unwrap();
    let Shown::Bare(shown) = rules.show() else { panic!("never quoted") };
    assert!(shown.contains(r#""regex":"012""#), "as it is written: {shown}");
    assert_eq!(RelabelRules::parse(&shown).unwrap(), rules);
    assert_ne!(RelabelRules::default(), rules);
    assert_eq!(RelabelRules::default().show(), Shown::Bare("[]".to_owned()));
}

/// What Prometheus' label builder keeps: what was there, what is set in its order, what is gone.
struct Naive {
    base: BTreeMap<String, String>,
    set: Vec<(String, String)>,
}

impl Naive {
    fn get(&self, name: &str) -> String {
        let set = self.set.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        set.or_else(|| self.base.get(name)).cloned().unwrap_or_default()
    }

    fn put(&mut self, name: &str, value: &str) {
        self.base.remove(name);
        match self.set.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value.to_owned(),
            None => self.set.push((name.to_owned(), value.to_owned())),
        }
        self.set.retain(|(_, value)| !value.is_empty());
    }

    fn all(&self) -> Vec<(String, String)> {
        let base = self.base.iter().map(|(name, value)| (name.clone(), value.clone()));
        base.chain(self.set.clone()).collect()
    }

    /// Whether the series stays.
    fn apply(&mut self, rule: &NaiveRule) -> bool {
        let value = rule.sources.iter().map(|name| self.get(name)).collect::<Vec<_>>().join(&rule.separator);
        let regex = Regex::new(&format!("^(?s:{})$", rule.regex)).unwrap();
        let expand = |captures: &regex::Captures<'_>, template: &str| {
            let mut out = String::new();
            captures.expand(template, &mut out);
            out
        };
        match rule.action {
            "keep" => return regex.is_match(&value),
            "drop" => return !regex.is_match(&value),
            "keepequal" => return self.get(&rule.target) == value,
            "dropequal" => return self.get(&rule.target) != value,
            "replace" => {
                if let Some(captures) = regex.captures(&value) {
                    let target = expand(&captures, &rule.target);
                    if Regex::new("^[a-zA-Z_][a-zA-Z0-9_]*$").unwrap().is_match(&target) {
                        self.put(&target, &expand(&captures, &rule.replacement));
                    }
                }
            }
            "hashmod" => {
                let digest = Md5::digest(&value);
                let low = u64::from_be_bytes(digest[8..].try_into().unwrap());
                self.put(&rule.target, &(low % rule.modulus).to_string());
            }
            "lowercase" => self.put(&rule.target, &value.to_lowercase()),
            "uppercase" => self.put(&rule.target, &value.to_uppercase()),
            "labelmap" => {
                for (name, value) in self.all() {
                    if let Some(captures) = regex.captures(&name) {
                        let mapped = expand(&captures, &rule.replacement);
                        if !mapped.is_empty() {
                            self.put(&mapped, &value);
                        }
                    }
                }
            }
            dropping => {
                for (name, _) in self.all() {
                    if regex.is_match(&name) == (dropping == "labeldrop") {
                        self.put(&name, "");
                    }
                }
            }
        }
        true
    }
}

#[derive(Debug, Clone)]
struct NaiveRule {
    action: &'static str,
    sources: Vec<String>,
    separator: String,
    regex: String,
    target: String,
    replacement: String,
    modulus: u64,
}

impl NaiveRule {
    /// The rule with what its action may have.
    fn yaml(&self) -> serde_json::Value {
        let mut rule = serde_json::json!({ "action": self.action });
        let mut set =
            |key: &str, value: serde_json::Value| drop(rule.as_object_mut().unwrap().insert(key.to_owned(), value));
        let equal = matches!(self.action, "keepequal" | "dropequal");
        let names = self.action.starts_with("label");
        if !names {
            set("source_labels", self.sources.clone().into());
        }
        if !names && !equal {
            set("separator", self.separator.clone().into());
        }
        if !equal {
            set("regex", self.regex.clone().into());
        }
        if !names && !matches!(self.action, "keep" | "drop") {
            set("target_label", self.target.clone().into());
        }
        if matches!(self.action, "replace" | "labelmap") {
            set("replacement", self.replacement.clone().into());
        }
        if self.action == "hashmod" {
            set("modulus", self.modulus.into());
        }
        rule
    }
}

fn any_rule() -> impl Strategy<Value = NaiveRule> {
    let actions = prop::sample::select(vec![
        "replace",
        "replace",
        "replace",
        "keep",
        "drop",
        "keepequal",
        "dropequal",
        "hashmod",
        "labelmap",
        "labelmap",
        "labeldrop",
        "labelkeep",
        "lowercase",
        "uppercase",
    ]);
    let regexes = vec![
        "(.*)",
        "(.+)",
        ".*",
        "a(.*)",
        "(.)(.*)",
        "a|b|ab",
        "[^;]*;(.*)",
        "",
        "(a)?b*",
        "(?P<n>.)(.*)",
        "__.*",
        "(A+)b",
    ];
    let templates = vec!["$1", "x", "$1$2", "${1}_b", "a$2", "$n", "", "$0", "b"];
    let sources = prop::collection::vec("[abc]|ab|__name__|__meta_tenant_id", 0..3);
    let (regexes, templates) = (prop::sample::select(regexes), prop::sample::select(templates));
    (actions, sources, "|;|-", regexes, "[abc]|ab|__name__", prop::bool::ANY, templates, 1_u64..5).prop_map(
        |(action, sources, separator, regex, target, templated, replacement, modulus)| {
            let target = if templated && action == "replace" { format!("{target}${{1}}") } else { target };
            let replacement = if action == "labelmap" && replacement.is_empty() { "$1" } else { replacement };
            // One that may leave out most series is rarely of use here.
            let (regex, replacement) = (regex.to_owned(), replacement.to_owned());
            let equal = matches!(action, "keepequal" | "dropequal");
            let separator = if equal { ";".to_owned() } else { separator };
            NaiveRule { action, sources, separator, regex, target, replacement, modulus }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn as_a_naive_model(
        rules in prop::collection::vec(any_rule(), 1..5),
        base in prop::collection::btree_map("[abc]|ab|aa|__name__|bA", "[aAb;-]{1,4}", 1..6),
    ) {
        let yaml = serde_json::Value::Array(rules.iter().map(NaiveRule::yaml).collect()).to_string();
        let limits = limits(&yaml);
        limits.metric_relabel_configs.check_names(true).unwrap();
        let labels = Labels::from_pairs(base.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut naive = Naive { base, set: Vec::new() };
        naive.put(TENANT_LABEL, "team");
        let kept = rules.iter().all(|rule| naive.apply(rule));
        naive.put(TENANT_LABEL, "");
        let expected = naive.all();
        let expected = Labels::from_pairs(expected.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let expected = (kept && !expected.is_empty()).then_some(expected);
        prop_assert_eq!(run(&limits, &labels), Ok(expected));
    }
}
