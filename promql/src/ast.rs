//! The syntax tree: what a query says, with the position of every node.

use std::fmt;

use skald_model::{Matcher, Quoted, QuotedBytes};

/// Byte range of a node in the query text: half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// First byte after the node.
    pub end: usize,
}

/// What kind of value an expression yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One float per step.
    Scalar,
    /// A text.
    String,
    /// Instant vector: per step, one element per series.
    Vector,
    /// Range vector: per step, a window of samples per series.
    Matrix,
}

/// An expression.
#[derive(Debug, PartialEq)]
pub enum Expr {
    /// `sum by (a) (x)`
    Aggregate(Aggregate),
    /// `a + b`
    Binary(Binary),
    /// `rate(x[5m])`
    Call(Call),
    /// `x[5m]`
    Matrix(MatrixSelector),
    /// `x[1h:5m]`
    Subquery(Subquery),
    /// `1.5`
    Number(NumberLiteral),
    /// `"text"`
    String(StringLiteral),
    /// `(x)`
    Paren(Paren),
    /// `-x`
    Unary(Unary),
    /// `x{a="b"}`
    Vector(VectorSelector),
}

/// An aggregation over series.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Which.
    pub op: AggregateOp,
    /// What is aggregated.
    pub expr: Box<Expr>,
    /// `k`, `q` or the label name, of the operators that take one.
    pub param: Option<Box<Expr>>,
    /// Labels of the `by` or `without` clause.
    pub grouping: Vec<String>,
    /// Whether the clause is `without`; `by ()` and no clause are the same.
    pub without: bool,
    /// Where.
    pub span: Span,
}

/// The aggregation operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PromQL's own")]
pub enum AggregateOp {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Group,
    Stddev,
    Stdvar,
    Quantile,
    Topk,
    Bottomk,
    CountValues,
    Limitk,
    LimitRatio,
}

/// A binary operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Binary {
    /// Which.
    pub op: BinaryOp,
    /// Left operand.
    pub lhs: Box<Expr>,
    /// Right operand.
    pub rhs: Box<Expr>,
    /// How vectors are matched; `None` unless both sides are vectors.
    pub matching: Option<VectorMatching>,
    /// Whether a comparison yields 0 or 1 instead of filtering.
    pub return_bool: bool,
    /// Where.
    pub span: Span,
    /// Where the operator itself stands.
    pub op_span: Span,
}

/// The binary operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PromQL's own")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Unless,
    /// `</`: keeps the part of a native histogram below the operand.
    TrimUpper,
    /// `>/`: keeps the part of a native histogram above the operand.
    TrimLower,
}

/// How many elements of one side may meet one of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cardinality {
    /// One to one.
    OneToOne,
    /// `group_left`: many left elements to one right element.
    ManyToOne,
    /// `group_right`
    OneToMany,
    /// Set operators.
    ManyToMany,
}

/// The matching clause of a vector-to-vector operation.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorMatching {
    /// How many meet how many.
    pub cardinality: Cardinality,
    /// Labels of the `on` or `ignoring` clause.
    pub labels: Vec<String>,
    /// Whether the clause is `on`.
    pub on: bool,
    /// Labels copied from the "one" side.
    pub include: Vec<String>,
    /// `fill`/`fill_left`: the value of a missing left element.
    pub fill_left: Option<f64>,
    /// `fill`/`fill_right`: the value of a missing right element.
    pub fill_right: Option<f64>,
}

/// A function call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Which, with its signature.
    pub function: &'static crate::functions::Function,
    /// Arguments, already checked against the signature.
    pub args: Vec<Expr>,
    /// Where.
    pub span: Span,
}

/// What `@` fixes the evaluation time to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AtModifier {
    /// `@ 1609746000`, in milliseconds.
    Timestamp(i64),
    /// `@ start()`
    Start,
    /// `@ end()`
    End,
}

