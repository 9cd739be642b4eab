//! The requests made to hurt.

/// A request made to hurt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hostile {
    pub path: &'static str,
    pub params: Vec<(&'static str, String)>,
}

impl Hostile {
    pub fn name(&self) -> String {
        let (name, text) = &self.params[0];
        let short: String = text.chars().take(90).collect();
        let rest = if text.len() > short.len() { format!("… ({} bytes)", text.len()) } else { String::new() };
        let step = self.params.iter().find(|(name, _)| *name == "step").map_or("", |(_, step)| step);
        format!("{} {step} {name}={short}{rest} x{}", self.path, self.params.len())
    }
}

struct Attack {
    end: i64,
    all: Vec<Hostile>,
}

impl Attack {
    fn instant(&mut self, query: impl Into<String>) {
        let time = format!("{}", self.end as f64 / 1000.0);
        self.all.push(Hostile { path: "query", params: vec![("query", query.into()), ("time", time)] });
    }

    /// A range query of so many points, a second apart.
    fn range(&mut self, query: impl Into<String>, points: i64) {
        let seconds = |ms: i64| format!("{}", ms as f64 / 1000.0);
        let params = vec![
            ("query", query.into()),
            ("start", seconds(self.end - (points - 1) * 1000)),
            ("end", seconds(self.end)),
            ("step", "1".to_owned()),
        ];
        self.all.push(Hostile { path: "query_range", params });
    }

    fn both(&mut self, query: impl Into<String>, points: i64) {
        let query = query.into();
        self.instant(query.clone());
        self.range(query, points);
    }

    fn request(&mut self, path: &'static str, params: Vec<(&'static str, String)>) {
        self.all.push(Hostile { path, params });
    }
}

/// `inner` inside `depth` times `before` and `after`.
fn nested(before: &str, inner: &str, after: &str, depth: usize) -> String {
    format!("{}{inner}{}", before.repeat(depth), after.repeat(depth))
}

fn chain(part: impl Fn(usize) -> String, operator: &str, count: usize) -> String {
    (0..count).map(part).collect::<Vec<_>>().join(operator)
}

pub fn hostile_queries(end: i64) -> Vec<Hostile> {
    let mut attack = Attack { end, all: Vec::new() };
    selections(&mut attack);
    combinations(&mut attack);
    aggregations(&mut attack);
    functions(&mut attack);
    texts(&mut attack);
    metadata(&mut attack);
    attack.all
}

