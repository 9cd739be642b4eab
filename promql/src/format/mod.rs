//! Expressions as text: on one line, as Prometheus prints them, and broken into lines, as its `format_query` does.

use std::fmt::{self, Write as _};

use skald_model::labels::is_identifier;
use skald_model::{GoFloat, METRIC_NAME, MatchOp, Matcher, Quoted};

use crate::ast::{
    Aggregate, AtModifier, Binary, BinaryOp, Cardinality, Duration, DurationExpr, EdgeMode, Expr, NumberLiteral,
    Subquery, VectorMatching, VectorSelector,
};
use crate::duration::DurationMs;
use crate::eval::quantile::format_g;

/// Longest expression that [`Expr::prettify`] leaves on one line, in bytes.
const LINE: usize = 100;

/// Only this function is on the stack once per level: what has no level below it prints through [`Leaf`] and the like,
/// and children are printed without the machinery of `write!` in between.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregate(e) => {
                write_text(f, &Head(e))?;
                f.write_str("(")?;
                if let Some(param) = &e.param {
                    (**param).fmt(f)?;
                    f.write_str(", ")?;
                }
                (*e.expr).fmt(f)?;
                f.write_str(")")
            }
            Self::Binary(e) => {
                if is_infinite_base(e) {
                    f.write_str("Inf")?
                } else {
                    (*e.lhs).fmt(f)?
                }
                f.write_str(" ")?;
                write_text(f, &Operator(e))?;
                f.write_str(" ")?;
                (*e.rhs).fmt(f)
            }
            Self::Call(e) => {
                f.write_str(e.function.name)?;
                f.write_str("(")?;
                for (i, arg) in e.args.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    arg.fmt(f)?;
                }
                f.write_str(")")
            }
            Self::Subquery(e) => {
                (*e.expr).fmt(f)?;
                write_text(f, &Window(e))
            }
            Self::Paren(e) => {
                f.write_str("(")?;
                (*e.expr).fmt(f)?;
                f.write_str(")")
            }
            Self::Unary(e) => {
                f.write_str(if e.negative { "-" } else { "+" })?;
                (*e.expr).fmt(f)
            }
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => write_text(f, &Leaf(self)),
        }
    }
}

/// Whether the left side would print with a plus, which binds less than the power: `+Inf ^ 2` is `+(Inf ^ 2)`.
fn is_infinite_base(e: &Binary) -> bool {
    e.op == BinaryOp::Pow && matches!(&*e.lhs, Expr::Number(number) if number.value == f64::INFINITY)
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &dyn fmt::Display) -> fmt::Result {
    text.fmt(f)
}

/// An expression without expressions below it.
struct Leaf<'a>(&'a Expr);

impl fmt::Display for Leaf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expr::Matrix(e) => {
                write!(f, "{}[{}]{}", Bare(&e.selector), e.range, Edges(e.selector.edges))?;
                write!(f, "{}{}", At(e.selector.at), Offset(e.selector.offset.as_ref()))
            }
            Expr::Vector(e) => write!(f, "{}{}{}{}", Bare(e), At(e.at), Edges(e.edges), Offset(e.offset.as_ref())),
            Expr::Number(e) => write!(f, "{e}"),
            Expr::String(e) => e.fmt(f),
            _ => Ok(()),
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
        // These few words cannot stand there without quotes.
        let reserved = ["without", "inf", "nan"].iter().any(|word| word.eq_ignore_ascii_case(self.0));
        if is_identifier(self.0) && !reserved { f.write_str(self.0) } else { write!(f, "{}", Quoted(self.0)) }
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
            (Some(left), Some(right)) if left.to_bits() == right.to_bits() => write!(f, " fill ({})", format_g(*left)),
            (left, right) => {
                if let Some(left) = left {
                    write!(f, " fill_left ({})", format_g(*left))?;
                }
                if let Some(right) = right {
                    write!(f, " fill_right ({})", format_g(*right))?;
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
        parts.sort_unstable();
        if selector.name.is_none() || !parts.is_empty() {
            write!(f, "{{{}}}", parts.join(","))?;
        }
        Ok(())
    }
}

struct Edges(EdgeMode);

