//! Operands and operators by precedence, on an explicit stack.
//!
//! The parser alternates between two states: it wants an operand, or it has one. What still waits for an operand to its
//! right (an operator with its left side, a sign, an open parenthesis, a call) is a [`Frame`] on the stack.

use super::error::ParseError;
use super::lexer::Lexer;
use super::literal::{number, unquote, unquote_bytes};
use super::token::{ContextWord, Described, Keyword, Kind, Token};
use super::{GoOn, MAX_DEPTH, MAX_NODES, MAX_REGEX_COST, ParseOptions};
use crate::ast::{
    Aggregate, AggregateOp, Binary, BinaryOp, Call, Cardinality, Expr, NumberLiteral, Paren, Span, StringLiteral,
    Unary, VectorMatching,
};
use crate::duration::parse_duration;
use crate::functions::function;

/// Reads tokens and builds the tree.
pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    peeked: Option<Token>,
    pub(super) options: ParseOptions,
    nodes: usize,
    regex_cost: usize,
    go_on: GoOn<'a>,
    /// Open aggregations: while there are any, unexpected tokens are reported as being in one.
    open_aggregations: usize,
}

/// A finished expression and its number of levels.
pub(super) struct Operand {
    pub(super) expr: Expr,
    pub(super) height: usize,
}

/// Something that waits for the operand being parsed.
enum Frame {
    Paren { start: usize },
    Unary { negative: bool, start: usize },
    Binary { lhs: Operand, op: BinaryOp, op_span: Span, modifiers: Modifiers },
    Args { callee: Callee, args: Vec<Expr>, height: usize },
}

/// Whose arguments are being parsed.
enum Callee {
    Function { name: Token },
    Aggregation { op: AggregateOp, start: usize, grouping: Option<Grouping> },
}

/// A `by` or `without` clause.
struct Grouping {
    labels: Vec<String>,
    without: bool,
    end: usize,
}

/// What stands between an operator and its right operand.
struct Modifiers {
    return_bool: bool,
    matching: VectorMatching,
}

/// How tightly operators bind: a larger number binds tighter.
pub(super) fn precedence(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And | BinaryOp::Unless => 2,
        BinaryOp::Eq
        | BinaryOp::Ne
        | BinaryOp::Lt
        | BinaryOp::Le
        | BinaryOp::Gt
        | BinaryOp::Ge
        | BinaryOp::TrimUpper
        | BinaryOp::TrimLower => 3,
        BinaryOp::Add | BinaryOp::Sub => 4,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Atan2 => 5,
        BinaryOp::Pow => 6,
    }
}

/// A sign binds as multiplication does: `-a ^ b` is `-(a ^ b)`.
const SIGN_PRECEDENCE: u8 = 5;

/// Whether an operator (or sign) of precedence `before` takes the operand between it and a following `op`.
pub(super) fn binds_first(before: u8, op: BinaryOp) -> bool {
    let after = precedence(op);
    before > after || (before == after && op != BinaryOp::Pow)
}

impl<'a> Parser<'a> {
    pub(super) fn new(input: &'a str, options: ParseOptions, go_on: GoOn<'a>) -> Self {
        Self { lexer: Lexer::new(input), peeked: None, options, nodes: 0, regex_cost: 0, go_on, open_aggregations: 0 }
    }

    pub(super) fn peek(&mut self) -> Result<Token, ParseError> {
        match self.peeked {
            Some(token) => Ok(token),
            None => {
                let token = self.lexer.next()?;
                self.peeked = Some(token);
                Ok(token)
            }
        }
    }

    pub(super) fn advance(&mut self) -> Result<Token, ParseError> {
        let token = self.peek()?;
        self.peeked = None;
        Ok(token)
    }

