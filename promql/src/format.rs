//! Expressions as text: on one line, as Prometheus prints them, and broken into lines, as its `format_query` does.

use std::fmt::{self, Write as _};

use skald_model::labels::is_identifier;
use skald_model::{METRIC_NAME, MatchOp, Matcher, Quoted};

use crate::ast::{
    Aggregate, AtModifier, Binary, Cardinality, Duration, DurationExpr, EdgeMode, Expr, NumberLiteral, Subquery,
    VectorMatching, VectorSelector,
};
use crate::duration::DurationMs;

/// Longest expression that [`Expr::prettify`] leaves on one line, in bytes.
const LINE: usize = 100;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregate(e) => {
                write!(f, "{}(", Head(e))?;
                if let Some(param) = &e.param {
                    write!(f, "{param}, ")?;
                }
                write!(f, "{})", e.expr)
            }
            Self::Binary(e) => write!(f, "{} {} {}", e.lhs, Operator(e), e.rhs),
            Self::Call(e) => {
                write!(f, "{}(", e.function.name)?;
                write_list(f, &e.args)?;
                f.write_str(")")
            }
            Self::Matrix(e) => {
                write!(f, "{}[{}]", Bare(&e.selector), e.range)?;
                write!(f, "{}", Modifiers(&e.selector))
            }
            Self::Subquery(e) => write!(f, "{}{}", e.expr, Window(e)),
            Self::Number(e) => write!(f, "{e}"),
            Self::String(e) => write!(f, "{}", Quoted(&e.value)),
            Self::Paren(e) => write!(f, "({})", e.expr),
            Self::Unary(e) => write!(f, "{}{}", if e.negative { "-" } else { "+" }, e.expr),
            Self::Vector(e) => write!(f, "{}{}", Bare(e), Modifiers(e)),
        }
    }
}

fn write_list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

/// A label name in a list.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_identifier(self.0) { f.write_str(self.0) } else { write!(f, "{}", Quoted(self.0)) }
    }
}

/// Names in parentheses.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        write_list(f, &self.0.iter().map(|name| Name(name)).collect::<Vec<_>>())?;
        f.write_str(")")
    }
}

/// An aggregation up to its parenthesis.
struct Head<'a>(&'a Aggregate);

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.op.as_str())?;
        if self.0.without {
            write!(f, " without {} ", Names(&self.0.grouping))
        } else if !self.0.grouping.is_empty() {
            write!(f, " by {} ", Names(&self.0.grouping))
        } else {
            Ok(())
        }
    }
}

/// A binary operator with what stands between it and its right side.
struct Operator<'a>(&'a Binary);

impl fmt::Display for Operator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.op.as_str())?;
        if self.0.return_bool {
            f.write_str(" bool")?;
        }
        let Some(matching) = &self.0.matching else { return Ok(()) };
        let VectorMatching { cardinality, labels, on, include, fill_left, fill_right } = matching;
        let group = match cardinality {
            Cardinality::ManyToOne => Some("left"),
            Cardinality::OneToMany => Some("right"),
            Cardinality::OneToOne | Cardinality::ManyToMany => None,
        };
        if *on || !labels.is_empty() || group.is_some() {
            write!(f, " {} {}", if *on { "on" } else { "ignoring" }, Names(labels))?;
        }
        if let Some(side) = group {
            write!(f, " group_{side} {}", Names(include))?;
        }
        match (fill_left, fill_right) {
            (Some(left), Some(right)) if left.to_bits() == right.to_bits() => write!(f, " fill ({})", Float(*left)),
            (left, right) => {
                if let Some(left) = left {
                    write!(f, " fill_left ({})", Float(*left))?;
                }
                if let Some(right) = right {
                    write!(f, " fill_right ({})", Float(*right))?;
                }
                Ok(())
            }
        }
    }
}

/// A selector without what may follow it.
struct Bare<'a>(&'a VectorSelector);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selector = self.0;
        let is_name = |m: &Matcher| m.op() == MatchOp::Equal && m.name() == METRIC_NAME;
        let mut parts: Vec<String> = Vec::new();
        let mut matchers = selector.matchers.as_slice();
        if let Some(name) = &selector.name {
            // The parser puts the name's matcher last.
            if matchers.last().is_some_and(|m| is_name(m) && m.value() == name) {
                matchers = &matchers[..matchers.len() - 1];
            }
            f.write_str(name)?;
        }
        parts.extend(matchers.iter().map(Matcher::to_string));
        if selector.name.is_none() || !parts.is_empty() {
            write!(f, "{{{}}}", parts.join(","))?;
        }
        Ok(())
    }
}

