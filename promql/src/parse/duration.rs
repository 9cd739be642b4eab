//! What follows an operand: ranges, subqueries, offsets, `@`, edge modes; and the durations in them.

use super::MAX_DURATION_DEPTH;
use super::error::ParseError;
use super::expression::{Operand, Parser, binds_first, span_of};
use super::token::{ContextWord, Keyword, Kind, Token};
use crate::ast::{
    AtModifier, BinaryOp, Duration, DurationExpr, EdgeMode, Expr, MatrixSelector, NumberLiteral, Span, Subquery,
};

const DURATION: &str = "number, duration, step(), or range()";

/// A duration as parsed; `height` is its number of levels.
struct Parsed {
    expr: DurationExpr,
    height: usize,
}

/// The parts of a selector or subquery that modifiers change.
struct Modified<'e> {
    offset: &'e mut Option<Duration>,
    at: &'e mut Option<AtModifier>,
    end: &'e mut usize,
}

impl Parser<'_> {
    /// Applies every modifier that follows `operand`.
    pub(super) fn postfix(&mut self, mut operand: Operand) -> Result<Operand, ParseError> {
        loop {
            let token = self.peek()?;
            match token.kind {
                Kind::LeftBracket => operand = self.range_or_subquery(operand)?,
                Kind::At => self.at_modifier(&mut operand.expr)?,
                Kind::Keyword(Keyword::Offset) => self.offset(&mut operand.expr)?,
                Kind::Keyword(Keyword::Anchored) => self.edges(&mut operand.expr, EdgeMode::Anchored)?,
                Kind::Keyword(Keyword::Smoothed) => self.edges(&mut operand.expr, EdgeMode::Smoothed)?,
                _ => return Ok(operand),
            }
        }
    }

    fn range_or_subquery(&mut self, operand: Operand) -> Result<Operand, ParseError> {
        let open = self.advance()?;
        self.add_node(open)?;
        let range = self.bracket_duration("subquery or range selector", DURATION)?;
        let token = self.advance()?;
        match token.kind {
            Kind::RightBracket => self.matrix(operand, range, Span { start: open.start, end: token.end }),
            Kind::Colon => self.subquery(operand, range),
            _ => Err(self.unexpected(token, "subquery or range", r#"":" or "]""#)),
        }
    }

    fn matrix(&self, operand: Operand, range: Duration, brackets: Span) -> Result<Operand, ParseError> {
        let Expr::Vector(selector) = operand.expr else {
            return Err(self.error(brackets, "ranges only allowed for vector selectors"));
        };
        if selector.offset.is_some() {
            return Err(self.error(brackets, "no offset modifiers allowed before range"));
        }
        if selector.at.is_some() {
            return Err(self.error(brackets, "no @ modifiers allowed before range"));
        }
        let span = Span { start: selector.span.start, end: brackets.end };
        Ok(Operand { expr: Expr::Matrix(MatrixSelector { selector, range, span }), height: operand.height })
    }

    fn subquery(&mut self, operand: Operand, range: Duration) -> Result<Operand, ParseError> {
        const CONTEXT: &str = "subquery selector";
        let mut step = None;
        if self.peek()?.kind != Kind::RightBracket {
            step = Some(self.bracket_duration(CONTEXT, r#"number, duration, step(), range(), or "]""#)?);
        }
        let close = self.advance()?;
        if close.kind != Kind::RightBracket {
            return Err(self.unexpected(close, CONTEXT, r#""]""#));
        }
        let span = Span { start: operand.expr.span().start, end: close.end };
        let expr = Box::new(operand.expr);
        self.above(operand.height, Expr::Subquery(Subquery { expr, range, step, offset: None, at: None, span }))
    }

    /// A duration inside brackets, which must be positive if it is a plain number.
    fn bracket_duration(&mut self, context: &str, expected: &str) -> Result<Duration, ParseError> {
        let parsed = self.duration(context, expected, None)?;
        // What follows is read first, because an error in it comes first.
        self.peek()?;
        match parsed.expr {
            DurationExpr::Number { seconds, span, .. } if seconds <= 0.0 => {
                Err(self.error(span, "duration must be greater than 0"))
            }
            DurationExpr::Number { seconds, .. } => Ok(Duration::Literal(milliseconds(seconds))),
            expr => Ok(Duration::Expr(Box::new(expr))),
        }
    }

    fn offset(&mut self, expr: &mut Expr) -> Result<(), ParseError> {
        let word = self.advance()?;
        self.add_node(word)?;
        let duration = self.offset_duration()?;
        let span = expr.span();
        let Some(modified) = modified(expr) else {
            let message = "offset modifier must be preceded by an instant vector selector or range vector selector \
                           or a subquery";
            return Err(self.error(span, message));
        };
        if modified.offset.is_some() {
            return Err(self.error(span, "offset may not be set multiple times"));
        }
        *modified.end = duration.span().end;
        *modified.offset = match duration {
            DurationExpr::Number { seconds, .. } => match milliseconds(seconds) {
                0 => None,
                ms => Some(Duration::Literal(ms)),
            },
            expr => Some(Duration::Expr(Box::new(expr))),
        };
        Ok(())
    }

    /// The duration of an offset. It ends after its first word or parenthesis, with at most one sign: the `* 2` of
    /// `x offset 5m * 2` belongs to `x`. Only after an unsigned parenthesis, or after two signs, does the duration go
    /// on with what follows, as Prometheus' grammar has it.
    fn offset_duration(&mut self) -> Result<DurationExpr, ParseError> {
        const CONTEXT: &str = "offset";
        let first = self.peek()?;
        if first.kind == Kind::LeftParen {
            return self.duration(CONTEXT, DURATION, None).map(|parsed| parsed.expr);
        }
        let Some(negative) = first.kind.sign() else {
            return self.duration_operand(CONTEXT, DURATION, 0).map(|parsed| parsed.expr);
        };
        self.advance()?;
        if self.peek()?.kind.sign().is_some() {
            let parsed = self.duration(CONTEXT, DURATION, Some((first, negative)))?;
            return Ok(match parsed.expr {
                // Printed without parentheses this would end early.
                expr @ DurationExpr::Binary { .. } => {
                    let span = expr.span();
                    DurationExpr::Paren(Box::new(expr), span)
                }
                expr => expr,
            });
        }
        let token = self.peek()?;
        let operand = match token.kind {
            Kind::LeftParen => {
                self.advance()?;
                // Prometheus needs nothing enabled for a signed parenthesis as such.
                self.duration_paren(token, CONTEXT, DURATION, 0)?
            }
            Kind::Context(word) => {
                self.advance()?;
                self.duration_word(word, token, Some(first), CONTEXT, DURATION, 0)?
            }
            Kind::Number | Kind::Duration => {
                self.advance()?;
                // Its range is checked below, with the sign.
                let NumberLiteral { value: seconds, is_duration, span } = self.number(token)?;
                Parsed { expr: DurationExpr::Number { seconds, is_duration, span }, height: 1 }
            }
            _ => return Err(self.unexpected(token, CONTEXT, DURATION)),
        };
        self.signed_duration(first, negative, operand).map(|parsed| parsed.expr)
    }

    /// A duration expression, by precedence. `sign` is one that has already been consumed.
    fn duration(&mut self, context: &str, expected: &str, sign: Option<(Token, bool)>) -> Result<Parsed, ParseError> {
        self.duration_above(context, expected, sign, None, 0)
    }

    /// The longest expression whose operators bind tighter than `before`, which stands to its left; `depth` levels are
    /// around it.
    fn duration_above(
        &mut self,
        context: &str,
        expected: &str,
        sign: Option<(Token, bool)>,
        before: Option<BinaryOp>,
        depth: usize,
    ) -> Result<Parsed, ParseError> {
        let first = self.peek()?;
        if depth >= MAX_DURATION_DEPTH {
            return Err(self.duration_too_deep(span_of(first)));
        }
        let sign = match (sign, first.kind.sign()) {
            (Some(sign), _) => Some(sign),
            (None, Some(negative)) => {
                self.advance()?;
                Some((first, negative))
            }
            (None, None) => None,
        };
        let mut lhs = match sign {
            Some((token, negative)) => {
                // A sign binds as multiplication does.
                let operand = self.duration_above(context, expected, None, Some(BinaryOp::Mul), depth + 1)?;
                self.signed_duration(token, negative, operand)?
            }
            None => self.duration_operand(context, expected, depth)?,
        };
        loop {
            let token = self.peek()?;
            let Kind::Operator(op) = token.kind else { return Ok(lhs) };
            let arithmetic = matches!(
                op,
                BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow
            );
            if !arithmetic || before.is_some_and(|before| binds_first(super::expression::precedence(before), op)) {
                return Ok(lhs);
            }
            self.advance()?;
            self.add_node(token)?;
            let rhs = self.duration_above(context, expected, None, Some(op), depth + 1)?;
            lhs = self.duration_binary(lhs, op, token, rhs)?;
        }
    }

    fn duration_binary(&self, lhs: Parsed, op: BinaryOp, token: Token, rhs: Parsed) -> Result<Parsed, ParseError> {
        let (lhs_span, rhs_span) = (lhs.expr.span(), rhs.expr.span());
        self.experimental_duration(lhs_span)?;
        if let DurationExpr::Number { seconds: 0.0, .. } = rhs.expr {
            let message = match op {
                BinaryOp::Div => Some("division by zero"),
                BinaryOp::Mod => Some("modulo by zero"),
                _ => None,
            };
            if let Some(message) = message {
                return Err(self.error(span_of(token), message));
            }
        }
        let span = Span { start: lhs_span.start, end: rhs_span.end };
        let (lhs_height, rhs_height) = (lhs.height, rhs.height);
        let expr = DurationExpr::Binary { op, lhs: Box::new(lhs.expr), rhs: Box::new(rhs.expr), span };
        self.duration_node(expr, lhs_height.max(rhs_height))
    }

    /// A number, `step()`, `range()`, `min_of(..)`, `max_of(..)` or something in parentheses.
    fn duration_operand(&mut self, context: &str, expected: &str, depth: usize) -> Result<Parsed, ParseError> {
        let token = self.advance()?;
        self.add_node(token)?;
        match token.kind {
            Kind::Number | Kind::Duration => {
                let literal = self.number(token)?;
                let expr = DurationExpr::Number {
                    seconds: self.in_range(literal.value, literal.span)?,
                    is_duration: literal.is_duration,
                    span: literal.span,
                };
                Ok(Parsed { expr, height: 1 })
            }
            Kind::Context(word) => self.duration_word(word, token, None, context, expected, depth),
            Kind::LeftParen => {
                let paren = self.duration_paren(token, context, expected, depth)?;
                if let DurationExpr::Paren(inner, _) = &paren.expr {
                    self.experimental_duration(inner.span())?;
                }
                Ok(paren)
            }
            _ => Err(self.unexpected(token, context, expected)),
        }
    }

    /// `step()`, `range()`, `min_of(..)` or `max_of(..)`, whose first token is consumed. That it is experimental is
    /// reported at the sign before it, if there is one.
    fn duration_word(
        &mut self,
        word: ContextWord,
        token: Token,
        sign: Option<Token>,
        context: &str,
        expected: &str,
        depth: usize,
    ) -> Result<Parsed, ParseError> {
        if matches!(word, ContextWord::Start | ContextWord::End) {
            return Err(self.unexpected(token, context, expected));
        }
        let start = token.start;
        if matches!(word, ContextWord::Step | ContextWord::Range) {
            let end = self.empty_parens(context, expected)?;
            self.experimental_duration(Span { start: sign.map_or(start, |sign| sign.start), end })?;
            let span = Span { start, end };
            let step = word == ContextWord::Step;
            return Ok(Parsed {
                expr: if step { DurationExpr::Step(span) } else { DurationExpr::Range(span) },
                height: 1,
            });
        }
        self.expect(Kind::LeftParen, context, expected)?;
        let lhs = self.duration_above(context, expected, None, None, depth + 1)?;
        self.expect(Kind::Comma, context, expected)?;
        let rhs = self.duration_above(context, expected, None, None, depth + 1)?;
        let end = self.expect(Kind::RightParen, context, expected)?.end;
        let reported_at = sign.map_or(lhs.expr.span().start, |sign| sign.start);
        self.experimental_duration(Span { start: reported_at, end })?;
        let height = lhs.height.max(rhs.height);
        let (lhs, rhs, max) = (Box::new(lhs.expr), Box::new(rhs.expr), word == ContextWord::MaxOf);
        self.duration_node(DurationExpr::MinMax { max, lhs, rhs, span: Span { start, end } }, height)
    }

    /// A duration in parentheses, of which `open` is consumed; several around each other are one.
    fn duration_paren(
        &mut self,
        open: Token,
        context: &str,
        expected: &str,
        depth: usize,
    ) -> Result<Parsed, ParseError> {
        let inner = self.duration_above(context, expected, None, None, depth + 1)?;
        let close = self.expect(Kind::RightParen, context, expected)?;
        let span = Span { start: open.start, end: close.end };
        match inner.expr {
            DurationExpr::Paren(expr, _) => Ok(Parsed { expr: DurationExpr::Paren(expr, span), height: inner.height }),
            expr => self.duration_node(DurationExpr::Paren(Box::new(expr), span), inner.height),
        }
    }

    fn expect(&mut self, kind: Kind, context: &str, expected: &str) -> Result<Token, ParseError> {
        let token = self.advance()?;
        if token.kind == kind { Ok(token) } else { Err(self.unexpected(token, context, expected)) }
    }

    /// A sign before a duration: a minus turns plain numbers, a plus changes nothing.
    fn signed_duration(&self, sign: Token, negative: bool, operand: Parsed) -> Result<Parsed, ParseError> {
        let span = Span { start: sign.start, end: operand.expr.span().end };
        match operand.expr {
            DurationExpr::Number { seconds, is_duration, .. } => {
                let seconds = self.in_range(if negative { -seconds } else { seconds }, span)?;
                Ok(Parsed { expr: DurationExpr::Number { seconds, is_duration, span }, height: operand.height })
            }
            expr if negative => {
                let expr = DurationExpr::Unary { negative, expr: Box::new(expr), span };
                self.duration_node(expr, operand.height)
            }
            expr => Ok(Parsed { expr, height: operand.height }),
        }
    }

    fn duration_node(&self, expr: DurationExpr, height: usize) -> Result<Parsed, ParseError> {
        if height >= MAX_DURATION_DEPTH {
            return Err(self.duration_too_deep(expr.span()));
        }
        Ok(Parsed { expr, height: height + 1 })
    }

    fn duration_too_deep(&self, span: Span) -> ParseError {
        let message = format!("duration expression is nested deeper than the limit of {MAX_DURATION_DEPTH} levels");
        self.error(span, message)
    }

    fn experimental_duration(&self, span: Span) -> Result<(), ParseError> {
        if self.options.duration_expressions {
            return Ok(());
        }
        Err(self.error(span, "experimental duration expression is not enabled"))
    }

    /// `seconds`, if 63 bits of nanoseconds hold them, or not a number, which Prometheus lets pass here.
    fn in_range(&self, seconds: f64, span: Span) -> Result<f64, ParseError> {
        const LIMIT: f64 = 9_223_372_036.854_775;
        if (-LIMIT..=LIMIT).contains(&seconds) || seconds.is_nan() {
            return Ok(seconds);
        }
        Err(self.error(span, "duration out of range"))
    }

    fn at_modifier(&mut self, expr: &mut Expr) -> Result<(), ParseError> {
        const CONTEXT: &str = "@";
        const EXPECTED: &str = "timestamp";
        let at = self.advance()?;
        self.add_node(at)?;
        let span = expr.span();
        let (value, end) = match self.accept_start_or_end()? {
            Some(word) => {
                let end = self.empty_parens(CONTEXT, EXPECTED)?;
                (if word == ContextWord::Start { AtModifier::Start } else { AtModifier::End }, end)
            }
            None => {
                let (seconds, end) = self.signed_number(CONTEXT, EXPECTED)?;
                (AtModifier::Timestamp(self.timestamp(seconds, span)?), end)
            }
        };
        let Some(modified) = modified(expr) else {
            let message = "@ modifier must be preceded by an instant vector selector or range vector selector or a \
                           subquery";
            return Err(self.error(span, message));
        };
        if modified.at.is_some() {
            return Err(self.error(span, "@ <timestamp> may not be set multiple times"));
        }
        *modified.at = Some(value);
        *modified.end = end;
        Ok(())
    }

    /// Seconds as the milliseconds they are rounded to; those beyond 63 bits become the earliest, as in Prometheus.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    fn timestamp(&self, seconds: f64, span: Span) -> Result<i64, ParseError> {
        const LIMIT: f64 = 9_223_372_036_854_775_807.0;
        if seconds.abs() < LIMIT {
            let ms = (seconds * 1000.0).round();
            return Ok(if ms.abs() < LIMIT { ms as i64 } else { i64::MIN });
        }
        let seconds = match seconds {
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            seconds if seconds.is_nan() => "NaN".to_owned(),
            seconds => format!("{seconds:.6}"),
        };
        Err(self.error(span, format!("timestamp out of bounds for @ modifier: {seconds}")))
    }

    fn edges(&mut self, expr: &mut Expr, mode: EdgeMode) -> Result<(), ParseError> {
        self.advance()?;
        let span = expr.span();
        let name = if mode == EdgeMode::Anchored { "anchored" } else { "smoothed" };
        if !self.options.extended_selectors {
            return Err(self.error(span, format!("{name} modifier is experimental and not enabled")));
        }
        let edges = match expr {
            Expr::Vector(selector) => &mut selector.edges,
            Expr::Matrix(matrix) => &mut matrix.selector.edges,
            Expr::Subquery(_) => {
                return Err(self.error(span, format!("{name} modifier is not supported for subqueries")));
            }
            _ => return Err(self.error(span, format!("{name} modifier not implemented"))),
        };
        if *edges != EdgeMode::Plain && *edges != mode {
            return Err(self.error(span, "anchored and smoothed modifiers cannot be used together"));
        }
        *edges = mode;
        Ok(())
    }
}

fn modified(expr: &mut Expr) -> Option<Modified<'_>> {
    Some(match expr {
        Expr::Vector(e) => Modified { offset: &mut e.offset, at: &mut e.at, end: &mut e.span.end },
        Expr::Matrix(e) => Modified { offset: &mut e.selector.offset, at: &mut e.selector.at, end: &mut e.span.end },
        Expr::Subquery(e) => Modified { offset: &mut e.offset, at: &mut e.at, end: &mut e.span.end },
        _ => return None,
    })
}

/// Seconds as milliseconds: rounded to nanoseconds, then cut, as Prometheus arrives at them.
#[expect(clippy::cast_possible_truncation, reason = "literals are checked to lie in the range of 63 bits of ns")]
fn milliseconds(seconds: f64) -> i64 {
    if seconds.is_nan() {
        // What the conversion yields on the machines Prometheus runs on.
        return i64::MIN / 1_000_000;
    }
    (seconds * 1e9).round() as i64 / 1_000_000
}
