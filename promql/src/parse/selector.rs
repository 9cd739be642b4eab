//! Selectors in braces, and lists of labels.

use skald_model::{METRIC_NAME, MatchOp, Matcher, QuotedBytes};

use super::error::ParseError;
use super::expression::Parser;
use super::literal::{unquote, unquote_bytes};
use super::token::{Keyword, Kind, Token};
use crate::ast::{BinaryOp, EdgeMode, Span, VectorSelector};

impl Parser<'_> {
    /// A selector which starts with the consumed token `first`: a metric name or `{`.
    pub(super) fn vector_selector(&mut self, first: Token) -> Result<VectorSelector, ParseError> {
        self.add_node(first)?;
        let mut selector = VectorSelector {
            name: None,
            matchers: Vec::new(),
            offset: None,
            at: None,
            edges: EdgeMode::Plain,
            span: Span { start: first.start, end: first.end },
        };
        if first.kind == Kind::LeftBrace {
            selector.span.end = self.matchers(&mut selector.matchers)?;
            return Ok(selector);
        }
        if self.peek()?.kind == Kind::LeftBrace {
            self.advance()?;
            selector.span.end = self.matchers(&mut selector.matchers)?;
        }
        let name = self.text(first);
        selector.matchers.push(Matcher::equal(METRIC_NAME, name));
        selector.name = Some(name.to_owned());
        Ok(selector)
    }

    /// Matchers up to and with the closing brace, whose end is returned.
    fn matchers(&mut self, out: &mut Vec<Matcher>) -> Result<usize, ParseError> {
        let mut token = self.advance()?;
        if token.kind == Kind::RightBrace {
            return Ok(token.end);
        }
        loop {
            out.push(self.matcher(token)?);
            token = self.advance()?;
            if token.kind == Kind::Comma {
                token = self.advance()?;
            } else if token.kind != Kind::RightBrace {
                return Err(self.unexpected(token, "label matching", r#""," or "}""#));
            }
            if token.kind == Kind::RightBrace {
                return Ok(token.end);
            }
        }
    }

    fn matcher(&mut self, first: Token) -> Result<Matcher, ParseError> {
        const CONTEXT: &str = "label matching";
        self.add_node(first)?;
        let quoted = first.kind == Kind::String;
        let name = match first.kind {
            Kind::String => unquote(self.text(first)),
            Kind::Identifier => self.text(first).to_owned(),
            _ => return Err(self.unexpected(first, CONTEXT, r#"identifier or "}""#)),
        };
        let operator = self.peek()?;
        let op = match operator.kind {
            Kind::Equal => MatchOp::Equal,
            Kind::Operator(BinaryOp::Ne) => MatchOp::NotEqual,
            Kind::MatchRegex => MatchOp::Regex,
            Kind::MatchNotRegex => MatchOp::NotRegex,
            _ if quoted => return Ok(Matcher::equal(METRIC_NAME, name)),
            _ => return Err(self.unexpected(operator, CONTEXT, "label matching operator")),
        };
        self.advance()?;
        let value = self.advance()?;
        if value.kind != Kind::String {
            return Err(self.unexpected(value, CONTEXT, "string"));
        }
        let span = Span { start: first.start, end: value.end };
        if matches!(op, MatchOp::Regex | MatchOp::NotRegex) {
            self.before_regex(span)?;
        }
        let matcher = Matcher::new(op, name, unquote(self.text(value))).map_err(|e| self.error(span, e.message))?;
        self.add_regex_cost(matcher.regex_cost(), span)?;
        Ok(matcher)
    }

    /// Labels in parentheses, and where they end.
    pub(super) fn label_list(&mut self) -> Result<(Vec<String>, usize), ParseError> {
        const CONTEXT: &str = "grouping opts";
        let open = self.advance()?;
        if open.kind != Kind::LeftParen {
            return Err(self.unexpected(open, CONTEXT, r#""(""#));
        }
        let mut labels = Vec::new();
        let mut token = self.advance()?;
        if token.kind == Kind::RightParen {
            return Ok((labels, token.end));
        }
        loop {
            labels.push(self.label(token)?);
            token = self.advance()?;
            if token.kind == Kind::Comma {
                token = self.advance()?;
            } else if token.kind != Kind::RightParen {
                return Err(self.unexpected(token, CONTEXT, r#""," or ")""#));
            }
            if token.kind == Kind::RightParen {
                return Ok((labels, token.end));
            }
        }
    }

    fn label(&mut self, token: Token) -> Result<String, ParseError> {
        self.add_node(token)?;
        let name = match token.kind {
            Kind::String => unquote_bytes(self.text(token)),
            kind if kind.is_label_name() => Ok(self.text(token).to_owned()),
            _ => return Err(self.unexpected(token, "grouping opts", "label")),
        };
        let bytes = match name {
            Ok(name) if !name.is_empty() => return Ok(name),
            Ok(_) => Vec::new(),
            Err(bytes) => bytes,
        };
        let message = format!("invalid label name for grouping: {}", QuotedBytes(&bytes));
        Err(self.error(Span { start: token.start, end: token.end }, message))
    }

    /// Consumes `keyword` if it comes next.
    pub(super) fn accept_keyword(&mut self, keyword: Keyword) -> Result<Option<Token>, ParseError> {
        let token = self.peek()?;
        if token.kind != Kind::Keyword(keyword) {
            return Ok(None);
        }
        self.advance().map(Some)
    }
}
