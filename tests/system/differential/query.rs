//! Queries as trees: how they are written in either dialect, and what is left when parts are dropped.

use std::fmt::Write;

use super::chance::Chance;
use super::series::METRICS;

/// Whose words a query is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Prometheus 2.42.
    Old,
    /// Prometheus 3, as Skald speaks it.
    New,
}

/// `@`, in the query's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Millis(i64),
    Start,
    End,
}

/// `@` and `offset` of a selector or subquery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shift {
    pub at: Option<At>,
    pub offset_ms: i64,
    /// Whether the offset is written first; it means the same.
    pub offset_first: bool,
}

/// How a selector names its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `name{…}`
    Plain,
    /// `{__name__="name",…}` or, of several, `{__name__=~"a|b",…}`
    Matcher,
    /// Not at all: every metric.
    None,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    pub naming: Naming,
    /// Positions in [`METRICS`].
    pub metrics: Vec<usize>,
    /// Label, operator, value (not yet quoted).
    pub matchers: Vec<(String, &'static str, String)>,
    pub shift: Shift,
}

/// Where the many are in a many-to-one match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Many {
    Left,
    Right,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matching {
    /// `on` rather than `ignoring`; absent is neither.
    pub on: Option<bool>,
    pub labels: Vec<String>,
    pub group: Option<(Many, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Number(String),
    Text(String),
    Selector(Selector),
    Range {
        selector: Selector,
        range_ms: i64,
    },
    Subquery {
        of: Box<Expr>,
        range_ms: i64,
        step_ms: Option<i64>,
        shift: Shift,
    },
    Call {
        name: &'static str,
        args: Vec<Expr>,
    },
    Aggregate {
        op: &'static str,
        /// Whether it is `by`, and the labels.
        grouping: Option<(bool, Vec<String>)>,
        param: Option<Box<Expr>>,
        of: Box<Expr>,
    },
    Binary {
        op: &'static str,
        bool: bool,
        matching: Matching,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Unary {
        op: char,
        of: Box<Expr>,
    },
    Paren(Box<Expr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Scalar,
    Vector,
    Matrix,
    Text,
}

pub const COMPARISONS: &[&str] = &["==", "!=", ">", "<", ">=", "<="];
pub const SETS: &[&str] = &["and", "or", "unless"];
pub const ARITHMETIC: &[&str] = &["+", "-", "*", "/", "%", "^", "atan2"];

/// How strongly an operator binds.
fn precedence(op: &str) -> u8 {
    match op {
        "or" => 1,
        "and" | "unless" => 2,
        "+" | "-" => 4,
        "*" | "/" | "%" | "atan2" => 5,
        "^" => 7,
        _ => 3,
    }
}

/// A sign binds like multiplication.
const SIGN: u8 = 5;

impl Expr {
    pub fn call(name: &'static str, args: Vec<Expr>) -> Expr {
        Expr::Call { name, args }
    }

    pub fn ty(&self) -> Type {
        match self {
            Expr::Number(_) => Type::Scalar,
            Expr::Text(_) => Type::Text,
            Expr::Selector(_) | Expr::Aggregate { .. } => Type::Vector,
            Expr::Range { .. } | Expr::Subquery { .. } => Type::Matrix,
            Expr::Call { name, .. } if ["scalar", "time", "pi"].contains(name) => Type::Scalar,
            Expr::Call { .. } => Type::Vector,
            Expr::Binary { left, right, .. } if left.ty() == Type::Scalar && right.ty() == Type::Scalar => Type::Scalar,
            Expr::Binary { .. } => Type::Vector,
            Expr::Unary { of, .. } | Expr::Paren(of) => of.ty(),
        }
    }

    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Number(_) | Expr::Text(_) | Expr::Selector(_) | Expr::Range { .. } => vec![],
            Expr::Call { args, .. } => args.iter().collect(),
            Expr::Aggregate { param, of, .. } => param.iter().map(|p| &**p).chain([&**of]).collect(),
            Expr::Binary { left, right, .. } => vec![left, right],
            Expr::Subquery { of, .. } | Expr::Unary { of, .. } | Expr::Paren(of) => vec![of],
        }
    }

    pub fn children_mut(&mut self) -> Vec<&mut Expr> {
        match self {
            Expr::Number(_) | Expr::Text(_) | Expr::Selector(_) | Expr::Range { .. } => vec![],
            Expr::Call { args, .. } => args.iter_mut().collect(),
            Expr::Aggregate { param, of, .. } => param.iter_mut().map(|p| &mut **p).chain([&mut **of]).collect(),
            Expr::Binary { left, right, .. } => vec![left, right],
            Expr::Subquery { of, .. } | Expr::Unary { of, .. } | Expr::Paren(of) => vec![of],
        }
    }

    /// Every node, this one first.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Expr)) {
        visit(self);
        self.children().into_iter().for_each(|child| child.walk(visit));
    }

    /// The functions, aggregations, operators and modifiers it is made of.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let shift = |shift: &Shift, words: &mut Vec<String>| {
            match shift.at {
                Some(At::Start) => words.push("@ start()".into()),
                Some(At::End) => words.push("@ end()".into()),
                Some(At::Millis(_)) => words.push("@".into()),
                None => {}
            }
            match shift.offset_ms {
                0 => {}
                1.. => words.push("offset".into()),
                _ => words.push("offset -".into()),
            }
        };
        self.walk(&mut |expr| match expr {
            Expr::Call { name, .. } => words.push(format!("{name}()")),
            Expr::Aggregate { op, grouping, .. } => words.push(match grouping {
                None => (*op).to_owned(),
                Some((true, _)) => format!("{op} by"),
                Some((false, _)) => format!("{op} without"),
            }),
            Expr::Binary { op, bool, matching, left, right } => {
                let bool = if *bool { " bool" } else { "" };
                let sides = match (left.ty(), right.ty()) {
                    (Type::Scalar, Type::Scalar) => "scalars",
                    (Type::Scalar, _) | (_, Type::Scalar) => "scalar and vector",
                    _ => match (&matching.group, matching.on) {
                        (Some((Many::Left, _)), _) => "group_left",
                        (Some((Many::Right, _)), _) => "group_right",
                        (None, Some(true)) => "on",
                        (None, Some(false)) => "ignoring",
                        (None, None) => "vectors",
                    },
                };
                words.push(format!("{op}{bool} ({sides})"));
            }
            Expr::Unary { op, .. } => words.push(format!("unary {op}")),
            Expr::Subquery { step_ms, shift: of, .. } => {
                words.push(if step_ms.is_some() { "[:step]" } else { "[:]" }.into());
                shift(of, &mut words);
            }
            Expr::Selector(selector) | Expr::Range { selector, .. } => shift(&selector.shift, &mut words),
            Expr::Number(_) | Expr::Text(_) | Expr::Paren(_) => {}
        });
        words
    }

    pub fn text(&self, dialect: Dialect) -> String {
        let mut out = String::new();
        self.write(dialect, &mut out);
        out
    }

    fn write(&self, dialect: Dialect, out: &mut String) {
        match self {
            Expr::Number(number) => out.push_str(number),
            Expr::Text(text) => quote(text, out),
            Expr::Selector(selector) => {
                selector.write(out);
                selector.shift.write(out);
            }
            Expr::Range { selector, range_ms } => {
                selector.write(out);
                let _ = write!(out, "[{}]", duration(*range_ms));
                selector.shift.write(out);
            }
            Expr::Subquery { of, range_ms, step_ms, shift } => {
                let is_shifted = matches!(&**of, Expr::Selector(selector) if selector.shift != Shift::default());
                let plain = matches!(**of, Expr::Selector(_) | Expr::Call { .. } | Expr::Paren(_)) && !is_shifted;
                of.write_in(dialect, !plain, out);
                let _ = write!(out, "[{}:{}]", duration(*range_ms), step_ms.map(duration).unwrap_or_default());
                shift.write(out);
            }
            Expr::Call { name, args } => {
                let renamed = dialect == Dialect::New && *name == "holt_winters";
                out.push_str(if renamed { "double_exponential_smoothing" } else { name });
                list(args, dialect, out);
            }
            Expr::Aggregate { op, grouping, param, of } => {
                out.push_str(op);
                if let Some((by, labels)) = grouping {
                    let _ = write!(out, " {} ({}) ", if *by { "by" } else { "without" }, labels.join(", "));
                }
                out.push('(');
                if let Some(param) = param {
                    param.write(dialect, out);
                    out.push_str(", ");
                }
                of.write(dialect, out);
                out.push(')');
            }
            Expr::Binary { op, bool, matching, left, right } => {
                let own = precedence(op);
                let is_power = *op == "^";
                left.write_in(dialect, left.strength() < own || (is_power && left.strength() == own), out);
                let _ = write!(out, " {op}{} ", if *bool { " bool" } else { "" });
                matching.write(out);
                right.write_in(dialect, right.strength() < own || (!is_power && right.strength() == own), out);
            }
            Expr::Unary { op, of } => {
                out.push(*op);
                of.write_in(dialect, of.strength() <= SIGN, out);
            }
            Expr::Paren(of) => of.write_in(dialect, true, out),
        }
    }

    fn write_in(&self, dialect: Dialect, parentheses: bool, out: &mut String) {
        if parentheses {
            out.push('(');
        }
        self.write(dialect, out);
        if parentheses {
            out.push(')');
        }
    }

    fn strength(&self) -> u8 {
        match self {
            Expr::Binary { op, .. } => precedence(op),
            Expr::Unary { .. } => SIGN,
            // A signed number is a sign before a number.
            Expr::Number(number) if number.starts_with(['-', '+']) => SIGN,
            _ => u8::MAX,
        }
    }

    /// Smaller queries: of every node, its children in its place, and itself with less.
    pub fn shrunk(&self) -> Vec<Expr> {
        let mut all: Vec<Expr> = Vec::new();
        let of_same_type = self.children().into_iter().filter(|child| child.ty() == self.ty());
        all.extend(of_same_type.cloned());
        // Behind a subquery or a range there are vectors, too.
        for child in self.children() {
            if let Expr::Subquery { of, .. } = child
                && self.ty() == Type::Vector
            {
                all.push((**of).clone());
            }
        }
        all.extend(self.simpler());
        for (at, child) in self.children().into_iter().enumerate() {
            for smaller in child.shrunk() {
                let mut copy = self.clone();
                if let Some(place) = copy.children_mut().into_iter().nth(at) {
                    *place = smaller;
                }
                all.push(copy);
            }
        }
        all
    }

    fn simpler(&self) -> Vec<Expr> {
        let mut all = Vec::new();
        match self {
            Expr::Selector(selector) => all.extend(selector.simpler().into_iter().map(Expr::Selector)),
            Expr::Range { selector, range_ms } => {
                let range = |selector| Expr::Range { selector, range_ms: *range_ms };
                all.extend(selector.simpler().into_iter().map(range));
            }
            Expr::Subquery { of, range_ms, step_ms, shift } if *shift != Shift::default() => {
                let (range_ms, step_ms) = (*range_ms, *step_ms);
                all.push(Expr::Subquery { of: of.clone(), range_ms, step_ms, shift: Shift::default() });
            }
            Expr::Aggregate { op, grouping: Some((by, labels)), param, of } => {
                for at in 0..labels.len() {
                    let mut labels = labels.clone();
                    labels.remove(at);
                    let (param, of) = (param.clone(), of.clone());
                    all.push(Expr::Aggregate { op, grouping: Some((*by, labels)), param, of });
                }
            }
            _ => {}
        }
        all
    }
}