impl fmt::Display for Edges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            EdgeMode::Plain => "",
            EdgeMode::Anchored => " anchored",
            EdgeMode::Smoothed => " smoothed",
        })
    }
}

struct At(Option<AtModifier>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(AtModifier::Start) => f.write_str(" @ start()"),
            Some(AtModifier::End) => f.write_str(" @ end()"),
            Some(AtModifier::Timestamp(ms)) => {
                let sign = if ms < 0 { "-" } else { "" };
                write!(f, " @ {sign}{}.{:03}", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)
            }
        }
    }
}

struct Offset<'a>(Option<&'a Duration>);

impl fmt::Display for Offset<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Duration::Expr(expr)) if ends_early(expr) => write!(f, " offset ({expr})"),
            Some(offset) => write!(f, " offset {offset}"),
        }
    }
}

/// Whether the operators of an offset's duration would be read as those of the expression around it. They are not
/// after a parenthesis.
fn ends_early(expr: &DurationExpr) -> bool {
    let DurationExpr::Binary { lhs, .. } = expr else { return false };
    let mut first = lhs;
    while let DurationExpr::Binary { lhs, .. } = &**first {
        first = lhs;
    }
    !matches!(**first, DurationExpr::Paren(..))
}

/// The brackets of a subquery and what may follow them.
struct Window<'a>(&'a Subquery);

impl fmt::Display for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}:", self.0.range)?;
        if let Some(step) = &self.0.step {
            write!(f, "{step}")?;
        }
        write!(f, "]{}{}", At(self.0.at), Offset(self.0.offset.as_ref()))
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
            Self::Number { seconds, .. } => write!(f, "{}", PlainFloat(*seconds)),
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
        write!(f, "{}", PlainFloat(self.value))
    }
}

/// A float without exponent, as number literals print: shortest digits that mean it.
pub(crate) struct PlainFloat(pub(crate) f64);

impl fmt::Display for PlainFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            value => write!(f, "{}", GoFloat(value)),
        }
    }
}

impl Expr {
    /// The expression as `format_query` answers it: on one line up to 100 bytes, else indented. `None` when it would be
    /// longer than `limit` bytes.
    pub fn prettify(&self, limit: usize) -> Option<String> {
        let mut out = String::new();
        pretty(self, 0, limit, &mut out);
        (out.len() <= limit).then_some(out)
    }
}

fn indent(level: usize, out: &mut String) {
    for _ in 0..level {
        out.push_str("  ");
    }
}

/// Recursion is bounded by the parser's limit on levels. Each level prints its subtree once to measure it, and stops
/// going down as soon as it fits a line. Nothing is added once `out` is longer than `limit`.
fn pretty(expr: &Expr, level: usize, limit: usize, out: &mut String) {
    if out.len() > limit {
        return;
    }
    // Writing into a String cannot fail.
    if matches!(expr, Expr::Subquery(_)) && fits(expr) {
        // Prometheus does not indent these.
        let _ = write!(out, "{expr}");
        return;
    }
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
                pretty(param, level + 1, limit, out);
                out.push_str(",\n");
            }
            pretty(&e.expr, level + 1, limit, out);
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Binary(e) => {
            pretty(&e.lhs, level + 1, limit, out);
            out.push('\n');
            indent(level, out);
            let _ = writeln!(out, "{}", Operator(e));
            pretty(&e.rhs, level + 1, limit, out);
        }
        Expr::Call(e) => {
            indent(level, out);
            let _ = writeln!(out, "{}(", e.function.name);
            for (i, arg) in e.args.iter().enumerate() {
                if i > 0 {
                    out.push_str(",\n");
                }
                pretty(arg, level + 1, limit, out);
            }
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Subquery(e) => {
            pretty(&e.expr, level, limit, out);
            let _ = write!(out, "{}", Window(e));
        }
        Expr::Paren(e) => {
            indent(level, out);
            out.push_str("(\n");
            pretty(&e.expr, level + 1, limit, out);
            out.push('\n');
            indent(level, out);
            out.push(')');
        }
        Expr::Unary(e) => {
            indent(level, out);
            out.push(if e.negative { '-' } else { '+' });
            let mut inner = String::new();
            pretty(&e.expr, level, limit, &mut inner);
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
mod tests;
