//! Random queries. The grammar knows types and makes plausible choices; [`super::rules`] refuse what the versions answer
//! differently.

use super::chance::Chance;
use super::facts::Facts;
use super::query::{ARITHMETIC, At, COMPARISONS, Expr, Many, Matching, Naming, SETS, Selector, Shift, When};
use super::rules::{self, LOOKBACK_MS, labels_of};
use super::series::{BEGIN_MS, GRID_MS, LENGTH_MS, METRICS, SAMPLE_PHASE, Shape, values_of};

/// Every function of 2.42.
pub const FUNCTIONS: &[&str] = &[
    "abs",
    "absent",
    "absent_over_time",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "avg_over_time",
    "ceil",
    "changes",
    "clamp",
    "clamp_max",
    "clamp_min",
    "cos",
    "cosh",
    "count_over_time",
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "days_in_month",
    "deg",
    "delta",
    "deriv",
    "exp",
    "floor",
    "histogram_count",
    "histogram_fraction",
    "histogram_quantile",
    "histogram_sum",
    "holt_winters",
    "hour",
    "idelta",
    "increase",
    "irate",
    "label_join",
    "label_replace",
    "last_over_time",
    "ln",
    "log10",
    "log2",
    "max_over_time",
    "min_over_time",
    "minute",
    "month",
    "pi",
    "predict_linear",
    "present_over_time",
    "quantile_over_time",
    "rad",
    "rate",
    "resets",
    "round",
    "scalar",
    "sgn",
    "sin",
    "sinh",
    "sort",
    "sort_desc",
    "sqrt",
    "stddev_over_time",
    "stdvar_over_time",
    "sum_over_time",
    "tan",
    "tanh",
    "time",
    "timestamp",
    "vector",
    "year",
];

/// Every aggregation of 2.42.
pub const AGGREGATIONS: &[&str] =
    &["sum", "avg", "count", "min", "max", "group", "stddev", "stdvar", "topk", "bottomk", "count_values", "quantile"];

const OVER_RANGE: &[&str] = &[
    "rate",
    "rate",
    "increase",
    "delta",
    "irate",
    "idelta",
    "deriv",
    "predict_linear",
    "holt_winters",
    "changes",
    "resets",
    "sum_over_time",
    "avg_over_time",
    "min_over_time",
    "max_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "absent_over_time",
    "quantile_over_time",
    "stddev_over_time",
    "stdvar_over_time",
];

const OF_VALUES: &[&str] = &[
    "abs",
    "ceil",
    "floor",
    "sgn",
    "sqrt",
    "exp",
    "ln",
    "log2",
    "log10",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "deg",
    "rad",
    "sort",
    "sort_desc",
    "timestamp",
    "absent",
    "round",
    "round",
    "clamp",
    "clamp_min",
    "clamp_max",
];

const DATES: &[&str] =
    &["days_in_month", "day_of_month", "day_of_week", "day_of_year", "hour", "minute", "month", "year"];

/// How often a choice is tried again when a rule refuses it.
const TRIES: usize = 12;

/// A query and when it is asked.
#[derive(Debug, Clone)]
pub struct Question {
    pub expr: Expr,
    pub when: When,
    pub facts: Facts,
    /// How it is spelled; see [`super::query::respelled`].
    pub spelling: u64,
}

pub struct Grammar<'a> {
    pub chance: &'a Chance,
    /// Times of samples.
    pub times: &'a [i64],
}

/// What is being made: when, and at which phase of the grid it is evaluated.
#[derive(Clone, Copy)]
struct Place {
    when: When,
    /// A time of evaluation; others differ by multiples of the grid.
    at: i64,
    instant: bool,
}

