//! Random queries: grammar-driven, well-typed, written as text so that they pass through the parser as well.

use crate::random::Random;
use crate::world::{FLOAT_METRICS, HIST_METRICS};

/// Makes queries about data between two times.
pub struct Queries<'r> {
    pub random: &'r mut Random,
    pub start: i64,
    pub end: i64,
}

const LABELS: [&str; 4] = ["instance", "job", "zone", "le"];

/// What model and engine may work out in other orders.
const INEXACT: [&str; 8] =
    ["histogram_fraction", "std", "avg", "quantile", "deriv", "predict_linear", "rate", "increase"];

impl Queries<'_> {
    pub fn query(&mut self) -> String {
        let depth = self.random.between(1, 4);
        match self.random.weighted(&[90, 6, 4]) {
            0 => self.vector(depth),
            1 => self.scalar(depth),
            _ => self.range(depth),
        }
    }

    fn pick(&mut self, all: &[&str]) -> String {
        let i = self.random.below(all.len() as u64) as usize;
        all[i].to_owned()
    }

    fn metric(&mut self) -> String {
        match self.random.weighted(&[60, 30, 5]) {
            0 => self.pick(&FLOAT_METRICS),
            1 => self.pick(&HIST_METRICS),
            _ => self.pick(&["mix", "b_bucket", "target_info", "missing"]),
        }
    }

    fn selector(&mut self) -> String {
        let metric = self.metric();
        self.selector_of(&metric)
    }

    fn selector_of(&mut self, metric: &str) -> String {
        let mut matchers: Vec<String> = Vec::new();
        while self.random.chance(22) {
            let label = self.pick(&LABELS);
            let (op, value) = match self.random.below(6) {
                0 => ("=", self.pick(&["a", "1", "x9", ""])),
                1 => ("!=", self.pick(&["a", "2", "x10", ""])),
                2 => ("=~", self.pick(&["a|b", ".*", ".+", "x.*", "[12]|"])),
                3 => ("!~", self.pick(&["a|b", "1", "x.+"])),
                _ => ("=~", self.pick(&["a|b|1|x9|", "b|2|x10|"])),
            };
            matchers.push(format!("{label}{op}{value:?}"));
        }
        if self.random.chance(12) {
            let other = self.metric();
            matchers.insert(0, format!("__name__=~\"{metric}|{other}\""));
            return format!("{{{}}}", matchers.join(","));
        }
        if matchers.is_empty() { metric.to_owned() } else { format!("{metric}{{{}}}", matchers.join(",")) }
    }

    /// `offset` and `@`.
    fn shift(&mut self) -> String {
        let mut text = String::new();
        if self.random.chance(12) {
            let at = match self.random.below(4) {
                0 => "start()".to_owned(),
                1 => "end()".to_owned(),
                _ => format!("{}", self.random.between(self.start, self.end) as f64 / 1000.0),
            };
            text = format!(" @ {at}");
        }
        if self.random.chance(12) {
            let offset = self.pick(&["15s", "1m", "-20s", "7s", "(step()+1s)", "-(2*10s)", "0s", "3m"]);
            text += &format!(" offset {offset}");
        }
        text
    }

    fn duration(&mut self) -> String {
        self.pick(&[
            "30s",
            "45s",
            "1m",
            "1m",
            "2m",
            "2m",
            "5m",
            "20s",
            "1m30s",
            "61s",
            "1118ms",
            "max_of(step(),1m)",
            "2*30s",
            "10s^1+50s",
            "90",
        ])
    }

    fn matrix(&mut self, depth: i64) -> String {
        let metric = self.metric();
        self.matrix_of(&metric, depth)
    }

    fn matrix_of(&mut self, metric: &str, depth: i64) -> String {
        if depth > 1 && self.random.chance(18) {
            return self.subquery(depth - 1);
        }
        format!("{}[{}]{}", self.selector_of(metric), self.duration(), self.shift())
    }

    fn subquery(&mut self, depth: i64) -> String {
        let inner = self.vector(depth);
        let inner =
            if self.random.chance(50) { format!("({inner})") } else { format!("last_over_time(({inner})[1m:10s])") };
        let step = self.pick(&["10s", "20s", "", "step()+1s", "45s", "7s"]);
        format!("{inner}[{}:{step}]{}", self.pick(&["1m", "2m", "45s", "3m"]), self.shift())
    }

    /// A range vector as the whole query.
    fn range(&mut self, depth: i64) -> String {
        if self.random.chance(40) { self.subquery(depth.min(2)) } else { self.matrix(1) }
    }

    pub fn scalar(&mut self, depth: i64) -> String {
        if depth <= 0 || self.random.chance(55) {
            let numbers =
                ["0", "1", "2", "-1", "0.5", "3", "NaN", "Inf", "-Inf", "0.1", "7", "1e3", "5m", "0x1F", "-0.0"];
            return self.pick(&numbers);
        }
        match self.random.weighted(&[30, 10, 25, 10, 5, 10]) {
            0 => format!("scalar({})", self.vector(depth - 1)),
            1 => "time()".to_owned(),
            2 => {
                let op = self.pick(&["+", "-", "*", "/", "%", "^", "atan2", "== bool", "< bool", ">= bool"]);
                format!("({} {op} {})", self.scalar(depth - 1), self.scalar(depth - 1))
            }
            3 => self.pick(&["pi()", "start()", "end()", "step()", "range()"]),
            4 => format!("-{}", self.scalar(depth - 1)),
            _ => {
                let name = self.pick(&["min_of", "max_of"]);
                format!("{name}({}, {})", self.scalar(depth - 1), self.scalar(depth - 1))
            }
        }
    }

    pub fn vector(&mut self, depth: i64) -> String {
        if depth <= 0 {
            return match self.random.weighted(&[95, 5]) {
                0 => format!("{}{}", self.selector(), self.shift()),
                _ => format!("vector({})", self.scalar(0)),
            };
        }
        let d = depth - 1;
        match self.random.weighted(&[8, 26, 20, 18, 12, 8, 12, 5, 3, 3, 3, 4, 2, 3, 3, 3]) {
            0 => {
                let smoothed = if self.random.chance(40) { " smoothed" } else { "" };
                format!("{}{smoothed}{}", self.selector(), self.shift())
            }
            1 => self.range_function(depth),
            2 => self.aggregation(d),
            3 => self.vector_binary(d),
            4 => self.scalar_binary(d),
            5 => self.float_function(d),
            6 => self.histogram_function(d),
            7 => self.label_function(d),
            8 => {
                let name =
                    self.pick(&["minute", "hour", "day_of_week", "month", "year", "days_in_month", "day_of_year"]);
                if self.random.chance(40) { format!("{name}()") } else { format!("{name}({})", self.vector(d)) }
            }
            9 => match self.random.below(3) {
                0 => format!("timestamp({}{})", self.selector(), self.shift()),
                1 => format!("timestamp(({}))", self.selector()),
                _ => format!("timestamp({})", self.vector(d)),
            },
            10 => format!("absent({})", self.vector(d)),
            11 => self.info(d),
            12 => self.sort(d),
            13 => format!("{}({})", self.pick(&["-", "+", "-"]), self.vector(d)),
            14 => format!("({})", self.vector(d)),
            _ => format!("vector({})", self.scalar(d)),
        }
    }

    fn range_function(&mut self, depth: i64) -> String {
        let counters = ["rate", "increase", "delta", "irate", "idelta", "changes", "resets"];
        let over_time = [
            "sum_over_time",
            "avg_over_time",
            "min_over_time",
            "max_over_time",
            "count_over_time",
            "last_over_time",
            "first_over_time",
            "present_over_time",
            "stddev_over_time",
            "stdvar_over_time",
            "mad_over_time",
            "ts_of_min_over_time",
            "ts_of_max_over_time",
            "ts_of_first_over_time",
            "ts_of_last_over_time",
            "deriv",
            "absent_over_time",
        ];
        match self.random.weighted(&[40, 40, 5, 5, 4, 15]) {
            0 => format!("{}({})", self.pick(&counters), self.matrix(depth)),
            1 => format!("{}({})", self.pick(&over_time), self.matrix(depth)),
            2 => format!("quantile_over_time({}, {})", self.scalar(depth - 1), self.matrix(depth)),
            3 => format!("predict_linear({}, {})", self.matrix(depth), self.scalar(depth - 1)),
            4 => {
                let (a, b) = (self.pick(&["0.3", "0.5", "0.9", "1", "0.1"]), self.pick(&["0.2", "0.7", "0.5"]));
                format!("double_exponential_smoothing({}, {a}, {b})", self.matrix(depth))
            }
            _ => {
                let edges = self.pick(&["anchored", "smoothed"]);
                let name = match edges.as_str() {
                    "anchored" => self.pick(&["rate", "increase", "delta", "changes", "resets", "deriv"]),
                    _ => self.pick(&["rate", "increase", "delta", "rate", "increase", "delta", "resets"]),
                };
                format!("{name}({}[{}] {edges}{})", self.selector(), self.duration(), self.shift())
            }
        }
    }

    fn grouping(&mut self) -> String {
        if self.random.chance(35) {
            return String::new();
        }
        let labels = self.label_list();
        format!(" {} ({labels}) ", self.pick(&["by", "without"]))
    }

    fn label_list(&mut self) -> String {
        let mut labels: Vec<String> = Vec::new();
        for label in ["instance", "job", "zone", "le", "__name__"] {
            if self.random.chance(if label == "__name__" { 12 } else { 35 }) {
                labels.push(label.to_owned());
            }
        }
        labels.join(", ")
    }

    fn aggregation(&mut self, d: i64) -> String {
        let group = self.grouping();
        let with_param = |op: &str, param: String, inner: String| format!("{op}{group}({param}, {inner})");
        match self.random.weighted(&[60, 8, 10, 5, 5, 6]) {
            0 => {
                let op = self.pick(&["sum", "sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"]);
                format!("{op}{group}({})", self.vector(d))
            }
            1 => with_param("quantile", self.scalar(1), self.vector(d)),
            2 => {
                let op = self.pick(&["topk", "bottomk"]);
                let k = self.count();
                with_param(&op, k, self.vector(d))
            }
            3 => {
                let k = self.count();
                with_param("limitk", k, self.vector(d))
            }
            4 => {
                let ratio = self.pick(&["0.5", "-0.5", "0.3", "-0.7", "1", "0", "-1", "1.5"]);
                with_param("limit_ratio", ratio, self.vector(d))
            }
            _ => {
                let label = self.pick(&["\"value\"", "\"job\"", "\"instance\""]);
                let inner = self.vector(d);
                // The last digits of what is not exact must not become a label.
                let inner = if INEXACT.iter().any(|word| inner.contains(word)) {
                    format!("round({inner}, 0.001)")
                } else {
                    inner
                };
                with_param("count_values", label, inner)
            }
        }
    }

    fn count(&mut self) -> String {
        if self.random.chance(85) { self.pick(&["1", "2", "3", "0", "-1", "2.7"]) } else { self.scalar(1) }
    }

    fn vector_binary(&mut self, d: i64) -> String {
        let set = self.random.chance(25);
        let (lhs, rhs) = (self.vector(d), self.vector(d));
        let mut matching = String::new();
        let on = self.random.chance(50);
        if self.random.chance(60) {
            matching = format!(" {} ({})", if on { "on" } else { "ignoring" }, self.label_list());
        }
        if set {
            return format!("({lhs}) {}{matching} ({rhs})", self.pick(&["and", "or", "unless"]));
        }
        let mut op = self.pick(&["+", "-", "*", "/", "%", "^", "atan2", "==", "!=", ">", "<=", "</", ">/", "+", "-"]);
        if ["==", "!=", ">", "<="].contains(&op.as_str()) && self.random.chance(30) {
            op += " bool";
        }
        if self.random.chance(35) && !matching.is_empty() {
            let side = self.pick(&["group_left", "group_right"]);
            let include = self.pick(&["", "zone", "version", "version, region", "le"]);
            let clash = on && include.split(", ").any(|l| !l.is_empty() && matching.contains(l));
            matching += &if clash { format!(" {side} ()") } else { format!(" {side} ({include})") };
        }
        if self.random.chance(18) {
            matching += &match self.random.below(4) {
                0 => " fill (0)".to_owned(),
                1 => " fill_left (1)".to_owned(),
                2 => " fill_right (-2)".to_owned(),
                _ => " fill_left (3) fill_right (NaN)".to_owned(),
            };
        }
        format!("({lhs}) {op}{matching} ({rhs})")
    }

    fn scalar_binary(&mut self, d: i64) -> String {
        let mut op =
            self.pick(&["+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "</", ">/", "*", "/", "</", ">/"]);
        if ["==", "!=", ">", "<", ">="].contains(&op.as_str()) && self.random.chance(30) {
            op += " bool";
        }
        let (v, s) = (self.vector(d), self.scalar(d));
        if self.random.chance(70) { format!("({v}) {op} {s}") } else { format!("{s} {op} ({v})") }
    }

    fn float_function(&mut self, d: i64) -> String {
        let plain = [
            "abs", "ceil", "floor", "exp", "sqrt", "ln", "log2", "log10", "sgn", "sin", "atan", "tanh", "acosh", "rad",
            "deg", "cos", "asinh",
        ];
        let v = self.vector(d);
        match self.random.weighted(&[60, 15, 15, 10]) {
            0 => format!("{}({v})", self.pick(&plain)),
            1 => format!("clamp({v}, {}, {})", self.scalar(1), self.scalar(1)),
            2 => format!("{}({v}, {})", self.pick(&["clamp_min", "clamp_max", "round"]), self.scalar(1)),
            _ => format!("round({v})"),
        }
    }

    fn histogram_function(&mut self, d: i64) -> String {
        let v = match self.random.weighted(&[30, 25, 15, 30]) {
            0 => {
                let metric = self.pick(&HIST_METRICS);
                format!("{}{}", self.selector_of(&metric), self.shift())
            }
            1 => {
                let metric = self.pick(&["b_bucket", "h", "k", "hk", "b_bucket"]);
                format!("{}({})", self.pick(&["rate", "increase", "sum_over_time"]), self.matrix_of(&metric, 1))
            }
            2 => format!("sum by (le, job) (rate({}))", self.matrix_of("b_bucket", 1)),
            _ => self.vector(d),
        };
        let number = ["histogram_count", "histogram_sum", "histogram_avg", "histogram_stddev", "histogram_stdvar"];
        match self.random.weighted(&[35, 35, 20, 10]) {
            0 => format!("{}({v})", self.pick(&number)),
            1 => format!("histogram_quantile({}, {v})", self.quantile()),
            2 => {
                let bounds = ["-Inf", "0", "1", "0.7", "-1", "2", "5", "Inf", "0.0005", "NaN", "-2.5"];
                format!("histogram_fraction({}, {}, {v})", self.pick(&bounds), self.pick(&bounds))
            }
            _ => format!("histogram_quantiles({v}, \"q\", {}, {})", self.quantile(), self.quantile()),
        }
    }

    fn quantile(&mut self) -> String {
        if self.random.chance(85) {
            self.pick(&["0.5", "0.9", "0", "1", "0.1", "0.25", "0.99", "1.2", "-1", "0.75", "NaN"])
        } else {
            self.scalar(1)
        }
    }

    fn label_function(&mut self, d: i64) -> String {
        let v = self.vector(d);
        let target = self.pick(&["zone", "job", "new", "__name__", "instance"]);
        if self.random.chance(60) {
            let source = self.pick(&["instance", "job", "zone", "__name__", "absent"]);
            let (replacement, regex) = match self.random.below(5) {
                0 => ("$1", "(.*)"),
                1 => ("v-$1$1", "(.).*"),
                2 => ("", "a|1"),
                3 => ("${name}!", "(?P<name>[a-c12])"),
                _ => ("fixed", ".*"),
            };
            return format!("label_replace({v}, {target:?}, {replacement:?}, {source:?}, {regex:?})");
        }
        let sources = self.pick(&["\"instance\", \"job\"", "\"zone\"", "\"__name__\", \"job\"", "\"absent\""]);
        format!("label_join({v}, {target:?}, \"-\", {sources})")
    }

    fn info(&mut self, d: i64) -> String {
        let v = self.vector(d.min(1));
        match self.random.below(4) {
            0 => format!("info({v})"),
            1 => format!("info({v}, {{version=~\"1|2\"}})"),
            2 => format!("info({v}, {{__name__=\"build_info\", region=~\".*\"}})"),
            _ => {
                format!("info({v}, {{{}}})", self.pick(&["__name__=~\".+_info\"", "version=\"1\"", "__name__!=\"x\""]))
            }
        }
    }

    fn sort(&mut self, d: i64) -> String {
        let v = self.vector(d);
        match self.random.below(4) {
            0 => format!("sort({v})"),
            1 => format!("sort_desc({v})"),
            2 => format!("sort_by_label({v}, \"zone\", \"job\")"),
            _ => format!("sort_by_label_desc({v}, \"instance\")"),
        }
    }
}
