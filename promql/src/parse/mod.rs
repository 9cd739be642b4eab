//! From text to syntax tree.
//!
//! A query passes through [`lexer`] (words, on demand), [`expression`] (operators by precedence, on a stack of its own,
//! so that nesting never costs machine stack) with [`selector`] and [`duration`] for their parts, and [`check`]
//! (types, once the whole text is known to be grammatical). The first error ends it. Errors have the wording and the
//! positions of Prometheus 3.14, whose grammar this is.
//!
//! # Limits
//!
//! A text may have [`MAX_BYTES`] bytes, a tree [`MAX_NODES`] nodes and [`MAX_DEPTH`] levels: every parenthesis, sign,
//! call, aggregation and subquery around an expression is a level, and so is every operator of a chain (`a + b + c` is
//! three levels, because it means `(a + b) + c`). Code that walks a tree by recursion can rely on them; parsing,
//! printing, comparing, cloning and dropping a tree of that depth fit into 1 MiB of stack even in debug builds.

mod check;
mod duration;
mod error;
mod expression;
pub(crate) mod lexer;
pub(crate) mod literal;
mod selector;
pub(crate) mod token;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use skald_model::Matcher;

use crate::ast::{Expr, Span};
use expression::Parser;
use token::Kind;

pub use error::{ParseError, line_and_column};

/// Longest text that is parsed, in bytes.
pub const MAX_BYTES: usize = 512 * 1024;
/// Most levels a tree may have.
pub const MAX_DEPTH: usize = 1000;
/// Most nodes a tree may have; a selector's matchers and the labels of a list count too.
pub const MAX_NODES: usize = 50_000;
/// Most that all regexes of a query may hold together, as [`Matcher::regex_cost`] counts: some 25 MB.
pub const MAX_REGEX_COST: usize = 500_000;
/// Most levels a duration expression may have.
pub const MAX_DURATION_DEPTH: usize = 100;

/// What of the experimental parts of the language is understood. By default nothing is, as in a Prometheus 3.14
/// without feature flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParseOptions {
    /// Functions marked experimental, and the aggregations `limitk` and `limit_ratio`.
    pub experimental_functions: bool,
    /// Arithmetic, `step()`, `range()`, `min_of` and `max_of` in durations.
    pub duration_expressions: bool,
    /// `smoothed` and `anchored`.
    pub extended_selectors: bool,
    /// `fill`, `fill_left` and `fill_right`.
    pub binary_fill_modifiers: bool,
}

impl ParseOptions {
    /// Everything is understood.
    pub const ALL: Self = Self {
        experimental_functions: true,
        duration_expressions: true,
        extended_selectors: true,
        binary_fill_modifiers: true,
    };
}

/// Whether anybody still waits for what is parsed: asked before each regex, since compiling thousands takes a while.
pub type GoOn<'a> = &'a dyn Fn() -> bool;

/// Parses a query and checks its types.
pub fn parse_expr(input: &str, options: &ParseOptions) -> Result<Expr, ParseError> {
    parse_expr_while(input, options, &|| true)
}

/// The same, as long as `go_on` says so; then ends with an error for nobody.
pub fn parse_expr_while(input: &str, options: &ParseOptions, go_on: GoOn<'_>) -> Result<Expr, ParseError> {
    check_length(input)?;
    let mut parser = Parser::new(input, *options, go_on);
    if parser.peek()?.kind == Kind::Eof {
        return Err(ParseError::new(input, Span::default(), "no expression found in input"));
    }
    let mut expr = parser.expression()?;
    check::Checker { input }.check(&mut expr).map_err(|e| *e)?;
    Ok(expr)
}

/// Parses a plain selector such as the API's `match[]` takes: no offset, no range.
///
/// Whether any matcher refuses the empty value is the caller's to check, as Prometheus leaves it to the endpoints.
pub fn parse_matchers(input: &str) -> Result<Vec<Matcher>, ParseError> {
    parse_matchers_while(input, &|| true)
}

/// The same, as long as `go_on` says so; then ends with an error for nobody.
pub fn parse_matchers_while(input: &str, go_on: GoOn<'_>) -> Result<Vec<Matcher>, ParseError> {
    check_length(input)?;
    let mut parser = Parser::new(input, ParseOptions::default(), go_on);
    let token = parser.advance()?;
    if !token.kind.is_metric_name() && token.kind != Kind::LeftBrace {
        return Err(parser.unexpected(token, "", ""));
    }
    let selector = parser.vector_selector(token)?;
    let token = parser.advance()?;
    if token.kind != Kind::Eof {
        return Err(parser.unexpected(token, "", ""));
    }
    Ok(selector.matchers)
}

fn check_length(input: &str) -> Result<(), ParseError> {
    if input.len() > MAX_BYTES {
        let message = format!("query of {} bytes is longer than the limit of {MAX_BYTES}", input.len());
        return Err(ParseError::new(input, Span::default(), message));
    }
    Ok(())
}