impl Selector {
    fn write(&self, out: &mut String) {
        let names: Vec<&str> = self.metrics.iter().map(|at| METRICS[*at].name).collect();
        let mut matchers: Vec<(String, &str, String)> = Vec::new();
        match self.naming {
            Naming::Plain => out.push_str(names[0]),
            Naming::Matcher => {
                let op = if names.len() == 1 { "=" } else { "=~" };
                matchers.push(("__name__".into(), op, names.join("|")));
            }
            Naming::None => {}
        }
        matchers.extend(self.matchers.iter().cloned());
        if matchers.is_empty() {
            return;
        }
        out.push('{');
        for (at, (label, op, value)) in matchers.iter().enumerate() {
            let _ = write!(out, "{}{label}{op}", if at > 0 { ", " } else { "" });
            quote(value, out);
        }
        out.push('}');
    }

    fn simpler(&self) -> Vec<Selector> {
        let mut all = Vec::new();
        if self.shift != Shift::default() {
            all.push(Selector { shift: Shift::default(), ..self.clone() });
        }
        if self.metrics.len() > 1 && self.naming != Naming::None {
            for at in 0..self.metrics.len() {
                let mut one = self.clone();
                one.metrics.remove(at);
                all.push(one);
            }
        }
        for at in 0..self.matchers.len() {
            let mut one = self.clone();
            one.matchers.remove(at);
            all.push(one);
        }
        all
    }
}

