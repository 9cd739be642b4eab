//! What matchers select, and which labels there are, against walking every series.

use std::collections::BTreeSet;

use skald_model::MatchOp;

use super::*;

/// Series of which label `id` has a value each, enough for an order of its values, `pod` a tenth of them, and `odd` is not
/// there in half.
fn set(i: usize) -> Labels {
    let (id, pod, parity) = (format!("/id/{:04x}/{i}", i * 40_503 % 65_536), format!("app-{}", i / 10), i % 2);
    let name = format!("m{}", i % 7);
    let all = [("__name__", name.as_str()), ("id", &id), ("odd", if parity == 1 { "yes" } else { "" }), ("pod", &pod)];
    Labels::from_pairs(all)
}

struct Many {
    rig: Rig,
    sets: BTreeSet<Labels>,
}

impl Many {
    fn new() -> Self {
        Self { rig: Rig::new(OPTIONS), sets: BTreeSet::new() }
    }

    fn add(&mut self, series: std::ops::Range<usize>, time: TimestampMs) {
        for i in series {
            let labels = set(i);
            self.rig.floats(&labels, &[(time, 1.0)]);
            self.sets.insert(labels);
        }
    }

    fn check(&self, selectors: &[Vec<Matcher>]) {
        let holds = |labels: &Labels, matchers: &[Matcher]| {
            matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default()))
        };
        let is_selected =
            |labels: &&Labels| selectors.is_empty() || selectors.iter().any(|matchers| holds(labels, matchers));
        let series: Vec<Labels> = self.sets.iter().filter(is_selected).cloned().collect();
        let head = &self.rig.head;
        if let [matchers] = selectors {
            let selected = contents(head, matchers, QueryRange::ALL);
            assert_eq!(selected.into_keys().collect::<Vec<_>>(), series, "{matchers:?}");
        }
        for limit in [None, Some(0), Some(1), Some(13), Some(100_000)] {
            let most = limit.unwrap_or(usize::MAX);
            let few: Vec<Labels> = series.iter().take(most).cloned().collect();
            assert_eq!(head.series(selectors, limit), few, "{selectors:?} {limit:?}");
            for name in ["__name__", "id", "odd", "pod", "absent"] {
                let values: BTreeSet<&str> = series.iter().filter_map(|labels| labels.get(name)).collect();
                let values: Vec<&str> = values.into_iter().take(most).collect();
                assert_eq!(head.label_values(name, selectors, limit), values, "{name} {selectors:?} {limit:?}");
            }
        }
        let names: BTreeSet<&str> = series.iter().flat_map(|labels| labels.iter().map(|(name, _)| name)).collect();
        assert_eq!(head.label_names(selectors), names.into_iter().collect::<Vec<_>>(), "{selectors:?}");
    }

    fn check_all(&self) {
        let matcher = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
        let equal = Matcher::equal;
        let (regex, not_regex, not_equal) = (MatchOp::Regex, MatchOp::NotRegex, MatchOp::NotEqual);
        let lists = [
            vec![equal("__name__", "m1")],
            vec![equal("__name__", "nothing")],
            vec![equal("absent", "")],
            vec![equal("odd", "")],
            vec![equal("odd", ""), equal("__name__", "m2"), matcher(not_regex, "id", ".*7.*")],
            vec![matcher(not_equal, "absent", "")],
            vec![matcher(not_equal, "odd", ""), matcher(not_equal, "__name__", "m0")],
            vec![matcher(regex, "odd", ".+"), matcher(regex, "pod", "app-1.*")],
            vec![matcher(not_regex, "odd", ".+"), matcher(regex, "pod", "app-(1|22|x)")],
            vec![matcher(regex, "id", "/id/1.*")],
            vec![matcher(regex, "id", "/id/1.*|/id/2.*"), matcher(not_regex, "id", ".*9")],
            vec![matcher(regex, "id", ".*/12.*")],
            vec![matcher(regex, "id", ".*[13]5"), matcher(regex, "pod", ".*[0-4]")],
            vec![matcher(regex, "id", "(?i:/ID/A.*)")],
            vec![matcher(regex, "id", ".*")],
            vec![matcher(regex, "id", ".+")],
            vec![matcher(not_regex, "id", "/id/.*")],
            vec![matcher(not_regex, "pod", "app-1.*|")],
            vec![matcher(regex, "pod", "app-1.*"), matcher(regex, "pod", "app-12|app-13|nothing")],
            vec![equal("pod", "app-3"), matcher(regex, "id", ".*3")],
            vec![equal("pod", "app-3"), equal("pod", "app-4")],
            vec![],
        ];
        for list in &lists {
            self.check(std::slice::from_ref(list));
        }
        self.check(&[]);
        self.check(&lists[..2]);
        self.check(&lists[7..10]);
    }
}

