//! The words of PromQL.

use std::fmt;

use skald_model::Quoted;

use crate::ast::{AggregateOp, BinaryOp};

/// A word with its place; its text is that range of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Eof,
    /// A name without colon that is no keyword.
    Identifier,
    /// A name with a colon.
    MetricIdentifier,
    Number,
    Duration,
    String,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Comma,
    Colon,
    /// `=`
    Equal,
    /// `=~`
    MatchRegex,
    /// `!~`
    MatchNotRegex,
    /// `@`
    At,
    Operator(BinaryOp),
    Aggregator(AggregateOp),
    Keyword(Keyword),
    Context(ContextWord),
}

/// Words that are part of the grammar besides operators and aggregations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyword {
    Offset,
    Smoothed,
    Anchored,
    By,
    Without,
    On,
    Ignoring,
    GroupLeft,
    GroupRight,
    Fill,
    FillLeft,
    FillRight,
    Bool,
}

/// Names of things known of the query itself: functions in an expression, and parts of durations or of `@`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextWord {
    Start,
    End,
    Step,
    Range,
    MinOf,
    MaxOf,
}

const AGGREGATORS: [(&str, AggregateOp); 14] = [
    ("sum", AggregateOp::Sum),
    ("avg", AggregateOp::Avg),
    ("min", AggregateOp::Min),
    ("max", AggregateOp::Max),
    ("count", AggregateOp::Count),
    ("group", AggregateOp::Group),
    ("stddev", AggregateOp::Stddev),
    ("stdvar", AggregateOp::Stdvar),
    ("quantile", AggregateOp::Quantile),
    ("topk", AggregateOp::Topk),
    ("bottomk", AggregateOp::Bottomk),
    ("count_values", AggregateOp::CountValues),
    ("limitk", AggregateOp::Limitk),
    ("limit_ratio", AggregateOp::LimitRatio),
];

const KEYWORDS: [(&str, Kind); 25] = [
    ("and", Kind::Operator(BinaryOp::And)),
    ("or", Kind::Operator(BinaryOp::Or)),
    ("unless", Kind::Operator(BinaryOp::Unless)),
    ("atan2", Kind::Operator(BinaryOp::Atan2)),
    ("offset", Kind::Keyword(Keyword::Offset)),
    ("smoothed", Kind::Keyword(Keyword::Smoothed)),
    ("anchored", Kind::Keyword(Keyword::Anchored)),
    ("by", Kind::Keyword(Keyword::By)),
    ("without", Kind::Keyword(Keyword::Without)),
    ("on", Kind::Keyword(Keyword::On)),
    ("ignoring", Kind::Keyword(Keyword::Ignoring)),
    ("group_left", Kind::Keyword(Keyword::GroupLeft)),
    ("group_right", Kind::Keyword(Keyword::GroupRight)),
    ("fill", Kind::Keyword(Keyword::Fill)),
    ("fill_left", Kind::Keyword(Keyword::FillLeft)),
    ("fill_right", Kind::Keyword(Keyword::FillRight)),
    ("bool", Kind::Keyword(Keyword::Bool)),
    ("start", Kind::Context(ContextWord::Start)),
    ("end", Kind::Context(ContextWord::End)),
    ("step", Kind::Context(ContextWord::Step)),
    ("range", Kind::Context(ContextWord::Range)),
    ("min_of", Kind::Context(ContextWord::MinOf)),
    ("max_of", Kind::Context(ContextWord::MaxOf)),
    ("inf", Kind::Number),
    ("nan", Kind::Number),
];

/// What `word` means when it is a keyword; case does not matter.
pub(crate) fn keyword(word: &str) -> Option<Kind> {
    let aggregator = AGGREGATORS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    if let Some((_, op)) = aggregator {
        return Some(Kind::Aggregator(*op));
    }
    KEYWORDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, kind)| *kind)
}

/// What `word` means where a duration is expected.
pub(crate) fn duration_word(word: &str) -> Option<ContextWord> {
    match keyword(word) {
        Some(Kind::Context(
            word @ (ContextWord::Step | ContextWord::Range | ContextWord::MinOf | ContextWord::MaxOf),
        )) => Some(word),
        _ => None,
    }
}

impl Kind {
    /// Whether the word can be a metric name.
    pub(crate) fn is_metric_name(self) -> bool {
        use Keyword::{Bool, GroupLeft, GroupRight, Ignoring, On};
        match self {
            Self::Identifier | Self::MetricIdentifier | Self::Aggregator(_) | Self::Context(_) => true,
            Self::Operator(op) => matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless),
            Self::Keyword(word) => !matches!(word, Bool | On | Ignoring | GroupLeft | GroupRight),
            _ => false,
        }
    }

    /// Whether the word, unquoted, can be a label name in a list like that of `by (...)`.
    pub(crate) fn is_label_name(self) -> bool {
        match self {
            Self::Identifier | Self::MetricIdentifier | Self::Aggregator(_) | Self::Context(_) => true,
            Self::Operator(op) => {
                matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless | BinaryOp::Atan2)
            }
            Self::Keyword(word) => word != Keyword::Without,
            _ => false,
        }
    }

    /// Whether an expression can start with the word.
    pub(crate) fn starts_expression(self) -> bool {
        self.is_metric_name()
            || self.sign().is_some()
            || matches!(self, Self::Number | Self::Duration | Self::String | Self::LeftParen | Self::LeftBrace)
    }

    /// Whether the word is `-` (true) or `+` (false).
    pub(crate) fn sign(self) -> Option<bool> {
        match self {
            Self::Operator(BinaryOp::Sub) => Some(true),
            Self::Operator(BinaryOp::Add) => Some(false),
            _ => None,
        }
    }
}

/// A token as an error message describes it.
pub(crate) struct Described<'a> {
    pub(crate) token: Token,
    pub(crate) text: &'a str,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text;
        match self.token.kind {
            Kind::Eof => f.write_str("end of input"),
            Kind::Identifier => write!(f, "identifier {}", Quoted(text)),
            Kind::MetricIdentifier => write!(f, "metric identifier {}", Quoted(text)),
            Kind::Operator(_) | Kind::At | Kind::MatchRegex | Kind::MatchNotRegex => write!(f, "<op:{text}>"),
            Kind::Aggregator(_) => write!(f, "<aggr:{text}>"),
            Kind::Keyword(_) => write!(f, "<{text}>"),
            Kind::Number => write!(f, "number {}", Shortened(text)),
            Kind::Duration => write!(f, "duration {}", Shortened(text)),
            Kind::String => write!(f, "string {}", Shortened(text)),
            _ => write!(f, "{}", Shortened(text)),
        }
    }
}

/// A quoted text, of which only ten characters are shown when it is longer than ten bytes.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 10 {
            return write!(f, "{}", Quoted(self.0));
        }
        let end = self.0.char_indices().nth(10).map_or(self.0.len(), |(at, _)| at);
        write!(f, "{}...", Quoted(&self.0[..end]))
    }
}
