//! The check of types, and of what grammar alone cannot say.

use skald_model::{METRIC_NAME, Quoted};

use super::error::ParseError;
use crate::ast::{Aggregate, AggregateOp, Binary, Call, Cardinality, Expr, Span, ValueType, VectorSelector};

/// Checks a whole tree in the order in which Prometheus does, so that of several errors the same one is reported.
pub(super) struct Checker<'a> {
    pub(super) input: &'a str,
}

type Checked<T = ValueType> = Result<T, ParseError>;

impl Checker<'_> {
    /// Checks `expr` and all below it; normalises the matching of binary operations. Recursive: a tree has at most
    /// [`super::MAX_DEPTH`] levels.
    pub(super) fn check(&self, expr: &mut Expr) -> Checked {
        match expr {
            Expr::Aggregate(e) => self.aggregate(e),
            Expr::Binary(e) => self.binary(e),
            Expr::Call(e) => self.call(e),
            Expr::Matrix(e) => self.selector(&e.selector).map(|()| ValueType::Matrix),
            Expr::Vector(e) => self.selector(e).map(|()| ValueType::Vector),
            Expr::Number(_) => Ok(ValueType::Scalar),
            Expr::String(_) => Ok(ValueType::String),
            Expr::Paren(e) => self.check(&mut e.expr),
            Expr::Unary(e) => {
                let ty = self.check(&mut e.expr)?;
                if matches!(ty, ValueType::Scalar | ValueType::Vector) {
                    return Ok(ty);
                }
                let what = "unary expression only allowed on expressions of type scalar or instant vector";
                self.fail(e.span, format!("{what}, got {}", Quoted(ty.documented())))
            }
            Expr::Subquery(e) => match self.check(&mut e.expr)? {
                ValueType::Vector => Ok(ValueType::Matrix),
                ty => {
                    let message = format!("subquery is only allowed on instant vector, got {} instead", ty.as_str());
                    self.fail(e.span, message)
                }
            },
        }
    }

    fn fail<T>(&self, span: Span, message: impl Into<String>) -> Checked<T> {
        Err(ParseError::new(self.input, span, message))
    }

    fn expect(&self, expr: &mut Expr, want: ValueType, context: &str) -> Checked<()> {
        let got = self.check(expr)?;
        if got == want { Ok(()) } else { self.wrong_type(expr.span(), want, context, got) }
    }

    fn wrong_type<T>(&self, span: Span, want: ValueType, context: &str, got: ValueType) -> Checked<T> {
        self.fail(span, format!("expected type {} in {context}, got {}", want.documented(), got.documented()))
    }

    fn aggregate(&self, e: &mut Aggregate) -> Checked {
        self.expect(&mut e.expr, ValueType::Vector, "aggregation expression")?;
        if let Some(param) = &mut e.param {
            let want = if e.op == AggregateOp::CountValues { ValueType::String } else { ValueType::Scalar };
            self.expect(param, want, "aggregation parameter")?;
        }
        Ok(ValueType::Vector)
    }

    fn binary(&self, e: &mut Binary) -> Checked {
        let lhs = self.check(&mut e.lhs)?;
        let rhs = self.check(&mut e.rhs)?;
        // From the operator to the right operand's first byte, blanks excluded.
        let operator = Span { start: e.op_span.start, end: e.rhs.span().start };
        let scalars = lhs == ValueType::Scalar && rhs == ValueType::Scalar;
        if e.return_bool && !e.op.is_comparison() {
            return self.fail(operator, "bool modifier can only be used on comparison operators");
        }
        if e.op.is_comparison() && !e.return_bool && scalars {
            return self.fail(operator, "comparisons between scalars must use BOOL modifier");
        }
        if let Some(matching) = e.matching.as_ref().filter(|m| m.on)
            && let Some(label) = matching.labels.iter().find(|l| matching.include.contains(l))
        {
            let message = format!("label {} must not occur in ON and GROUP clause at once", Quoted(label));
            return self.fail(operator, message);
        }
        for (ty, operand) in [(lhs, &e.lhs), (rhs, &e.rhs)] {
            if !matches!(ty, ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types";
                return self.fail(operand.span(), message);
            }
        }
        let vectors = lhs == ValueType::Vector && rhs == ValueType::Vector;
        self.matching(e, vectors)?;
        if !vectors && e.op.is_set_operator() {
            let op = Quoted(e.op.as_str());
            return self.fail(e.span, format!("set operator {op} not allowed in binary scalar expression"));
        }
        Ok(if scalars { ValueType::Scalar } else { ValueType::Vector })
    }

    fn matching(&self, e: &mut Binary, vectors: bool) -> Checked<()> {
        let Some(matching) = &mut e.matching else { return Ok(()) };
        let fills = matching.fill_left.is_some() || matching.fill_right.is_some();
        if !vectors {
            if !matching.labels.is_empty() {
                return self.fail(e.span, "vector matching only allowed between instant vectors");
            }
            if fills {
                return self.fail(e.span, "filling in missing series only allowed between instant vectors");
            }
            e.matching = None;
        } else if e.op.is_set_operator() {
            if matching.cardinality != Cardinality::OneToOne {
                let op = Quoted(e.op.as_str());
                return self.fail(e.span, format!("no grouping allowed for {op} operation"));
            }
            if fills {
                return self.fail(e.span, "filling in missing series not allowed for set operators");
            }
            matching.cardinality = Cardinality::ManyToMany;
        }
        Ok(())
    }

    fn call(&self, e: &mut Call) -> Checked {
        let function = e.function;
        let name = Quoted(function.name);
        let (min, max, got) = (function.min_args(), function.max_args(), e.args.len());
        let wrong_count = |how: &str, count: usize| {
            self.fail(e.span, format!("expected {how}{count} argument(s) in call to {name}, got {got}"))
        };
        match max {
            Some(max) if max == min && got != min => return wrong_count("", min),
            _ if got < min => return wrong_count("at least ", min),
            Some(max) if got > max => return wrong_count("at most ", max),
            _ => {}
        }
        let context = format!("call to function {name}");
        let info = function.name == "info";
        if info && let Some(labels) = e.args.get(1) {
            if labels.value_type() != ValueType::Vector {
                return self.wrong_type(e.span, ValueType::Vector, &context, labels.value_type());
            }
            match labels {
                Expr::Vector(VectorSelector { name: None, .. }) => {}
                Expr::Vector(_) => {
                    let message = "expected label selectors only, got vector selector instead";
                    return self.fail(labels.span(), message);
                }
                _ => return self.fail(labels.span(), "expected label selectors only"),
            }
        }
        for (i, arg) in e.args.iter_mut().enumerate() {
            // The label selector of info() may match the empty value.
            if info && i == 1 {
                continue;
            }
            if let Some(want) = function.arg_type(i) {
                self.expect(arg, want, &context)?;
            }
        }
        Ok(function.return_type)
    }

    fn selector(&self, e: &VectorSelector) -> Checked<()> {
        if let Some(name) = &e.name {
            // The last matcher is that of the bare name.
            let others = &e.matchers[..e.matchers.len().saturating_sub(1)];
            if let Some(other) = others.iter().find(|m| m.name() == METRIC_NAME) {
                let (first, second) = (Quoted(name), Quoted(other.value()));
                return self.fail(e.span, format!("metric name must not be set twice: {first} or {second}"));
            }
            return Ok(());
        }
        if e.matchers.iter().all(|m| m.matches_empty()) {
            return self.fail(e.span, "vector selector must contain at least one non-empty matcher");
        }
        Ok(())
    }
}