#[test]
fn matchers_select_and_labels_are_listed() {
    let mut many = Many::new();
    many.add(0..40, 100);
    many.check_all();
    assert!(contents(&many.rig.head, &[], QueryRange { min: 101, max: 200 }).is_empty());
}

#[test]
fn labels_with_many_values_answer_the_same_while_values_come_and_go() {
    let mut many = Many::new();
    many.add(0..1500, 100);
    many.check_all();
    // More than before, fewer than before, and others in their places.
    many.add(1500..1700, 200);
    many.check_all();
    many.add(300..1600, 1200);
    many.rig.cut(1000);
    many.sets = (300..1600).map(set).collect();
    many.check_all();
    many.add(1600..1900, 1300);
    many.add(0..20, 1300);
    many.check_all();
}

#[test]
fn values_that_are_few_among_the_symbols_are_found() {
    let mut many = Many::new();
    for i in 0..700 {
        let value = |label: &str| format!("{label}/{i:04}");
        let mut pairs = vec![("__name__", "m".to_owned()), ("id", format!("/id/{:03}", i * 37 % 700))];
        pairs.extend(["a", "b", "c", "d", "e"].map(|label| (label, value(label))));
        let labels = Labels::from_pairs(pairs);
        many.rig.floats(&labels, &[(100, 1.0)]);
        many.sets.insert(labels);
    }
    // Not by their texts' order because a prefix leaves few: these leave all, some, one, and none.
    assert!(many.rig.head.index.read().symbols.len() > 4 * 700);
    for pattern in ["/id/.*", "/id/.*7", "/id/[0-4].*", "/id/6.*|/id/1.*3", "/id/699.*", "/ie.*", "/.*|id.*"] {
        let matcher = |op| Matcher::new(op, "id", pattern).unwrap();
        many.check(&[vec![matcher(MatchOp::Regex)]]);
        many.check(&[vec![matcher(MatchOp::NotRegex)]]);
    }
}

#[test]
fn what_is_left_to_the_labels_is_checked_on_them() {
    let mut many = Many::new();
    many.add(0..3000, 100);
    let matcher = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
    let matchers = [Matcher::equal("pod", "app-7"), matcher(MatchOp::Regex, "id", ".*1.*")];
    many.rig.head.read(|reading| {
        assert_eq!(reading.plan(&matchers).deferred(), &matchers[1..], "ten series are left, and 3,000 values");
    });
    many.check(&[matchers.to_vec()]);
}

/// Whoever reads in pieces sees every series that was there all the time, and none that does not match.
#[test]
fn series_that_come_and_go_meanwhile_do_not_show() {
    const FAR: TimestampMs = 1_000_000_000;
    let matcher = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
    let (regex, not_regex) = (MatchOp::Regex, MatchOp::NotRegex);
    let lists = [
        vec![matcher(regex, "id", "/id/1.*")],
        vec![matcher(regex, "id", ".*/.*7.*"), matcher(not_regex, "pod", ".*3.*")],
        vec![matcher(not_regex, "pod", ".*[02468]")],
        vec![Matcher::equal("odd", ""), matcher(not_regex, "id", ".*[0-4]")],
        vec![matcher(regex, "id", ".+")],
    ];
    let mut many = Many::new();
    many.add(0..600, FAR);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (head, wal, sets) = (&many.rig.head, &many.rig.wal, &many.sets);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60 {
                let time = 1000 * round;
                for i in 0..40 {
                    let labels = set(1000 + (7 * round as usize + i) % 900);
                    many.rig.floats(&labels, &[(time, 1.0)]);
                }
                let cut = head.begin_cut(wal, time + 1).unwrap();
                let _ = head.finish_cut(wal, cut).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for list in &lists {
                        let holds = |labels: &&Labels| {
                            list.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default()))
                        };
                        let expected: BTreeSet<&Labels> = sets.iter().filter(holds).collect();
                        let found = head.series(std::slice::from_ref(list), None);
                        let strange = found.iter().find(|labels| !holds(labels) || labels.get("id").is_none());
                        assert_eq!(strange, None, "{list:?}");
                        assert!(found.is_sorted_by(|a, b| a < b), "{list:?}");
                        let found: BTreeSet<&Labels> = found.iter().collect();
                        assert!(found.is_superset(&expected), "{list:?}");
                        let values = head.label_values("pod", std::slice::from_ref(list), None);
                        let values: BTreeSet<&str> = values.iter().map(String::as_str).collect();
                        assert!(expected.iter().all(|labels| values.contains(labels.get("pod").unwrap())), "{list:?}");
                        assert!(values.iter().all(|value| value.starts_with("app-")), "{values:?}");
                    }
                }
            });
        }
    });
    assert_eq!(head.drop_covered(wal), Dropped::Done);
    many.check(&[vec![matcher(regex, "id", ".+")]]);
    assert!(head.index.read().newcomers_since(0).is_empty(), "nobody reads any more");
}