impl Shift {
    fn write(&self, out: &mut String) {
        let at = match self.at {
            Some(At::Millis(ms)) => format!(" @ {}", seconds(ms)),
            Some(At::Start) => " @ start()".into(),
            Some(At::End) => " @ end()".into(),
            None => String::new(),
        };
        let offset = match self.offset_ms {
            0 => String::new(),
            1.. => format!(" offset {}", duration(self.offset_ms)),
            _ => format!(" offset -{}", duration(-self.offset_ms)),
        };
        out.push_str(&if self.offset_first { format!("{offset}{at}") } else { format!("{at}{offset}") });
    }
}

impl Matching {
    fn write(&self, out: &mut String) {
        if let Some(on) = self.on {
            let _ = write!(out, "{} ({}) ", if on { "on" } else { "ignoring" }, self.labels.join(", "));
        }
        if let Some((many, include)) = &self.group {
            let side = if *many == Many::Left { "left" } else { "right" };
            let _ = write!(out, "group_{side} ({}) ", include.join(", "));
        }
    }
}

fn list(args: &[Expr], dialect: Dialect, out: &mut String) {
    out.push('(');
    for (at, arg) in args.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        arg.write(dialect, out);
    }
    out.push(')');
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A duration in several units, the largest first.
pub fn duration(ms: i64) -> String {
    let mut rest = ms;
    let mut out = String::new();
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")] {
        if rest >= unit {
            let _ = write!(out, "{}{name}", rest / unit);
            rest %= unit;
        }
    }
    if out.is_empty() { "0s".into() } else { out }
}

