//! From matchers to postings: which lists to get, and what to do with them.

use std::ops::Deref;

use skald_model::{MatchOp, Matcher};

use super::{PostingsSource, SeriesRef, set};
use crate::bounded::Progress;

/// What one series costs in a postings list, in bytes.
const LIST_BYTES_PER_SERIES: u64 = 4;

/// Whether a plan may leave matchers to be checked on the series' labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deferral {
    /// Every matcher is answered by postings.
    Never,
    /// A matcher is left to the labels when its lists are larger than the entries of the series that the others leave,
    /// or when it would scan more values than series are left.
    WhenCheaper {
        /// Typical bytes to read for one series' entry.
        entry_bytes: u64,
        /// Values that are scanned in the time that the entry takes.
        entry_values: u64,
    },
}

/// Which lists answer a set of matchers, and how.
#[derive(Debug, Clone)]
pub struct Plan<L> {
    /// The result lies within each of these; cheapest first, never empty unless the result is.
    include: Vec<Union<L>>,
    /// The result holds nothing of these; cheapest first.
    exclude: Vec<Union<L>>,
    deferred: Vec<Matcher>,
}

/// The lists of all values that one matcher is about.
#[derive(Debug, Clone)]
struct Union<L> {
    lists: Vec<L>,
    /// Sum of the lists' lengths.
    series: u64,
    /// Index of the matcher; `None` for the list of all series.
    matcher: Option<usize>,
}

/// Plans which lists answer `matchers`.
///
/// A matcher that an absent label does not satisfy includes the lists of the values it matches; one that an absent label
/// satisfies excludes the lists of the values it does not match. Equality and lists of literals cost one lookup per value,
/// other regexes a scan of the label's values (of those with the regex' literal prefix).
pub fn plan<S: PostingsSource>(
    source: &S,
    matchers: &[Matcher],
    deferral: Deferral,
) -> Result<Plan<S::List>, S::Error> {
    let mut plan = Plan { include: Vec::new(), exclude: Vec::new(), deferred: Vec::new() };
    // Lookups first, then the shortest scans: what they leave decides whether a longer one is worth its while.
    let (lookups, mut scans): (Vec<_>, Vec<_>) =
        matchers.iter().enumerate().map(|(i, m)| (i, m, named_values(m))).partition(|(.., named)| named.is_some());
    if scans.len() > 1 {
        scans.sort_by_cached_key(|(_, m, _)| (m.prefixes() == [""], source.value_count(m.name())));
    }
    for (index, matcher, named) in lookups.into_iter().chain(scans) {
        let exclude = matcher.matches_empty();
        // No label has an empty name.
        if matcher.name().is_empty() && !exclude {
            return Ok(Plan::nothing());
        }
        if matcher.name().is_empty() || matches_anything(matcher) {
            continue;
        }
        let mut lists = Vec::new();
        match named {
            Some(values) => {
                for value in values {
                    lists.extend(source.lookup(matcher.name(), value)?);
                }
            }
            None if plan.is_cheaper_by_labels(deferral, || source.value_count(matcher.name())) => {
                plan.deferred.push(matcher.clone());
                continue;
            }
            None => {
                let with_label = is_about_presence(matcher).then(|| source.with_label(matcher.name())).flatten();
                if let Some(list) = with_label {
                    lists.push(list);
                } else {
                    let mut progress = Progress::default();
                    let mut is_wanted = |value: &str| progress.goes_on(0) && matcher.matches(value) != exclude;
                    for prefix in matcher.prefixes() {
                        source.scan(matcher.name(), prefix, &mut is_wanted, &mut lists)?;
                    }
                }
            }
        }
        let series = lists.iter().fold(0_u64, |sum, list| sum.saturating_add(source.series_count(list)));
        let union = Union { lists, series, matcher: Some(index) };
        match (exclude, union.lists.is_empty()) {
            (true, true) => {}
            (true, false) => plan.exclude.push(union),
            (false, true) => return Ok(Plan::nothing()),
            (false, false) => plan.include.push(union),
        }
    }
    if plan.include.is_empty() {
        match source.all()? {
            Some(all) => {
                let series = source.series_count(&all);
                plan.include.push(Union { lists: vec![all], series, matcher: None });
            }
            None => return Ok(Plan::nothing()),
        }
    }
    plan.include.sort_by_key(|union| union.series);
    plan.exclude.sort_by_key(|union| union.series);
    if let Deferral::WhenCheaper { entry_bytes, .. } = deferral {
        plan.defer(matchers, entry_bytes);
    }
    Ok(plan)
}