/// A duration in a range, an offset or a subquery's step: a literal, or an expression resolved against the query's
/// range and step before evaluation.
#[derive(Debug, Clone, PartialEq)]
pub enum Duration {
    /// Milliseconds; negative only in an offset.
    Literal(i64),
    /// `[5m*2]`, `[step()]`
    Expr(Box<DurationExpr>),
}

/// A duration expression.
#[derive(Debug, Clone, PartialEq)]
pub enum DurationExpr {
    /// A number of seconds (`is_duration`: written with units).
    Number {
        /// Seconds.
        seconds: f64,
        /// Written as `5m` rather than `300`.
        is_duration: bool,
        /// Where.
        span: Span,
    },
    /// `step()`
    Step(Span),
    /// `range()`
    Range(Span),
    /// `-d` or `+d`
    Unary {
        /// Whether the sign is a minus.
        negative: bool,
        /// Operand.
        expr: Box<DurationExpr>,
        /// Where.
        span: Span,
    },
    /// `a * b`
    Binary {
        /// One of `+ - * / % ^`.
        op: BinaryOp,
        /// Left operand.
        lhs: Box<DurationExpr>,
        /// Right operand.
        rhs: Box<DurationExpr>,
        /// Where.
        span: Span,
    },
    /// `min_of(a, b)` or `max_of(a, b)`
    MinMax {
        /// Whether it is `max_of`.
        max: bool,
        /// First operand.
        lhs: Box<DurationExpr>,
        /// Second operand.
        rhs: Box<DurationExpr>,
        /// Where.
        span: Span,
    },
    /// `(d)`
    Paren(Box<DurationExpr>, Span),
}

/// How a selector treats the edges of its window (experimental).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EdgeMode {
    /// Only samples inside the window.
    #[default]
    Plain,
    /// `anchored`
    Anchored,
    /// `smoothed`
    Smoothed,
}

/// An instant selector.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorSelector {
    /// The bare metric name before the braces, if the query wrote one. It also stands in `matchers`.
    pub name: Option<String>,
    /// All conditions, the metric name's among them; at least one does not match the empty string.
    pub matchers: Vec<Matcher>,
    /// As written; positive looks into the past.
    pub offset: Option<Duration>,
    /// `@`, if present.
    pub at: Option<AtModifier>,
    /// `smoothed` or `anchored`.
    pub edges: EdgeMode,
    /// Where.
    pub span: Span,
}

/// A range selector.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixSelector {
    /// The selector it ranges over; carries the offset, `@` and edge mode.
    pub selector: VectorSelector,
    /// Window length.
    pub range: Duration,
    /// Where.
    pub span: Span,
}

/// A subquery.
#[derive(Debug, Clone, PartialEq)]
pub struct Subquery {
    /// What is evaluated on the subquery's own grid.
    pub expr: Box<Expr>,
    /// Window length.
    pub range: Duration,
    /// Grid distance; `None` is the server's default.
    pub step: Option<Duration>,
    /// As written; positive looks into the past.
    pub offset: Option<Duration>,
    /// `@`, if present.
    pub at: Option<AtModifier>,
    /// Where.
    pub span: Span,
}

/// A number.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberLiteral {
    /// Its value.
    pub value: f64,
    /// Whether it was written as a duration (`5m`).
    pub is_duration: bool,
    /// Where.
    pub span: Span,
}

/// A string.
#[derive(Debug, Clone, PartialEq)]
pub struct StringLiteral {
    /// Unescaped; U+FFFD stands for what is not UTF-8.
    pub value: String,
    /// The bytes, if they are not UTF-8: no label name or value.
    pub not_utf8: Option<Box<[u8]>>,
    /// Where.
    pub span: Span,
}

impl fmt::Display for StringLiteral {
    /// Quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.not_utf8 {
            Some(bytes) => QuotedBytes(bytes).fmt(f),
            None => Quoted(&self.value).fmt(f),
        }
    }
}

/// Parentheses.
#[derive(Debug, Clone, PartialEq)]
pub struct Paren {
    /// What they hold.
    pub expr: Box<Expr>,
    /// Where.
    pub span: Span,
}