/// Milliseconds as seconds.
pub fn seconds(ms: i64) -> String {
    if ms % 1000 == 0 { (ms / 1000).to_string() } else { format!("{}.{:03}", ms / 1000, ms % 1000) }
}

/// Milliseconds as RFC 3339, of all places in India.
fn date(ms: i64) -> String {
    let zone = chrono::FixedOffset::east_opt(19_800).expect("a zone");
    let time = chrono::DateTime::from_timestamp_millis(ms).expect("a time").with_timezone(&zone);
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// When a query is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Instant { time_ms: i64 },
    Range { start_ms: i64, end_ms: i64, step_ms: i64 },
}

impl When {
    pub fn start_ms(&self) -> i64 {
        match *self {
            When::Instant { time_ms } => time_ms,
            When::Range { start_ms, .. } => start_ms,
        }
    }

    pub fn end_ms(&self) -> i64 {
        match *self {
            When::Instant { time_ms } => time_ms,
            When::Range { end_ms, .. } => end_ms,
        }
    }

    pub fn is_instant(&self) -> bool {
        matches!(self, When::Instant { .. })
    }

    /// The path and the parameters of a request; a spelling decides how times and durations are written.
    pub fn request(&self, spelling: u64) -> (&'static str, Vec<(&'static str, String)>) {
        let time = |ms: i64| if spelling % 3 == 1 { date(ms) } else { seconds(ms) };
        let step = |ms: i64| if spelling % 2 == 1 { duration(ms) } else { seconds(ms) };
        match *self {
            When::Instant { time_ms } => ("/api/v1/query", vec![("time", time(time_ms))]),
            When::Range { start_ms, end_ms, step_ms } => {
                ("/api/v1/query_range", vec![("start", time(start_ms)), ("end", time(end_ms)), ("step", step(step_ms))])
            }
        }
    }
}

const KEYWORDS: &[&str] =
    &["by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless", "atan2"];

/// The same query, spelled otherwise: other white space, comments, keywords in capitals. 0 leaves it as it is.
pub fn respelled(text: &str, spelling: u64) -> String {
    if spelling == 0 {
        return text.to_owned();
    }
    let chance = Chance::seeded(spelling);
    let mut out = String::new();
    // Inside quotes every second part; an escaped quote does not end them.
    let mut quoted = false;
    let mut word = String::new();
    let mut escaped = false;
    let end_word = |word: &mut String, out: &mut String| {
        let capitals = KEYWORDS.contains(&word.as_str()) && chance.one_in(3);
        out.push_str(&if capitals { word.to_uppercase() } else { word.clone() });
        word.clear();
    };
    for c in text.chars() {
        if !quoted && (c.is_alphanumeric() || c == '_') {
            word.push(c);
            continue;
        }
        end_word(&mut word, &mut out);
        match c {
            '"' if !escaped => {
                quoted = !quoted;
                out.push(c);
            }
            ' ' if !quoted => out.push_str(chance.pick::<&str>(&[" ", " ", "  ", "\n", "\t", " # a \"comment\" )\n"])),
            '(' | ',' | ')' if !quoted && chance.one_in(6) => {
                out.push(c);
                out.push_str(chance.pick::<&str>(&[" ", "\n\t"]));
            }
            c => out.push(c),
        }
        escaped = quoted && c == '\\' && !escaped;
    }
    end_word(&mut word, &mut out);
    out
}
