//! Where and why a text is not PromQL.

use std::fmt;

use crate::ast::Span;

/// Why a text could not be parsed. Prints as Prometheus prints it: `1:5: parse error: unexpected ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Line and column of the span's start, both from 1, the column in bytes; `None` when the text is empty.
    pub position: Option<(usize, usize)>,
}

impl ParseError {
    /// An error about `span` of `input`.
    pub(crate) fn new(input: &str, span: Span, message: impl Into<String>) -> Self {
        let position = (!input.is_empty()).then(|| line_and_column(input, span.start));
        Self { message: message.into(), span, position }
    }
}

/// Line and column of the byte at `offset`, both from 1, the column in bytes. This is how warnings of a query name
/// places too.
pub fn line_and_column(input: &str, offset: usize) -> (usize, usize) {
    let before = &input.as_bytes()[..offset.min(input.len())];
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    (line, before.len() - line_start + 1)
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{line}:{column}: parse error: {}", self.message),
            None => write!(f, "unknown position: parse error: {}", self.message),
        }
    }
}

impl std::error::Error for ParseError {}