/// A sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Unary {
    /// Whether it is a minus.
    pub negative: bool,
    /// Operand.
    pub expr: Box<Expr>,
    /// Where.
    pub span: Span,
}

impl Expr {
    /// Where the expression stands in the query text.
    pub fn span(&self) -> Span {
        match self {
            Self::Aggregate(e) => e.span,
            Self::Binary(e) => e.span,
            Self::Call(e) => e.span,
            Self::Matrix(e) => e.span,
            Self::Subquery(e) => e.span,
            Self::Number(e) => e.span,
            Self::String(e) => e.span,
            Self::Paren(e) => e.span,
            Self::Unary(e) => e.span,
            Self::Vector(e) => e.span,
        }
    }

    /// What the expression yields.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Aggregate(_) | Self::Vector(_) => ValueType::Vector,
            Self::Binary(e) => match (e.lhs.value_type(), e.rhs.value_type()) {
                (ValueType::Scalar, ValueType::Scalar) => ValueType::Scalar,
                _ => ValueType::Vector,
            },
            Self::Call(e) => e.function.return_type,
            Self::Matrix(_) | Self::Subquery(_) => ValueType::Matrix,
            Self::Number(_) => ValueType::Scalar,
            Self::String(_) => ValueType::String,
            Self::Paren(e) => e.expr.value_type(),
            Self::Unary(e) => e.expr.value_type(),
        }
    }
}

impl Clone for Expr {
    fn clone(&self) -> Self {
        *copy(self)
    }
}

/// A copy. What derived code would do, but with a tenth of its stack per level: nodes are made by functions that have
/// returned before the next level.
fn copy(expr: &Expr) -> Box<Expr> {
    match expr {
        Expr::Aggregate(e) => {
            let inner = copy(&e.expr);
            copy_aggregate(e, inner, e.param.as_deref().map(copy))
        }
        Expr::Binary(e) => {
            let lhs = copy(&e.lhs);
            copy_binary(e, lhs, copy(&e.rhs))
        }
        Expr::Call(e) => {
            let mut args = Vec::with_capacity(e.args.len());
            for arg in &e.args {
                args.push(copy(arg));
            }
            copy_call(e, args)
        }
        Expr::Subquery(e) => copy_subquery(e, copy(&e.expr)),
        Expr::Paren(e) => copy_paren(e, copy(&e.expr)),
        Expr::Unary(e) => copy_unary(e, copy(&e.expr)),
        Expr::Matrix(_) | Expr::Number(_) | Expr::String(_) | Expr::Vector(_) => copy_leaf(expr),
    }
}

fn copy_aggregate(e: &Aggregate, expr: Box<Expr>, param: Option<Box<Expr>>) -> Box<Expr> {
    let Aggregate { op, expr: _, param: _, grouping, without, span } = e;
    let (op, grouping, without, span) = (*op, grouping.clone(), *without, *span);
    Box::new(Expr::Aggregate(Aggregate { op, expr, param, grouping, without, span }))
}

fn copy_binary(e: &Binary, lhs: Box<Expr>, rhs: Box<Expr>) -> Box<Expr> {
    let Binary { op, lhs: _, rhs: _, matching, return_bool, span, op_span } = e;
    let (op, matching, return_bool, span, op_span) = (*op, matching.clone(), *return_bool, *span, *op_span);
    Box::new(Expr::Binary(Binary { op, lhs, rhs, matching, return_bool, span, op_span }))
}

#[expect(clippy::vec_box, reason = "the boxes are how copies are passed up")]
fn copy_call(e: &Call, args: Vec<Box<Expr>>) -> Box<Expr> {
    let args = args.into_iter().map(|arg| *arg).collect();
    Box::new(Expr::Call(Call { function: e.function, args, span: e.span }))
}

fn copy_subquery(e: &Subquery, expr: Box<Expr>) -> Box<Expr> {
    let Subquery { expr: _, range, step, offset, at, span } = e;
    let (range, step, offset, at, span) = (range.clone(), step.clone(), offset.clone(), *at, *span);
    Box::new(Expr::Subquery(Subquery { expr, range, step, offset, at, span }))
}