/// What may follow a selector.
struct Modifiers<'a>(&'a VectorSelector);

impl fmt::Display for Modifiers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.edges {
            EdgeMode::Plain => {}
            EdgeMode::Anchored => f.write_str(" anchored")?,
            EdgeMode::Smoothed => f.write_str(" smoothed")?,
        }
        write_time(f, self.0.at, self.0.offset.as_ref())
    }
}

fn write_time(f: &mut fmt::Formatter<'_>, at: Option<AtModifier>, offset: Option<&Duration>) -> fmt::Result {
    match at {
        None => {}
        Some(AtModifier::Start) => f.write_str(" @ start()")?,
        Some(AtModifier::End) => f.write_str(" @ end()")?,
        Some(AtModifier::Timestamp(ms)) => {
            let sign = if ms < 0 { "-" } else { "" };
            write!(f, " @ {sign}{}.{:03}", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)?;
        }
    }
    match offset {
        None => Ok(()),
        // Without parentheses the operators would belong to the expression around it.
        Some(Duration::Expr(expr)) if matches!(**expr, DurationExpr::Binary { .. }) => {
            write!(f, " offset ({expr})")
        }
        Some(offset) => write!(f, " offset {offset}"),
    }
}

/// The brackets of a subquery and what may follow them.
struct Window<'a>(&'a Subquery);

impl fmt::Display for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}:", self.0.range)?;
        if let Some(step) = &self.0.step {
            write!(f, "{step}")?;
        }
        f.write_str("]")?;
        write_time(f, self.0.at, self.0.offset.as_ref())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(ms) => write!(f, "{}", DurationMs(*ms)),
            Self::Expr(expr) => write!(f, "{expr}"),
        }
    }
}

impl fmt::Display for DurationExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { seconds, is_duration: true, .. } => {
                write!(f, "{}", DurationMs((seconds * 1000.0).round() as i64))
            }
            Self::Number { seconds, .. } => write!(f, "{}", Float(*seconds)),
            Self::Step(_) => f.write_str("step()"),
            Self::Range(_) => f.write_str("range()"),
            Self::Unary { negative, expr, .. } => write!(f, "{}{expr}", if *negative { "-" } else { "+" }),
            Self::Binary { op, lhs, rhs, .. } => write!(f, "{lhs} {} {rhs}", op.as_str()),
            Self::MinMax { max, lhs, rhs, .. } => {
                write!(f, "{}({lhs}, {rhs})", if *max { "max_of" } else { "min_of" })
            }
            Self::Paren(expr, _) => write!(f, "({expr})"),
        }
    }
}

impl fmt::Display for NumberLiteral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = (self.value * 1000.0).round();
        if self.is_duration && ms.abs() <= crate::duration::MAX_MS as f64 {
            return write!(f, "{}", DurationMs(ms as i64));
        }
        write!(f, "{}", Float(self.value))
    }
}

/// A float as Go's `%v` prints it: shortest, with an exponent below 1e-4 and from 1e21 on.
pub(crate) struct Float(pub(crate) f64);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        if value.is_nan() {
            return f.write_str("NaN");
        }
        if value.is_infinite() {
            return f.write_str(if value > 0.0 { "+Inf" } else { "-Inf" });
        }
        if value == 0.0 || (1e-4..1e21).contains(&value.abs()) {
            return write!(f, "{value}");
        }
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        write!(f, "{digits}e{sign}{exponent:0>2}")
    }
}

impl Expr {
    /// The expression as `format_query` answers it: on one line up to 100 bytes, else indented.
    pub fn prettify(&self) -> String {
        let mut out = String::new();
        pretty(self, 0, &mut out);
        out
    }
}

fn indent(level: usize, out: &mut String) {
    for _ in 0..level {
        out.push_str("  ");
    }
}