impl Grammar<'_> {
    /// A question the rules let pass.
    pub fn question(&self) -> Question {
        loop {
            let when = self.when();
            let place = Place { when, at: when.start_ms(), instant: when.is_instant() };
            let depth = self.chance.between(0, 4) as usize;
            let expr = match self.chance.below(24) {
                0 => self.scalar(depth),
                1 if when.is_instant() => self.matrix(depth, place),
                2 if when.is_instant() => Expr::Text("a \"text\"\\".into()),
                _ => self.vector(depth, place),
            };
            if let Ok(facts) = rules::check(&expr, when) {
                let spelling = if self.chance.one_in(2) { self.chance.below(1 << 40) as u64 } else { 0 };
                return Question { expr, when, facts, spelling };
            }
        }
    }

    /// A time at which something may happen: at or beside a sample, at a round minute, or anywhere.
    fn time(&self) -> i64 {
        let time = match self.chance.below(4) {
            0 => *self.chance.pick(self.times),
            1 => *self.chance.pick(self.times) + self.chance.between(-2, 2),
            2 => *self.chance.pick(self.times) + LOOKBACK_MS + self.chance.between(-2, 2),
            _ => BEGIN_MS + self.chance.between(5, LENGTH_MS / 60_000 + 8) * 60_000,
        };
        // The one phase at which a sample would be at the edge of the lookback.
        if (time - LOOKBACK_MS).rem_euclid(GRID_MS) == SAMPLE_PHASE { time + 1 } else { time }
    }

    fn when(&self) -> When {
        if self.chance.one_in(2) {
            return When::Instant { time_ms: self.time() };
        }
        let step_ms = *self.chance.pick(&[15_000, 60_000, 17_324, 61_004, 300_000, 7_300, 3_600_000, 120_000]);
        let start_ms = self.time();
        let length = step_ms * self.chance.between(0, 60);
        let past_last = if self.chance.one_in(2) { 0 } else { self.chance.below(step_ms as usize) as i64 };
        let mut end_ms = start_ms + length.min(LENGTH_MS) + past_last;
        // `@ end()` evaluates there.
        if (end_ms - LOOKBACK_MS).rem_euclid(GRID_MS) == SAMPLE_PHASE {
            end_ms += 1;
        }
        When::Range { start_ms, end_ms, step_ms }
    }

    fn number(&self) -> Expr {
        let fixed = [
            "0", "1", "2", "3", "10", "0.5", "0.1", ".25", "5.", "1e3", "1.5e-3", "0x1F", "0XaB", "Inf", "NaN", "inf",
            "nan", "100000", "1e300", "4", "8", "0.99", "60", "3600",
        ];
        let text = match self.chance.below(3) {
            0 => format!("{:.9}", self.chance.real(0.0, 100.0)),
            _ => (*self.chance.pick(&fixed)).to_owned(),
        };
        let number = Expr::Number(text);
        if self.chance.one_in(6) { Expr::Unary { op: '-', of: Box::new(number) } } else { number }
    }

    fn scalar(&self, depth: usize) -> Expr {
        match self.chance.below(if depth > 0 { 8 } else { 5 }) {
            0 => Expr::call("time", vec![]),
            1 => Expr::call("pi", vec![]),
            2..5 => self.number(),
            5 => Expr::Unary { op: *self.chance.pick(&['-', '+']), of: Box::new(self.scalar(depth - 1)) },
            6 => Expr::Paren(Box::new(self.scalar(depth - 1))),
            _ => {
                let bool = self.chance.one_in(4);
                let op = *self.chance.pick(if bool { COMPARISONS } else { ARITHMETIC });
                let (left, right) = (Box::new(self.scalar(depth - 1)), Box::new(self.scalar(depth - 1)));
                Expr::Binary { op, bool, matching: Matching::default(), left, right }
            }
        }
    }

    /// A scalar that may come from a vector.
    fn any_scalar(&self, depth: usize, place: Place) -> Expr {
        if depth > 0 && self.chance.one_in(4) {
            return Expr::call("scalar", vec![self.vector(depth - 1, place)]);
        }
        self.scalar(depth.min(1))
    }

    fn shift(&self, place: Place) -> Shift {
        let mut shift = Shift { offset_first: self.chance.one_in(2), ..Shift::default() };
        if self.chance.one_in(8) {
            shift.at = Some(match self.chance.below(3) {
                0 => At::Start,
                1 => At::End,
                _ => At::Millis(self.time()),
            });
        }
        if self.chance.one_in(5) {
            shift.offset_ms = match self.chance.below(4) {
                0 => self.chance.between(-8, 8),
                1 => -self.chance.between(1, 30) * 20_000,
                2 => self.chance.between(1, 3_600_000),
                _ => self.chance.between(1, 60) * 60_000,
            };
        }
        let _ = place;
        shift
    }

    /// Where a selector with this shift is evaluated.
    fn shifted(&self, shift: Shift, place: Place) -> i64 {
        let at = match shift.at {
            None => place.at,
            Some(At::Millis(ms)) => ms,
            Some(At::Start) => place.when.start_ms(),
            Some(At::End) => place.when.end_ms(),
        };
        at - shift.offset_ms
    }

    /// A range whose left edge, from `at`, has not this phase.
    fn range(&self, at: i64, forbidden: i64) -> i64 {
        let mut range = match self.chance.below(5) {
            0 => self.chance.between(1, 120) * 15_000,
            1 => self.chance.between(1, 600_000),
            2 => *self.chance.pick(&[15_000, 30_000, 60_000, 300_000, 3_600_000]),
            // From an evaluation at a sample to beside another.
            3 => (at - *self.chance.pick(self.times)).abs() + self.chance.between(0, 2),
            _ => self.chance.between(1, 30) * 60_000,
        };
        range = range.clamp(1, 2 * 3_600_000);
        while (at - range).rem_euclid(GRID_MS) == forbidden {
            range += 1;
        }
        range
    }

    fn matchers(&self, metrics: &[usize]) -> Vec<(String, &'static str, String)> {
        let mut matchers = Vec::new();
        while self.chance.one_in(3) {
            let metric = &METRICS[*self.chance.pick(metrics)];
            let label = if self.chance.one_in(12) { "missing" } else { self.chance.pick(metric.labels) };
            let value = *self.chance.pick(values_of(label));
            let regex = |text: &str| {
                text.chars()
                    .flat_map(|c| ['\\', c].into_iter().skip(usize::from(c.is_alphanumeric() || c == ' ')))
                    .collect::<String>()
            };
            matchers.push(match self.chance.below(7) {
                0 | 1 => (label.to_owned(), "=", value.to_owned()),
                2 => (label.to_owned(), "!=", value.to_owned()),
                3 => {
                    let other = regex(values_of(label)[self.chance.below(values_of(label).len())]);
                    let op = *self.chance.pick(&["=~", "!~"]);
                    (label.to_owned(), op, format!("{}|{other}", regex(value).replace('β', ".")))
                }
                4 => (label.to_owned(), *self.chance.pick(&["=", "!="]), String::new()),
                _ => {
                    let patterns = [
                        ".*",
                        ".+",
                        "",
                        "a.*",
                        ".*[0-9]",
                        "(?i)A.*",
                        "[a-d].*",
                        "[^a]+",
                        "(a|b):.",
                        "..",
                        "\\w+",
                        "d.+|api",
                        "(?:s|x)d[ab]?",
                    ];
                    let op = *self.chance.pick(&["=~", "!~"]);
                    (label.to_owned(), op, (*self.chance.pick(&patterns)).to_owned())
                }
            });
        }
        matchers
    }

    fn metric(&self, wanted: impl Fn(Shape) -> bool) -> usize {
        let fitting: Vec<usize> = (0..METRICS.len()).filter(|at| wanted(METRICS[*at].shape)).collect();
        *self.chance.pick(&fitting)
    }

    fn selector(&self, place: Place) -> Selector {
        let is_histogram = |shape| {
            matches!(
                shape,
                Shape::Native | Shape::NativeGauge | Shape::NativeSchemas | Shape::NativeZero | Shape::Mixed
            )
        };
        let metric = match self.chance.below(8) {
            0 => self.metric(is_histogram),
            1 => self.metric(|shape| matches!(shape, Shape::Weird | Shape::WeirdPositive | Shape::Sparse)),
            2 | 3 => self.metric(|shape| matches!(shape, Shape::Counter | Shape::Bucket | Shape::YoungCounter)),
            _ => self.metric(|shape| !is_histogram(shape)),
        };
        let (naming, metrics) = match self.chance.below(16) {
            0 => (Naming::Matcher, vec![metric]),
            1 => (
                Naming::Matcher,
                vec![metric, self.metric(|shape| shape == METRICS[metric].shape), self.metric(|_| true)],
            ),
            2 => (Naming::Matcher, vec![metric, self.metric(|shape| !is_histogram(shape))]),
            3 if self.chance.one_in(2) => (Naming::None, (0..METRICS.len()).collect()),
            _ => (Naming::Plain, vec![metric]),
        };
        let mut matchers = self.matchers(&metrics);
        if naming == Naming::None && matchers.iter().all(|(_, op, value)| *op != "=" || value.is_empty()) {
            matchers.push(("job".into(), "=", (*self.chance.pick(values_of("job"))).into()));
        }
        let mut shift = self.shift(place);
        while (self.shifted(shift, place) - LOOKBACK_MS).rem_euclid(GRID_MS) == SAMPLE_PHASE {
            shift.offset_ms += 1;
        }
        Selector { naming, metrics, matchers, shift }
    }

    /// A range selector or, deeper, a subquery.
    fn matrix(&self, depth: usize, place: Place) -> Expr {
        if depth > 1 && self.chance.one_in(2) {
            let shift = self.shift(place);
            let range_ms = self.range(self.shifted(shift, place), 0).max(1);
            let inner = Place { at: 0, instant: false, ..place };
            let mut step_ms = match self.chance.below(5) {
                0 => None,
                1 => Some(self.chance.between(1, 30_000) * GRID_MS),
                _ => Some(*self.chance.pick(&[15_000, 30_000, 60_000, 7_300, 10_000, 120_000])),
            };
            // No thousands of steps.
            if step_ms.is_some_and(|step| range_ms / step > 200) {
                step_ms = None;
            }
            return Expr::Subquery { of: Box::new(self.vector(depth - 1, inner)), range_ms, step_ms, shift };
        }
        let selector = self.selector(place);
        let range_ms = self.range(self.shifted(selector.shift, place), SAMPLE_PHASE);
        Expr::Range { selector, range_ms }
    }

    /// A vector that no rule refuses; after some tries a plain one.
    fn vector(&self, depth: usize, place: Place) -> Expr {
        for _ in 0..TRIES {
            let expr = self.try_vector(depth, place);
            if rules::facts(&expr, place.instant).is_ok_and(|facts| facts.risks <= 1) {
                return expr;
            }
        }
        Expr::Selector(self.selector(place))
    }

    /// A vector that fulfils `wanted`, if one is found soon.
    fn vector_with(&self, depth: usize, place: Place, wanted: impl Fn(&Facts) -> bool) -> Expr {
        for _ in 0..TRIES {
            let expr = self.vector(depth, place);
            if rules::facts(&expr, place.instant).is_ok_and(|facts| wanted(&facts)) {
                return expr;
            }
        }
        self.vector(0, place)
    }

    fn facts(&self, expr: &Expr, place: Place) -> Facts {
        rules::facts(expr, place.instant).unwrap_or_else(|_| Facts::scalar(super::facts::Precision::Exact))
    }

    fn try_vector(&self, depth: usize, place: Place) -> Expr {
        if depth == 0 {
            return match self.chance.below(12) {
                0 => Expr::call("vector", vec![self.scalar(1)]),
                1 => Expr::call(self.chance.pick::<&str>(DATES), vec![]),
                2..6 => self.over_range(1, place),
                _ => Expr::Selector(self.selector(place)),
            };
        }
        let inner = depth - 1;
        match self.chance.below(40) {
            0..6 => self.of_values(inner, place),
            6..13 => self.over_range(depth, place),
            13..21 => self.aggregate(inner, place),
            21..28 => self.vectors(inner, place),
            28..32 => self.with_scalar(inner, place),
            32 => Expr::Unary { op: *self.chance.pick(&['-', '-', '+']), of: Box::new(self.vector(inner, place)) },
            33 => Expr::Paren(Box::new(self.vector(inner, place))),
            34 => self.relabel(inner, place),
            35..37 => self.of_histograms(inner, place),
            37 => Expr::call("vector", vec![self.any_scalar(depth, place)]),
            38 => Expr::call(self.chance.pick::<&str>(DATES), vec![self.vector_with(inner, place, |f| f.finite)]),
            _ => self.vector(inner, place),
        }
    }

    fn of_values(&self, depth: usize, place: Place) -> Expr {
        let name = *self.chance.pick(OF_VALUES);
        let mut args = vec![self.vector(depth, place)];
        match name {
            "round" if self.chance.one_in(2) => args.push(self.any_scalar(depth, place)),
            "clamp" => args.extend([self.any_scalar(depth, place), self.any_scalar(depth, place)]),
            "clamp_min" | "clamp_max" => args.push(self.any_scalar(depth, place)),
            _ => {}
        }
        Expr::call(name, args)
    }

    fn over_range(&self, depth: usize, place: Place) -> Expr {
        let name = *self.chance.pick(OVER_RANGE);
        let matrix = self.matrix(depth, place);
        let args = match name {
            "quantile_over_time" => vec![self.quantile(), matrix],
            "predict_linear" => vec![matrix, self.any_scalar(depth.min(1), place)],
            "holt_winters" => {
                let factor = || match self.chance.below(12) {
                    0 => Expr::Number("1".into()),
                    n => Expr::Number(format!("0.{n}5")),
                };
                vec![matrix, factor(), factor()]
            }
            _ => vec![matrix],
        };
        Expr::call(name, args)
    }

    fn quantile(&self) -> Expr {
        match self.chance.below(8) {
            0 => self.scalar(1),
            1 => Expr::Number((*self.chance.pick(&["0", "1", "1.5", "NaN"])).into()),
            2 => Expr::Unary { op: '-', of: Box::new(Expr::Number("0.5".into())) },
            _ => Expr::Number((*self.chance.pick(&["0.5", "0.9", "0.123", "0.999", "0.25"])).into()),
        }
    }

    fn some_labels(&self, facts: &Facts) -> Vec<String> {
        let labels = labels_of(facts);
        let mut some: Vec<String> = labels.iter().filter(|_| self.chance.one_in(2)).cloned().collect();
        if self.chance.one_in(12) {
            some.push("missing".into());
        }
        if self.chance.one_in(4) {
            some.reverse();
        }
        some
    }

    fn aggregate(&self, depth: usize, place: Place) -> Expr {
        let op = *self.chance.pick(AGGREGATIONS);
        let of = match op {
            "topk" | "bottomk" => self.vector_with(depth, place, |f| f.distinct && f.finite),
            "sum" | "avg" => self.vector_with(depth, place, |f| f.nonneg),
            _ => self.vector(depth, place),
        };
        let facts = self.facts(&of, place);
        let grouping = match self.chance.below(5) {
            0 => None,
            1 | 2 => Some((false, self.some_labels(&facts))),
            _ => {
                let mut labels = self.some_labels(&facts);
                if self.chance.one_in(10) {
                    labels.push("__name__".into());
                }
                Some((true, labels))
            }
        };
        let param = match op {
            "topk" | "bottomk" => Some(match self.chance.below(6) {
                0 => self.any_scalar(depth.min(1), place),
                1 => Expr::Number("2.9".into()),
                _ => Expr::Number(self.chance.between(0, 6).to_string()),
            }),
            "quantile" => {
                Some(if self.chance.one_in(6) { self.any_scalar(depth.min(1), place) } else { self.quantile() })
            }
            "count_values" => Some(Expr::Text((*self.chance.pick(&["value", "job", "v_1", "le", ""])).into())),
            _ => None,
        };
        Expr::Aggregate { op, grouping, param: param.map(Box::new), of: Box::new(of) }
    }

    fn vectors(&self, depth: usize, place: Place) -> Expr {
        let left = self.vector(depth, place);
        // Often two that have to do with each other.
        let right = if self.chance.one_in(4) { left.clone() } else { self.vector(depth, place) };
        let (l, r) = (self.facts(&left, place), self.facts(&right, place));
        let (op, bool) = match self.chance.below(5) {
            0 => (*self.chance.pick(SETS), false),
            1 => (*self.chance.pick(COMPARISONS), self.chance.one_in(2)),
            _ => (*self.chance.pick(ARITHMETIC), false),
        };
        let common: Vec<String> = (&l.labels & &r.labels).into_iter().collect();
        let only_left: Vec<String> = (&l.labels - &r.labels).into_iter().collect();
        let only_right: Vec<String> = (&r.labels - &l.labels).into_iter().collect();
        let mut matching = Matching::default();
        let fits = !self.chance.one_in(8);
        match self.chance.below(4) {
            0 => {}
            1 | 2 => {
                matching.on = Some(true);
                matching.labels = if fits { common } else { self.some_labels(&l) };
            }
            _ => {
                matching.on = Some(false);
                matching.labels =
                    if fits { [only_left.clone(), only_right.clone()].concat() } else { self.some_labels(&r) };
            }
        }
        if matching.on == Some(true) && self.chance.one_in(20) {
            matching.labels.push("__name__".into());
        }
        let is_set = SETS.contains(&op);
        let wants_group = !is_set && (!only_left.is_empty() || !only_right.is_empty() || self.chance.one_in(6));
        if wants_group && matching.on.is_some() {
            let many = match (only_left.is_empty(), only_right.is_empty()) {
                (false, true) => Many::Left,
                (true, false) => Many::Right,
                _ => *self.chance.pick(&[Many::Left, Many::Right]),
            };
            let from = if many == Many::Left { &only_right } else { &only_left };
            let mut include: Vec<String> = from.iter().filter(|_| self.chance.one_in(2)).cloned().collect();
            if self.chance.one_in(8) {
                include.push("missing".into());
            }
            include.retain(|label| matching.on == Some(false) || !matching.labels.contains(label));
            matching.group = Some((many, include));
        }
        Expr::Binary { op, bool, matching, left: Box::new(left), right: Box::new(right) }
    }

    fn with_scalar(&self, depth: usize, place: Place) -> Expr {
        let vector = Box::new(self.vector(depth, place));
        let scalar = Box::new(self.any_scalar(depth, place));
        let (op, bool) = match self.chance.below(3) {
            0 => (*self.chance.pick(COMPARISONS), self.chance.one_in(3)),
            _ => (*self.chance.pick(ARITHMETIC), false),
        };
        let (left, right) = if self.chance.one_in(3) { (scalar, vector) } else { (vector, scalar) };
        Expr::Binary { op, bool, matching: Matching::default(), left, right }
    }

    fn relabel(&self, depth: usize, place: Place) -> Expr {
        let of = self.vector(depth, place);
        let labels = labels_of(&self.facts(&of, place));
        let source = || if self.chance.one_in(8) { "missing".to_owned() } else { self.chance.pick(&labels).clone() };
        let target = match self.chance.below(10) {
            0 => "__name__".to_owned(),
            1 => String::new(),
            2 | 3 => source(),
            _ => "made".to_owned(),
        };
        let text = |text: &str| Expr::Text(text.to_owned());
        if self.chance.one_in(3) {
            let mut args = vec![of, Expr::Text(target), text([",", "", "-", "\\"][self.chance.below(4)])];
            (0..self.chance.below(4)).for_each(|_| args.push(Expr::Text(source())));
            return Expr::call("label_join", args);
        }
        let replacement = *self.chance.pick(&["$1", "x-$1-${2}", "${1}y", "$1y", "", "constant", "$0", "$$1", "$name"]);
        let regexes =
            ["(.*)", "(.)(.*)", "a(.*)", "([a-z]+).*", "", "(?P<name>.+)", "api|(d)b", "(x", "((", ".*:([0-9])"];
        let regex = *self.chance.pick(&regexes);
        let args = vec![of, Expr::Text(target), text(replacement), Expr::Text(source()), text(regex)];
        Expr::call("label_replace", args)
    }

    fn of_histograms(&self, depth: usize, place: Place) -> Expr {
        if self.chance.one_in(2) {
            let metric = self.metric(|shape| shape == Shape::Bucket);
            let mut of = self.histograms(vec![metric], place);
            if depth > 0 && self.chance.one_in(2) {
                let labels = ["job", "instance"];
                let mut by: Vec<String> = self.chance.some(&labels).into_iter().map(str::to_owned).collect();
                by.push("le".into());
                of = Expr::Aggregate { op: "sum", grouping: Some((true, by)), param: None, of: Box::new(of) };
            }
            return Expr::call("histogram_quantile", vec![self.quantile(), of]);
        }
        let is_native =
            |shape| matches!(shape, Shape::Native | Shape::NativeSchemas | Shape::NativeZero | Shape::NativeGauge);
        let mut of = self.histograms(vec![self.metric(is_native)], place);
        if self.chance.one_in(3) {
            let grouping = *self.chance.pick(&["job", "instance"]);
            let grouping = Some((self.chance.one_in(2), vec![grouping.to_owned()]));
            of = Expr::Aggregate { op: "sum", grouping, param: None, of: Box::new(of) };
        }
        if self.chance.one_in(5) {
            let other = self.histograms(vec![self.metric(is_native)], place);
            let (left, right) = (Box::new(of), Box::new(other));
            of = Expr::Binary { op: "+", bool: false, matching: Matching::default(), left, right };
        }
        match self.chance.below(4) {
            0 => Expr::call("histogram_count", vec![of]),
            1 => Expr::call("histogram_sum", vec![of]),
            2 => {
                let bound = || match *self.chance.pick(&["0", "1", "2", "4", "Inf", "-Inf"]) {
                    "-Inf" => Expr::Unary { op: '-', of: Box::new(Expr::Number("Inf".into())) },
                    bound => Expr::Number(bound.into()),
                };
                Expr::call("histogram_fraction", vec![bound(), bound(), of])
            }
            _ => of,
        }
    }

    /// A selector of histograms, or its rate.
    fn histograms(&self, metrics: Vec<usize>, place: Place) -> Expr {
        let mut selector = self.selector(place);
        selector.matchers = self.matchers(&metrics);
        selector.matchers.retain(|(label, ..)| label != "le");
        selector.naming = Naming::Plain;
        selector.metrics = metrics;
        let range_ms = self.range(self.shifted(selector.shift, place), SAMPLE_PHASE);
        match self.chance.below(3) {
            0 => Expr::call("rate", vec![Expr::Range { selector, range_ms }]),
            1 => Expr::call("increase", vec![Expr::Range { selector, range_ms }]),
            _ => Expr::Selector(selector),
        }
    }
}