/// The values whose lists decide a matcher, when they can be named without looking at the values the label has.
fn named_values(matcher: &Matcher) -> Option<Vec<&str>> {
    let named = match matcher.op() {
        MatchOp::Equal | MatchOp::NotEqual => (!matcher.value().is_empty()).then(|| vec![matcher.value()]),
        MatchOp::Regex if matcher.matches_empty() => None,
        MatchOp::NotRegex if !matcher.matches_empty() => None,
        MatchOp::Regex | MatchOp::NotRegex => {
            matcher.set_matches().map(|values| values.iter().map(String::as_str).collect())
        }
    };
    debug_assert!(named.iter().flatten().all(|value| !value.is_empty()));
    named
}

/// Whether no list could be told apart by this matcher.
fn matches_anything(matcher: &Matcher) -> bool {
    matcher.op() == MatchOp::Regex && matcher.value() == ".*"
}

/// Whether it is decided by a series having the label at all.
fn is_about_presence(matcher: &Matcher) -> bool {
    match matcher.op() {
        MatchOp::Equal | MatchOp::NotEqual => matcher.value().is_empty(),
        MatchOp::Regex | MatchOp::NotRegex => matcher.value() == ".+",
    }
}

impl<L> Plan<L> {
    fn nothing() -> Self {
        Self { include: Vec::new(), exclude: Vec::new(), deferred: Vec::new() }
    }

    /// Whether so few series are left that looking at their labels takes less than scanning a label's values.
    fn is_cheaper_by_labels(&self, deferral: Deferral, values: impl FnOnce() -> u64) -> bool {
        let Deferral::WhenCheaper { entry_values, .. } = deferral else { return false };
        let left = self.include.iter().map(|union| union.series).min();
        left.is_some_and(|left| left.saturating_mul(entry_values) <= values())
    }

    /// Leaves to the labels what costs more than reading the entries of the series in the smallest union.
    fn defer(&mut self, matchers: &[Matcher], entry_bytes: u64) {
        let Some(first) = self.include.first() else { return };
        let budget = first.series.saturating_mul(entry_bytes);
        let deferred = &mut self.deferred;
        let mut keep = |union: &Union<L>| {
            let dear = union.series.saturating_mul(LIST_BYTES_PER_SERIES) > budget;
            match union.matcher.and_then(|i| matchers.get(i)) {
                Some(matcher) if dear => deferred.push(matcher.clone()),
                _ => return true,
            }
            false
        };
        let mut first = true;
        self.include.retain(|union| std::mem::take(&mut first) || keep(union));
        self.exclude.retain(|union| keep(union));
    }

    /// Whether no series can match.
    pub fn is_nothing(&self) -> bool {
        self.include.is_empty()
    }

    /// The lists [`Plan::evaluate`] will ask for; one may stand several times.
    pub fn lists(&self) -> impl Iterator<Item = &L> {
        self.include.iter().chain(&self.exclude).flat_map(|union| &union.lists)
    }

    /// Matchers the caller has to check on the labels of the series found; empty with [`Deferral::Never`].
    pub fn deferred(&self) -> &[Matcher] {
        &self.deferred
    }

    /// At most so many series match; as good as the source's counts.
    pub fn series_bound(&self) -> u64 {
        self.include.first().map_or(0, |union| union.series)
    }

    /// The series that match, ascending. `load` gives a list's contents; it is not called for lists that cannot change
    /// the result any more.
    pub fn evaluate<P, E>(&self, mut load: impl FnMut(&L) -> Result<P, E>) -> Result<Vec<SeriesRef>, E>
    where
        P: Deref<Target = [SeriesRef]>,
    {
        self.evaluate_unions(|lists| {
            let mut progress = Progress::default();
            let loaded = lists.iter().take_while(|_| progress.goes_on(0));
            let lists: Vec<Slice<P>> = loaded.map(|list| load(list).map(Slice)).collect::<Result<_, E>>()?;
            Ok(set::union(&lists))
        })
    }

    /// The same for a source that has its own way to unite lists, ascending.
    pub fn evaluate_unions<E>(
        &self,
        mut unite: impl FnMut(&[L]) -> Result<Vec<SeriesRef>, E>,
    ) -> Result<Vec<SeriesRef>, E> {
        let Some((first, rest)) = self.include.split_first() else {
            return Ok(Vec::new());
        };
        let mut found = unite(&first.lists)?;
        for union in rest {
            if found.is_empty() {
                return Ok(found);
            }
            set::intersect(&mut found, &unite(&union.lists)?);
        }
        for union in &self.exclude {
            if found.is_empty() {
                return Ok(found);
            }
            set::subtract(&mut found, &unite(&union.lists)?);
        }
        Ok(found)
    }
}

/// Gives anything that dereferences to a list the trait [`set::union`] asks for.
struct Slice<P>(P);

impl<P: Deref<Target = [SeriesRef]>> AsRef<[SeriesRef]> for Slice<P> {
    fn as_ref(&self) -> &[SeriesRef] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;
    use proptest::prelude::*;
    use skald_model::Labels;

    /// Series by ref, looked up by walking all of them.
    struct Naive {
        series: Vec<Labels>,
        lists: BTreeMap<(String, String), Vec<SeriesRef>>,
    }