    pub(super) fn text(&self, token: Token) -> &'a str {
        &self.lexer.input()[token.start..token.end]
    }

    pub(super) fn error(&self, span: Span, message: impl Into<String>) -> ParseError {
        ParseError::new(self.lexer.input(), span, message)
    }

    /// The error about a token that cannot stand where it does. An empty context is the one the expression is in.
    pub(super) fn unexpected(&self, token: Token, context: &str, expected: &str) -> ParseError {
        let mut message = format!("unexpected {}", Described { token, text: self.text(token) });
        let context = if context.is_empty() && self.open_aggregations > 0 { "aggregation" } else { context };
        for (word, text) in [(" in ", context), (", expected ", expected)] {
            if !text.is_empty() {
                message.push_str(word);
                message.push_str(text);
            }
        }
        self.error(span_of(token), message)
    }

    /// Counts a node, which `token` begins.
    pub(super) fn add_node(&mut self, token: Token) -> Result<(), ParseError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.error(span_of(token), format!("query has more parts than the limit of {MAX_NODES}")));
        }
        Ok(())
    }

    /// Whether anybody waits for the next regex.
    pub(super) fn before_regex(&self, span: Span) -> Result<(), ParseError> {
        if (self.go_on)() { Ok(()) } else { Err(self.error(span, "nobody waits for the query any more")) }
    }

    /// Counts what the regexes of the query hold.
    pub(super) fn add_regex_cost(&mut self, cost: usize, span: Span) -> Result<(), ParseError> {
        self.regex_cost = self.regex_cost.saturating_add(cost);
        if self.regex_cost > MAX_REGEX_COST {
            let message = format!("regexes of the query are larger together than the limit of {MAX_REGEX_COST} states");
            return Err(self.error(span, message));
        }
        Ok(())
    }

    /// The node above operands of which the highest has `height` levels.
    pub(super) fn above(&self, height: usize, expr: Expr) -> Result<Operand, ParseError> {
        if height >= MAX_DEPTH {
            return Err(self.too_deep(expr.span()));
        }
        Ok(Operand { expr, height: height + 1 })
    }

    fn too_deep(&self, span: Span) -> ParseError {
        self.error(span, format!("query is nested deeper than the limit of {MAX_DEPTH} levels"))
    }

    /// A whole query.
    pub(super) fn expression(&mut self) -> Result<Expr, ParseError> {
        let mut frames = Vec::new();
        loop {
            let Some(mut operand) = self.operand(&mut frames)? else { continue };
            loop {
                operand = self.postfix(operand)?;
                let token = self.peek()?;
                if let Kind::Operator(op) = token.kind {
                    let lhs = self.reduce(&mut frames, operand, |before| binds_first(before, op))?;
                    self.advance()?;
                    let modifiers = self.modifiers()?;
                    self.push(&mut frames, token, Frame::Binary { lhs, op, op_span: span_of(token), modifiers })?;
                    break;
                }
                operand = self.reduce(&mut frames, operand, |_| true)?;
                match self.close(&mut frames, operand)? {
                    Closed::Operand(closed) => operand = closed,
                    Closed::Argument => break,
                    Closed::End(expr) => return Ok(expr),
                }
            }
        }
    }

    fn push(&mut self, frames: &mut Vec<Frame>, token: Token, frame: Frame) -> Result<(), ParseError> {
        self.add_node(token)?;
        // Every frame becomes a level above the operand to come.
        if frames.len() + 1 >= MAX_DEPTH {
            return Err(self.too_deep(span_of(token)));
        }
        frames.push(frame);
        Ok(())
    }

    /// Reads an operand without modifiers, or pushes what comes before one.
    fn operand(&mut self, frames: &mut Vec<Frame>) -> Result<Option<Operand>, ParseError> {
        let token = self.advance()?;
        if let Some(negative) = token.kind.sign() {
            self.push(frames, token, Frame::Unary { negative, start: token.start })?;
            return Ok(None);
        }
        let expr = match token.kind {
            Kind::LeftParen => {
                self.push(frames, token, Frame::Paren { start: token.start })?;
                return Ok(None);
            }
            Kind::Number | Kind::Duration => {
                self.add_node(token)?;
                Expr::Number(self.number(token)?)
            }
            Kind::String => {
                self.add_node(token)?;
                let text = self.text(token);
                let not_utf8 = unquote_bytes(text).err().map(Vec::into_boxed_slice);
                Expr::String(StringLiteral { value: unquote(text), not_utf8, span: span_of(token) })
            }
            Kind::Aggregator(op) if self.aggregation_follows()? => {
                return self.open_aggregation(frames, op, token);
            }
            Kind::Identifier | Kind::Context(_) if self.peek()?.kind == Kind::LeftParen => {
                self.advance()?;
                return self.open_args(frames, Callee::Function { name: token });
            }
            kind if kind.is_metric_name() || kind == Kind::LeftBrace => Expr::Vector(self.vector_selector(token)?),
            _ => return Err(self.unexpected(token, "", "")),
        };
        Ok(Some(Operand { expr, height: 1 }))
    }

    /// A number, or a duration as a number of seconds.
    pub(super) fn number(&self, token: Token) -> Result<NumberLiteral, ParseError> {
        let (text, span) = (self.text(token), span_of(token));
        let is_duration = token.kind == Kind::Duration;
        let value =
            if is_duration { parse_duration(text).map(seconds).map_err(|e| e.to_string()) } else { number(text) };
        let value = value.map_err(|message| self.error(span, message))?;
        Ok(NumberLiteral { value, is_duration, span })
    }

    /// Whether the aggregator just read is one, rather than a metric of that name.
    fn aggregation_follows(&mut self) -> Result<bool, ParseError> {
        let next = self.peek()?.kind;
        Ok(matches!(next, Kind::LeftParen | Kind::Keyword(Keyword::By | Keyword::Without)))
    }

    fn open_aggregation(
        &mut self,
        frames: &mut Vec<Frame>,
        op: AggregateOp,
        token: Token,
    ) -> Result<Option<Operand>, ParseError> {
        self.open_aggregations += 1;
        let grouping = self.grouping()?;
        let paren = self.advance()?;
        if paren.kind != Kind::LeftParen {
            return Err(self.unexpected(paren, "", ""));
        }
        self.open_args(frames, Callee::Aggregation { op, start: token.start, grouping })
    }

    /// A `by` or `without` clause, if one comes next.
    fn grouping(&mut self) -> Result<Option<Grouping>, ParseError> {
        let without = match self.peek()?.kind {
            Kind::Keyword(Keyword::By) => false,
            Kind::Keyword(Keyword::Without) => true,
            _ => return Ok(None),
        };
        self.advance()?;
        let (labels, end) = self.label_list()?;
        Ok(Some(Grouping { labels, without, end }))
    }

    /// Starts a list of arguments whose parenthesis has been consumed; a call without any is finished at once.
    fn open_args(&mut self, frames: &mut Vec<Frame>, callee: Callee) -> Result<Option<Operand>, ParseError> {
        let next = self.peek()?;
        if next.kind == Kind::RightParen {
            self.add_node(next)?;
            self.advance()?;
            return self.call(callee, Vec::new(), 0, next.end).map(Some);
        }
        self.push(frames, next, Frame::Args { callee, args: Vec::new(), height: 0 })?;
        Ok(None)
    }

    /// Finishes the operators on top of the stack that `first` says bind before what follows the operand.
    fn reduce(
        &mut self,
        frames: &mut Vec<Frame>,
        mut operand: Operand,
        first: impl Fn(u8) -> bool,
    ) -> Result<Operand, ParseError> {
        while let Some(frame) = frames.pop() {
            operand = match frame {
                Frame::Unary { negative, start } if first(SIGN_PRECEDENCE) => self.unary(negative, start, operand)?,
                Frame::Binary { lhs, op, op_span, modifiers } if first(precedence(op)) => {
                    self.binary(lhs, op, op_span, modifiers, operand)?
                }
                frame => {
                    frames.push(frame);
                    break;
                }
            };
        }
        Ok(operand)
    }

    fn unary(&self, negative: bool, start: usize, operand: Operand) -> Result<Operand, ParseError> {
        let span = Span { start, end: operand.expr.span().end };
        match operand.expr {
            Expr::Number(literal) => {
                let value = if negative { -literal.value } else { literal.value };
                Ok(Operand { expr: Expr::Number(NumberLiteral { value, span, ..literal }), height: operand.height })
            }
            expr => self.above(operand.height, Expr::Unary(Unary { negative, expr: Box::new(expr), span })),
        }
    }

    fn binary(
        &self,
        lhs: Operand,
        op: BinaryOp,
        op_span: Span,
        modifiers: Modifiers,
        rhs: Operand,
    ) -> Result<Operand, ParseError> {
        let span = Span { start: lhs.expr.span().start, end: rhs.expr.span().end };
        let Modifiers { return_bool, matching } = modifiers;
        let fills = matching.fill_left.is_some() || matching.fill_right.is_some();
        if fills && !self.options.binary_fill_modifiers {
            return Err(self.error(span, "binop fill modifiers are experimental and not enabled"));
        }
        let (lhs_expr, rhs_expr) = (Box::new(lhs.expr), Box::new(rhs.expr));
        // The check of types removes what does not apply.
        let matching = Some(matching);
        let binary = Binary { op, lhs: lhs_expr, rhs: rhs_expr, matching, return_bool, span, op_span };
        self.above(lhs.height.max(rhs.height), Expr::Binary(binary))
    }

    /// What an operand that no operator waits for ends: a parenthesis, an argument, or the query.
    fn close(&mut self, frames: &mut Vec<Frame>, operand: Operand) -> Result<Closed, ParseError> {
        let token = self.peek()?;
        let closed = match frames.pop() {
            None if token.kind == Kind::Eof => return Ok(Closed::End(operand.expr)),
            None => return Err(self.unexpected(token, "", "")),
            Some(_) if !matches!(token.kind, Kind::RightParen | Kind::Comma) => {
                return Err(self.unexpected(token, "", ""));
            }
            Some(Frame::Args { callee, mut args, height }) => {
                let height = height.max(operand.height);
                args.push(operand.expr);
                self.advance()?;
                if token.kind == Kind::RightParen {
                    self.call(callee, args, height, token.end)?
                } else if self.peek()?.kind.starts_expression() {
                    frames.push(Frame::Args { callee, args, height });
                    return Ok(Closed::Argument);
                } else {
                    return Err(self.error(span_of(token), "trailing commas not allowed in function call args"));
                }
            }
            Some(Frame::Paren { start }) if token.kind == Kind::RightParen => {
                self.advance()?;
                let paren = Paren { expr: Box::new(operand.expr), span: Span { start, end: token.end } };
                self.above(operand.height, Expr::Paren(paren))?
            }
            Some(Frame::Paren { .. } | Frame::Unary { .. } | Frame::Binary { .. }) => {
                return Err(self.unexpected(token, "", ""));
            }
        };
        Ok(Closed::Operand(closed))
    }

    fn call(&mut self, callee: Callee, args: Vec<Expr>, height: usize, end: usize) -> Result<Operand, ParseError> {
        match callee {
            Callee::Function { name } => self.function_call(name, args, height, end),
            Callee::Aggregation { op, start, grouping } => {
                let grouping = if grouping.is_some() { grouping } else { self.grouping()? };
                self.open_aggregations -= 1;
                self.aggregate(op, start, grouping, args, height, end)
            }
        }
    }

    fn function_call(&self, name: Token, args: Vec<Expr>, height: usize, end: usize) -> Result<Operand, ParseError> {
        let quoted = skald_model::Quoted(self.text(name));
        let Some(function) = function(self.text(name)) else {
            return Err(self.error(span_of(name), format!("unknown function with name {quoted}")));
        };
        if function.experimental && !self.options.experimental_functions {
            return Err(self.error(span_of(name), format!("function {quoted} is not enabled")));
        }
        self.above(height, Expr::Call(Call { function, args, span: Span { start: name.start, end } }))
    }

    fn aggregate(
        &self,
        op: AggregateOp,
        start: usize,
        grouping: Option<Grouping>,
        mut args: Vec<Expr>,
        height: usize,
        args_end: usize,
    ) -> Result<Operand, ParseError> {
        let end = grouping.as_ref().map_or(args_end, |g| g.end.max(args_end));
        let span = Span { start, end };
        if args.is_empty() {
            return Err(self.error(span, "no arguments for aggregate expression provided"));
        }
        if matches!(op, AggregateOp::Limitk | AggregateOp::LimitRatio) && !self.options.experimental_functions {
            let feature = "--enable-feature=promql-experimental-functions";
            let message = format!("{}() is experimental and must be enabled with {feature}", op.as_str());
            return Err(self.error(span, message));
        }
        let expected = if op.has_param() { 2 } else { 1 };
        let count = args.len();
        let (Some(expr), true) = (args.pop(), count == expected) else {
            let what = "wrong number of arguments for aggregate expression provided";
            return Err(self.error(span, format!("{what}, expected {expected}, got {count}")));
        };
        let (grouping, without) = grouping.map_or_else(Default::default, |g| (g.labels, g.without));
        let (expr, param) = (Box::new(expr), args.pop().map(Box::new));
        self.above(height, Expr::Aggregate(Aggregate { op, expr, param, grouping, without, span }))
    }

    /// What may follow an operator: `bool`, matching, grouping, fill values.
    fn modifiers(&mut self) -> Result<Modifiers, ParseError> {
        let return_bool = self.accept_keyword(Keyword::Bool)?.is_some();
        let mut matching = VectorMatching {
            cardinality: Cardinality::OneToOne,
            labels: Vec::new(),
            on: false,
            include: Vec::new(),
            fill_left: None,
            fill_right: None,
        };
        if let Kind::Keyword(word @ (Keyword::On | Keyword::Ignoring)) = self.peek()?.kind {
            self.advance()?;
            matching.on = word == Keyword::On;
            matching.labels = self.label_list()?.0;
            if let Kind::Keyword(word @ (Keyword::GroupLeft | Keyword::GroupRight)) = self.peek()?.kind {
                self.advance()?;
                let left = word == Keyword::GroupLeft;
                matching.cardinality = if left { Cardinality::ManyToOne } else { Cardinality::OneToMany };
                let next = self.peek()?.kind;
                if next == Kind::LeftParen || !next.starts_expression() {
                    matching.include = self.label_list()?.0;
                }
            }
        }
        if self.accept_keyword(Keyword::Fill)?.is_some() {
            let value = Some(self.fill_value()?);
            (matching.fill_left, matching.fill_right) = (value, value);
        } else if self.accept_keyword(Keyword::FillLeft)?.is_some() {
            matching.fill_left = Some(self.fill_value()?);
            if self.accept_keyword(Keyword::FillRight)?.is_some() {
                matching.fill_right = Some(self.fill_value()?);
            }
        } else if self.accept_keyword(Keyword::FillRight)?.is_some() {
            matching.fill_right = Some(self.fill_value()?);
            if self.accept_keyword(Keyword::FillLeft)?.is_some() {
                matching.fill_left = Some(self.fill_value()?);
            }
        }
        Ok(Modifiers { return_bool, matching })
    }

    /// A number in parentheses.
    fn fill_value(&mut self) -> Result<f64, ParseError> {
        let open = self.advance()?;
        if open.kind != Kind::LeftParen {
            return Err(self.unexpected(open, "", ""));
        }
        let (value, _) = self.signed_number("", "")?;
        let close = self.advance()?;
        if close.kind != Kind::RightParen {
            return Err(self.unexpected(close, "", ""));
        }
        Ok(value)
    }

    /// A number or duration with at most one sign, and where it ends.
    pub(super) fn signed_number(&mut self, context: &str, expected: &str) -> Result<(f64, usize), ParseError> {
        let mut token = self.advance()?;
        let sign = token.kind.sign();
        if sign.is_some() {
            token = self.advance()?;
        }
        if !matches!(token.kind, Kind::Number | Kind::Duration) {
            return Err(self.unexpected(token, context, expected));
        }
        let value = self.number(token)?.value;
        Ok((if sign == Some(true) { -value } else { value }, token.end))
    }

    /// Consumes `word ( )`, of which `word` is already consumed; returns the end.
    pub(super) fn empty_parens(&mut self, context: &str, expected: &str) -> Result<usize, ParseError> {
        let mut end = 0;
        for kind in [Kind::LeftParen, Kind::RightParen] {
            let token = self.advance()?;
            if token.kind != kind {
                return Err(self.unexpected(token, context, expected));
            }
            end = token.end;
        }
        Ok(end)
    }

    /// The word of `start()` or `end()`, if one comes next.
    pub(super) fn accept_start_or_end(&mut self) -> Result<Option<ContextWord>, ParseError> {
        match self.peek()?.kind {
            Kind::Context(word @ (ContextWord::Start | ContextWord::End)) => {
                self.advance()?;
                Ok(Some(word))
            }
            _ => Ok(None),
        }
    }
}

/// What [`Parser::close`] came to.
enum Closed {
    Operand(Operand),
    Argument,
    End(Expr),
}

pub(super) fn span_of(token: Token) -> Span {
    Span { start: token.start, end: token.end }
}

/// Milliseconds as seconds, to the bit as Go's `Duration.Seconds` gives them.
#[expect(clippy::cast_precision_loss, reason = "both parts are small enough to be exact")]
fn seconds(ms: i64) -> f64 {
    (ms / 1000) as f64 + ((ms % 1000) * 1_000_000) as f64 / 1e9
}
