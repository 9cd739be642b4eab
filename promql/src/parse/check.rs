//! The check of types, and of what grammar alone cannot say.

use skald_model::{METRIC_NAME, Quoted};

use super::error::ParseError;
use crate::ast::{
    Aggregate, AggregateOp, Binary, Call, Cardinality, Expr, Span, Subquery, Unary, ValueType, VectorSelector,
};

/// Checks a whole tree in the order in which Prometheus does, so that of several errors the same one is reported.
pub(super) struct Checker<'a> {
    pub(super) input: &'a str,
}

/// The error is boxed because these results lie on the stack once per level.
type Checked<T = ValueType> = Result<T, Box<ParseError>>;

impl Checker<'_> {
    /// Checks `expr` and all below it; normalises the matching of binary operations.
    ///
    /// Recursive: a tree has at most [`super::MAX_DEPTH`] levels. Only this function and [`Self::args`] are on the stack
    /// once per level, so they leave everything else to functions that return before the next level.
    pub(super) fn check(&self, expr: &mut Expr) -> Checked {
        match expr {
            Expr::Aggregate(e) => {
                let ty = self.check(&mut e.expr)?;
                self.aggregated(e, ty)?;
                if let Some(param) = &mut e.param {
                    let ty = self.check(param)?;
                    self.aggregation_param(e, ty)?;
                }
                Ok(ValueType::Vector)
            }
            Expr::Binary(e) => {
                let lhs = self.check(&mut e.lhs)?;
                let rhs = self.check(&mut e.rhs)?;
                self.binary(e, lhs, rhs)
            }
            Expr::Call(e) => {
                self.arg_count(e)?;
                self.args(e)?;
                Ok(e.function.return_type)
            }
            Expr::Matrix(e) => self.selector(&e.selector, ValueType::Matrix),
            Expr::Vector(e) => self.selector(e, ValueType::Vector),
            Expr::Number(_) => Ok(ValueType::Scalar),
            Expr::String(_) => Ok(ValueType::String),
            Expr::Paren(e) => self.check(&mut e.expr),
            Expr::Unary(e) => {
                let ty = self.check(&mut e.expr)?;
                self.unary(e, ty)
            }
            Expr::Subquery(e) => {
                let ty = self.check(&mut e.expr)?;
                self.subquery(e, ty)
            }
        }
    }

    fn args(&self, e: &mut Call) -> Checked<()> {
        for i in 0..e.args.len() {
            // The label selector of info() may match the empty value.
            if i == 1 && e.function.name == "info" {
                continue;
            }
            let ty = self.check(&mut e.args[i])?;
            self.arg(e, i, ty)?;
        }
        Ok(())
    }

    fn fail<T>(&self, span: Span, message: impl Into<String>) -> Checked<T> {
        Err(Box::new(ParseError::new(self.input, span, message)))
    }

    fn expect(&self, span: Span, want: ValueType, context: &str, got: ValueType) -> Checked<()> {
        if got == want {
            return Ok(());
        }
        self.fail(span, format!("expected type {} in {context}, got {}", want.documented(), got.documented()))
    }

    fn aggregated(&self, e: &Aggregate, ty: ValueType) -> Checked<()> {
        self.expect(e.expr.span(), ValueType::Vector, "aggregation expression", ty)
    }

    fn aggregation_param(&self, e: &Aggregate, ty: ValueType) -> Checked<()> {
        let Some(param) = &e.param else { return Ok(()) };
        let want = if e.op == AggregateOp::CountValues { ValueType::String } else { ValueType::Scalar };
        self.expect(param.span(), want, "aggregation parameter", ty)
    }

    fn unary(&self, e: &Unary, ty: ValueType) -> Checked {
        if matches!(ty, ValueType::Scalar | ValueType::Vector) {
            return Ok(ty);
        }
        let what = "unary expression only allowed on expressions of type scalar or instant vector";
        self.fail(e.span, format!("{what}, got {}", Quoted(ty.documented())))
    }

    fn subquery(&self, e: &Subquery, ty: ValueType) -> Checked {
        if ty == ValueType::Vector {
            return Ok(ValueType::Matrix);
        }
        self.fail(e.span, format!("subquery is only allowed on instant vector, got {} instead", ty.as_str()))
    }

    fn binary(&self, e: &mut Binary, lhs: ValueType, rhs: ValueType) -> Checked {
        // What is between the operands, without the blanks at its start; a comment there counts.
        let start = e.lhs.span().end;
        let between = self.input.as_bytes().get(start..).unwrap_or_default();
        let blanks = between.iter().take_while(|b| b" \t\n\r".contains(b)).count();
        let operator = Span { start: start + blanks, end: e.rhs.span().start };
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

    fn arg_count(&self, e: &Call) -> Checked<()> {
        let function = e.function;
        let name = Quoted(function.name);
        let (min, max, got) = (function.min_args(), function.max_args(), e.args.len());
        let (how, count) = match max {
            Some(max) if max == min && got != min => ("", min),
            _ if got < min => ("at least ", min),
            Some(max) if got > max => ("at most ", max),
            _ => return self.info_labels(e),
        };
        self.fail(e.span, format!("expected {how}{count} argument(s) in call to {name}, got {got}"))
    }

    /// The second argument of `info` is not a vector but the labels of one.
    fn info_labels(&self, e: &Call) -> Checked<()> {
        let (Some(labels), "info") = (e.args.get(1), e.function.name) else { return Ok(()) };
        self.expect(e.span, ValueType::Vector, r#"call to function "info""#, labels.value_type())?;
        match labels {
            Expr::Vector(VectorSelector { name: None, .. }) => Ok(()),
            Expr::Vector(_) => self.fail(labels.span(), "expected label selectors only, got vector selector instead"),
            _ => self.fail(labels.span(), "expected label selectors only"),
        }
    }

    fn arg(&self, e: &Call, i: usize, ty: ValueType) -> Checked<()> {
        match e.function.arg_type(i) {
            Some(want) if want != ty => {
                self.expect(e.args[i].span(), want, &format!("call to function {}", Quoted(e.function.name)), ty)
            }
            _ => Ok(()),
        }
    }

    fn selector(&self, e: &VectorSelector, ty: ValueType) -> Checked {
        if let Some(name) = &e.name {
            // The last matcher is that of the bare name.
            let others = &e.matchers[..e.matchers.len().saturating_sub(1)];
            if let Some(other) = others.iter().find(|m| m.name() == METRIC_NAME) {
                let (first, second) = (Quoted(name), Quoted(other.value()));
                return self.fail(e.span, format!("metric name must not be set twice: {first} or {second}"));
            }
            return Ok(ty);
        }
        if e.matchers.iter().all(|m| m.matches_empty()) {
            return self.fail(e.span, "vector selector must contain at least one non-empty matcher");
        }
        Ok(ty)
    }
}