/// Everything at once, in every shape.
fn selections(attack: &mut Attack) {
    for selector in ["wide", r#"{__name__=~".+"}"#, r#"{job=~"job-.*"}"#, r#"wide{i=~".*1.*"}"#, "native"] {
        attack.both(selector, 11_000);
        attack.instant(format!("{selector}[1d]"));
        attack.range(format!("{selector} * 2"), 1000);
    }
    for tricks in ["wide @ end()", "wide @ start() offset -1h", "sum_over_time(wide[1h] @ end())", "wide offset 100y"] {
        attack.both(tricks, 11_000);
    }
    for inner in ["wide", "wide * 2", "rate(wide[1m])", "sum by (i) (wide)", "native"] {
        for window in ["10s:1ms", "1h:1s", "1y:1m", "50y:1s"] {
            attack.instant(format!("max_over_time(({inner})[{window}])"));
        }
    }
    for function in ["rate", "changes", "sum_over_time", "mad_over_time"] {
        attack.range(format!("{function}(avg_over_time(wide[1m:1ms])[1m:1ms])"), 100);
    }
    attack.instant(nested("max_over_time(", "wide", "[10s:1ms])", 8));
    attack.both("sum_over_time(time()[10d:1ms])", 10);
    attack.instant("time()[10d:1ms]");
    attack.instant("wide[10m:1ms]");
    attack.instant(r#"{__name__=~".+"}[1d:1s]"#);
}

/// Sides against sides.
fn combinations(attack: &mut Attack) {
    for operator in [" or ", " and ", " unless ", " + ", " == "] {
        attack.instant(chain(|_| "wide".to_owned(), operator, 300));
        attack.range(chain(|_| r#"{__name__=~".+"}"#.to_owned(), operator, 20), 1000);
    }
    for operator in [" or ", " + on(i) "] {
        attack.instant(chain(|n| format!(r#"wide{{i!="{n}"}}"#), operator, 400));
    }
    attack.range(chain(|n| format!("wide * {n}"), " or ", 200), 1000);
    for join in [
        "wide * on (i) group_left (version) wide",
        "wide * on () group_left () vector(1)",
        "wide * on (job, instance) group_left (version) target_info",
        "wide + ignoring (i) group_right () wide",
        "wide - ignoring (zone) wide",
        "native + native",
        "native * on (h) group_left () lat_bucket",
        "wide > bool on (i) wide",
        "wide and on (job) wide",
    ] {
        attack.both(join, 3000);
    }
    attack.both("info(wide)", 1000);
    attack.both(r#"info(wide, {version=~".+"})"#, 1000);
    for deep in [nested("(", "wide", ")", 900), nested("-", "wide", "", 900), nested("abs(", "wide", ")", 400)] {
        attack.both(deep, 1000);
    }
    attack.both(nested("sum by (i) (", "wide", ")", 300), 1000);
    attack.both(chain(|_| "wide".to_owned(), " + ", 900), 11_000);
}

fn aggregations(attack: &mut Attack) {
    for op in ["sum", "avg", "stddev", "count", "group", "min"] {
        attack.range(format!("{op} by (i) (wide)"), 11_000);
        attack.range(format!("{op} without () (rate(wide[5m]))"), 3000);
    }
    for op in ["topk(1e9, ", "bottomk(1e9, ", "limitk(1e9, ", "limit_ratio(0.999, ", "quantile(0.5, "] {
        attack.both(format!("{op}wide)"), 3000);
        attack.both(format!("{op}{{__name__=~\".+\"}})"), 11_000);
    }
    attack.range("topk by (i) (1e9, wide)", 3000);
    attack.range("quantile by (i) (0.9, wide)", 11_000);
    for values in ["wide", "wide * time()", "rate(wide[1m])", "native"] {
        attack.both(format!(r#"count_values("v", {values})"#), 3000);
        attack.instant(format!(r#"count_values without (i) ("i", {values})"#));
    }
    for sum in ["sum(native)", "avg by (h) (native)", "sum(rate(native[5m]))"] {
        attack.both(sum, 3000);
    }
}

fn functions(attack: &mut Attack) {
    for question in [
        "histogram_quantile(0.9, lat_bucket)",
        "histogram_quantile(0.9, wide)",
        "histogram_quantile(0.9, native)",
        r#"histogram_quantiles(lat_bucket, "q", 0.1, 0.5, 0.9)"#,
        "histogram_fraction(0, 1, native)",
        "histogram_stddev(rate(native[5m]))",
        "absent(wide)",
        r#"absent_over_time({__name__=~".+"}[1d])"#,
        "last_over_time(wide[1d])",
        "quantile_over_time(0.5, wide[1d])",
        "predict_linear(wide[1d], 3600)",
        "scalar(wide)",
        r#"sort_by_label(wide, "i")"#,
        r#"sort_by_label_desc(wide, "zone", "job", "i")"#,
        "sort_desc(wide)",
        "sort(native)",
        "timestamp(wide)",
        "day_of_year(wide * 1e9)",
        "clamp(wide, 1, scalar(wide))",
        "vector(scalar(wide)) or wide",
    ] {
        attack.both(question, 3000);
    }
    for depth in [5, 15, 19] {
        let doubled = nested("label_replace(", "wide", r#", "i", "$1$1", "i", "(.*)")"#, depth);
        attack.both(doubled, 1000);
    }
    let joined = r#", "i", "-", "i", "job", "instance", "zone", "i", "i")"#;
    attack.both(nested("label_join(", "wide", joined, 4), 1000);
    attack.instant(nested("label_join(", "wide", joined, 300));
    attack.both(format!(r#"label_replace(wide, "x", "{}", "i", ".*")"#, "$0".repeat(2000)), 100);
}

/// Long texts and large regexes.
fn texts(attack: &mut Attack) {
    let alternatives = chain(|n| format!("number-{n:06}x?"), "|", 20_000);
    let many = ["(x{1,500}){1,2}", "(a|b|c|d){1,300}.*(e|f){1,300}", ".*.*.*.*.*.*.*1", "([a-z0-9-]+)+!"];
    for pattern in many.into_iter().map(str::to_owned).chain([alternatives, ".*[0-9]{1,200}.*".to_owned()]) {
        attack.instant(format!(r#"wide{{i=~"{pattern}"}}"#));
        attack.instant(format!(r#"wide{{i!~"{pattern}", job=~"{pattern}"}}"#));
        attack.instant(format!(r#"label_replace(wide, "x", "$1", "i", "({pattern})")"#));
    }
    let regexes = chain(|n| format!(r#"wide{{i=~"(x{{1,500}}){{1,2}}{n}"}}"#), " or ", 1000);
    attack.instant(regexes);
    attack.instant(format!("\"{}\"", "x".repeat(500_000)));
    attack.instant(format!("wide{{i=\"{}\"}}", "y".repeat(500_000)));
    attack.instant(format!("sum by ({}) (wide)", chain(|n| format!("l{n}"), ",", 20_000)));
    for text in [
        nested("(", "wide", ")", 990),
        chain(|n| format!("a_rather_long_metric_name_number_{n}"), " + ", 990),
        nested("abs(", &chain(|n| format!("wide_{n}"), " + ", 400), ")", 500),
        nested("avg_over_time(", "wide", "[1h:1m])", 900),
        format!("f({}", "(".repeat(100_000)),
    ] {
        attack.request("format_query", vec![("query", text.clone())]);
        attack.request("parse_query", vec![("query", text)]);
    }
}

/// Labels and series by thousands of selectors.
fn metadata(attack: &mut Attack) {
    for count in [1, 1000, 10_000] {
        for selector in [r#"{__name__=~".+"}"#, r#"wide{i=~".*1.*"}"#, r#"{i=~"(a|b)c{1,9}.*|number-0.*"}"#] {
            let matches = |n: usize| selector.replace("1.*", &format!("{n}.*"));
            let params: Vec<_> = (0..count).map(|n| ("match[]", matches(n))).collect();
            for path in ["series", "labels"] {
                attack.request(path, params.clone());
            }
            // By GET only.
            attack.request("label/i/values", params[..count.min(400 + count / 100)].to_vec());
        }
    }
    let (start, end) = (("start", "0".to_owned()), ("end", "4000000000".to_owned()));
    for query in [r#"{__name__=~".+"}"#.to_owned(), chain(|n| format!("wide{{i!=\"{n}\"}}"), " + ", 900)] {
        attack.request("query_exemplars", vec![("query", query), start.clone(), end.clone()]);
    }
}