    impl Naive {
        fn new(series: Vec<Labels>) -> Self {
            let mut lists: BTreeMap<_, Vec<SeriesRef>> = BTreeMap::new();
            for (i, labels) in series.iter().enumerate() {
                lists.entry((String::new(), String::new())).or_default().push(i as u32);
                for (name, value) in labels {
                    lists.entry((name.to_owned(), value.to_owned())).or_default().push(i as u32);
                    lists.entry((name.to_owned(), String::new())).or_default().push(i as u32);
                }
            }
            Self { series, lists }
        }

        fn select(&self, matchers: &[Matcher]) -> Vec<SeriesRef> {
            let matches =
                |labels: &Labels| matchers.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default()));
            (0..self.series.len() as u32).filter(|&i| matches(&self.series[i as usize])).collect()
        }
    }

    impl PostingsSource for Naive {
        type List = (String, String);
        type Error = Infallible;

        fn lookup(&self, name: &str, value: &str) -> Result<Option<Self::List>, Infallible> {
            let key = (name.to_owned(), value.to_owned());
            Ok(self.lists.contains_key(&key).then_some(key))
        }

        fn scan(
            &self,
            name: &str,
            prefix: &str,
            is_wanted: &mut dyn FnMut(&str) -> bool,
            lists: &mut Vec<Self::List>,
        ) -> Result<(), Infallible> {
            let keys =
                self.lists.keys().filter(|(n, v)| n == name && !v.is_empty() && v.starts_with(prefix) && is_wanted(v));
            lists.extend(keys.cloned());
            Ok(())
        }

        fn with_label(&self, name: &str) -> Option<Self::List> {
            let key = (name.to_owned(), String::new());
            self.lists.contains_key(&key).then_some(key)
        }

        fn all(&self) -> Result<Option<Self::List>, Infallible> {
            self.lookup("", "")
        }

        fn series_count(&self, list: &Self::List) -> u64 {
            self.lists[list].len() as u64
        }

        fn value_count(&self, name: &str) -> u64 {
            self.lists.keys().filter(|(n, _)| n == name).count() as u64
        }
    }

    fn matcher() -> impl Strategy<Value = Matcher> {
        let op =
            prop_oneof![Just(MatchOp::Equal), Just(MatchOp::NotEqual), Just(MatchOp::Regex), Just(MatchOp::NotRegex)];
        let value = prop_oneof![
            Just(""),
            Just("a"),
            Just("aa"),
            Just("zz"),
            Just("a|b"),
            Just("|a"),
            Just("a.*"),
            Just("a.*|"),
            Just(".*"),
            Just(".+"),
            Just("a?"),
            Just("[ab]"),
            Just(".*b"),
            Just(".*a.*"),
            Just("a[^b]*"),
            Just("(?i)A")
        ];
        (op, prop_oneof![Just(""), Just("x"), Just("y"), Just("z")], value)
            .prop_map(|(op, name, value)| Matcher::new(op, name, value).unwrap())
    }

    fn series() -> impl Strategy<Value = Vec<Labels>> {
        let labels = proptest::collection::btree_map("[xy]", "[ab]{1,2}", 0..3).prop_map(Labels::from_pairs);
        proptest::collection::btree_set(labels, 0..25).prop_map(|s| s.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn plans_agree_with_walking_every_series(
            series in series(),
            matchers in proptest::collection::vec(matcher(), 0..5),
            entry_bytes in 0_u64..20,
        ) {
            let naive = Naive::new(series);
            let expected = naive.select(&matchers);
            for deferral in [Deferral::Never, Deferral::WhenCheaper { entry_bytes, entry_values: 2 }] {
                let plan = plan(&naive, &matchers, deferral).unwrap();
                let mut found = plan.evaluate(|key| Ok::<_, Infallible>(naive.lists[key].clone())).unwrap();
                prop_assert!(deferral != Deferral::Never || plan.deferred().is_empty());
                found.retain(|&i| {
                    let labels = &naive.series[i as usize];
                    plan.deferred().iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default()))
                });
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    #[test]
    fn large_lists_wait_for_the_labels() {
        let series = (0..500).map(|i| Labels::from_pairs([("job", "all".to_owned()), ("id", i.to_string())]));
        let naive = Naive::new(series.collect());
        let matchers = [Matcher::equal("job", "all"), Matcher::equal("id", "7"), regex("id", ".*7.*")];
        let plan = plan(&naive, &matchers, Deferral::WhenCheaper { entry_bytes: 100, entry_values: 1 }).unwrap();
        assert_eq!(plan.lists().collect::<Vec<_>>(), [&("id".to_owned(), "7".to_owned())]);
        assert_eq!(plan.deferred().len(), 2);
    }

    fn regex(name: &str, value: &str) -> Matcher {
        Matcher::new(MatchOp::Regex, name, value).unwrap()
    }
}