/// Recursion is bounded by the parser's limit on levels. Each level prints its subtree once to measure it, and stops
/// going down as soon as it fits a line.
fn pretty(expr: &Expr, level: usize, out: &mut String) {
    // Writing into a String cannot fail.
    if fits(expr) || matches!(expr, Expr::Matrix(_) | Expr::Number(_) | Expr::String(_) | Expr::Vector(_)) {
        indent(level, out);
        let _ = write!(out, "{expr}");
        return;
    }
    match expr {
        Expr::Aggregate(e) => {
            indent(level, out);
            let _ = writeln!(out, "{}(", Head(e));
            if let Some(param) = &e.param {
                pretty(param, level + 1, out);
                out.push_str(",\n");
            }
            pretty(&e.expr, level + 1, out);
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Binary(e) => {
            pretty(&e.lhs, level + 1, out);
            out.push('\n');
            indent(level, out);
            let _ = writeln!(out, "{}", Operator(e));
            pretty(&e.rhs, level + 1, out);
        }
        Expr::Call(e) => {
            indent(level, out);
            let _ = writeln!(out, "{}(", e.function.name);
            for (i, arg) in e.args.iter().enumerate() {
                if i > 0 {
                    out.push_str(",\n");
                }
                pretty(arg, level + 1, out);
            }
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Subquery(e) => {
            pretty(&e.expr, level, out);
            let _ = write!(out, "{}", Window(e));
        }
        Expr::Paren(e) => {
            indent(level, out);
            out.push_str("(\n");
            pretty(&e.expr, level + 1, out);
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Unary(e) => {
            indent(level, out);
            out.push(if e.negative { '-' } else { '+' });
            let mut inner = String::new();
            pretty(&e.expr, level, &mut inner);
            out.push_str(inner.trim_start_matches(' '));
        }
        Expr::Matrix(_) | Expr::Number(_) | Expr::String(_) | Expr::Vector(_) => {}
    }
}

/// Whether the expression fits a line; looks at no more of it than that.
fn fits(expr: &Expr) -> bool {
    struct Room(usize);
    impl fmt::Write for Room {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    write!(Room(LINE), "{expr}").is_ok()
}

#[cfg(test)]
mod tests {
    use crate::parse::{ParseOptions, parse_expr};

    #[track_caller]
    fn check(query: &str, printed: &str) {
        let expr = parse_expr(query, &ParseOptions::ALL).unwrap();
        assert_eq!(expr.to_string(), printed);
        assert_eq!(parse_expr(printed, &ParseOptions::ALL).unwrap().to_string(), printed);
    }

    #[test]
    fn expressions_print_as_prometheus_prints_them() {
        check("sum(x)by(a,b)", "sum by (a, b) (x)");
        check("sum by()(x)", "sum(x)");
        check("sum without(a)(x)", "sum without (a) (x)");
        check("topk(5,x)", "topk(5, x)");
        check("a+on(b)group_left(c)d", "a + on (b) group_left (c) d");
        check("a and ignoring(x)b", "a and ignoring (x) b");
        check("a>bool 1", "a > bool 1");
        check("rate(x{a='b'}[5m]offset 1h)", "rate(x{a=\"b\"}[5m] offset 1h)");
        check("x@10 offset -5m", "x @ 10.000 offset -5m");
        check("x@start()", "x @ start()");
        check("x @ -1", "x @ -1.000");
        check("max_over_time(rate(x[5m])[1h:30s]@end())", "max_over_time(rate(x[5m])[1h:30s] @ end())");
        check("x[1h:]", "x[1h:]");
        check("-x^2", "-x ^ 2");
        check("{\"a.b\",c=~\"d|e\"}", "{__name__=\"a.b\",c=~\"d|e\"}");
        check("{__name__=\"a\"}", "{__name__=\"a\"}");
        check("1e-7+1e30+5m", "1e-07 + 1e+30 + 5m");
        check("x[5m*2]", "x[5m * 2]");
        check("x offset (step()*2)", "x offset (step() * 2)");
        check("a + fill(0) b", "a + fill (0) b");
        check("a + fill_left(-1) fill_right(2) b", "a + fill_left (-1) fill_right (2) b");
        check("rate(x[5m] smoothed)", "rate(x[5m] smoothed)");
    }

    #[test]
    fn long_expressions_are_broken() {
        let long = "a_metric_with_a_long_name_of_its_own";
        let query = format!("sum by (instance) (rate({long}_total[5m])) / on (instance) group_left () {long}_maximum");
        let pretty = parse_expr(&query, &ParseOptions::ALL).unwrap().prettify();
        assert_eq!(
            pretty,
            format!("  sum by (instance) (rate({long}_total[5m]))\n/ on (instance) group_left ()\n  {long}_maximum")
        );
        let nested = format!("histogram_quantile(0.9, sum by (le) (rate({long}_{long}_{long}[5m])))");
        let pretty = parse_expr(&nested, &ParseOptions::ALL).unwrap().prettify();
        let expected = format!(
            "histogram_quantile(\n  0.9,\n  sum by (le) (\n    rate(\n      {long}_{long}_{long}[5m]\n    )\n  )\n)"
        );
        assert_eq!(pretty, expected);
    }
}