fn copy_paren(e: &Paren, expr: Box<Expr>) -> Box<Expr> {
    Box::new(Expr::Paren(Paren { expr, span: e.span }))
}

fn copy_unary(e: &Unary, expr: Box<Expr>) -> Box<Expr> {
    Box::new(Expr::Unary(Unary { negative: e.negative, expr, span: e.span }))
}

fn copy_leaf(expr: &Expr) -> Box<Expr> {
    Box::new(match expr {
        Expr::Matrix(e) => Expr::Matrix(e.clone()),
        Expr::Number(e) => Expr::Number(e.clone()),
        Expr::String(e) => Expr::String(e.clone()),
        Expr::Vector(e) => Expr::Vector(e.clone()),
        other => return copy(other),
    })
}

impl DurationExpr {
    /// Where the expression stands in the query text.
    pub fn span(&self) -> Span {
        match self {
            Self::Number { span, .. }
            | Self::Step(span)
            | Self::Range(span)
            | Self::Unary { span, .. }
            | Self::Binary { span, .. }
            | Self::MinMax { span, .. }
            | Self::Paren(_, span) => *span,
        }
    }
}

impl Expr {
    /// The expressions right below this one, in the order of the text. The selector of a range selector is not among
    /// them: it cannot stand alone.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = &Expr> {
        let (first, second, args): (Option<&Expr>, Option<&Expr>, &[Expr]) = match self {
            Self::Aggregate(e) => (e.param.as_deref(), Some(&e.expr), &[]),
            Self::Binary(e) => (Some(&e.lhs), Some(&e.rhs), &[]),
            Self::Call(e) => (None, None, &e.args),
            Self::Subquery(e) => (Some(&e.expr), None, &[]),
            Self::Paren(e) => (Some(&e.expr), None, &[]),
            Self::Unary(e) => (Some(&e.expr), None, &[]),
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => (None, None, &[]),
        };
        first.into_iter().chain(second).chain(args)
    }

    /// This expression and all below it, each before its children, in the order of the text. Does not recurse.
    pub fn descendants(&self) -> impl Iterator<Item = &Expr> {
        let mut pending = vec![self];
        std::iter::from_fn(move || {
            let expr = pending.pop()?;
            pending.extend(expr.children().rev());
            Some(expr)
        })
    }

    /// Every selector, in the order of the text, those of range selectors included. Does not recurse.
    pub fn selectors(&self) -> impl Iterator<Item = &VectorSelector> {
        self.descendants().filter_map(|expr| match expr {
            Self::Vector(selector) => Some(selector),
            Self::Matrix(matrix) => Some(&matrix.selector),
            _ => None,
        })
    }
}

impl AggregateOp {
    /// As queries write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Count => "count",
            Self::Group => "group",
            Self::Stddev => "stddev",
            Self::Stdvar => "stdvar",
            Self::Quantile => "quantile",
            Self::Topk => "topk",
            Self::Bottomk => "bottomk",
            Self::CountValues => "count_values",
            Self::Limitk => "limitk",
            Self::LimitRatio => "limit_ratio",
        }
    }

    /// Whether it takes a parameter before the vector.
    pub fn has_param(self) -> bool {
        matches!(
            self,
            Self::Quantile | Self::Topk | Self::Bottomk | Self::CountValues | Self::Limitk | Self::LimitRatio
        )
    }
}

impl BinaryOp {
    /// As queries write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Atan2 => "atan2",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
        }
    }

    /// Whether it compares; the trim operators do not.
    pub fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }

    /// Whether it is `and`, `or` or `unless`.
    pub fn is_set_operator(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }
}

impl ValueType {
    /// The word the API answers with: `vector`, `matrix`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "vector",
            Self::Matrix => "matrix",
        }
    }

    /// The words of the documentation and of error messages: `instant vector`, `range vector`.
    pub fn documented(self) -> &'static str {
        match self {
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
            other => other.as_str(),
        }
    }
}
