//! `eval`: a query, when to evaluate it, and what must come of it.

use regex::Regex;

use super::{Line, Lines, ScriptError};
use crate::parse::literal::number;
use crate::series_description::{SeriesDescription, parse_series_description};

/// A query with what is expected of it.
#[derive(Debug, Clone)]
pub struct Eval {
    /// Where the command stands.
    pub line: usize,
    /// The query.
    pub query: String,
    /// When it is evaluated.
    pub time: EvalTime,
    /// What it must yield.
    pub expected: Expected,
    /// Whether the elements must come in the order of the listed series.
    pub ordered: bool,
    /// Of an instant query that must yield a range vector: the times of the expected points.
    pub range_vector: Option<RangeOfTimes>,
    /// The query must fail, with an error like this.
    pub fail: Option<TextMatch>,
    /// There must be warnings: each matches one of these, and each of these matches one.
    pub warn: Vec<TextMatch>,
    /// There must be no warning.
    pub no_warn: bool,
    /// There must be infos, likewise.
    pub info: Vec<TextMatch>,
    /// There must be no info.
    pub no_info: bool,
}

/// When a query is evaluated, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvalTime {
    /// Once.
    Instant(i64),
    /// At every step.
    Range(RangeOfTimes),
}

/// Times in milliseconds from `start` to `end`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeOfTimes {
    /// The first.
    pub start_ms: i64,
    /// No later than this.
    pub end_ms: i64,
    /// Distance between two.
    pub step_ms: i64,
}

/// What a query yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// These series and no others; of an instant vector each has one value.
    Series(Vec<SeriesDescription>),
    /// A number.
    Scalar(f64),
    /// A text.
    String(String),
}

/// What a message must be like.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// Anything.
    Any,
    /// Exactly this.
    Message(String),
    /// Something this matches anywhere.
    Regex(Regex),
}

impl TextMatch {
    /// Whether `text` is like that.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Message(message) => message == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

pub(super) fn parse(command: Line<'_>, lines: &mut Lines<'_>) -> Result<Eval, ScriptError> {
    let (word, rest) = Line::split_word(command.text);
    let (time, query) = time_and_query(command, rest)?;
    let mut eval = Eval {
        line: command.number,
        query: query.to_owned(),
        time,
        expected: Expected::Series(Vec::new()),
        ordered: false,
        range_vector: None,
        fail: None,
        warn: Vec::new(),
        no_warn: false,
        info: Vec::new(),
        no_info: false,
    };
    match word {
        "eval" => {}
        "eval_fail" => eval.fail = Some(TextMatch::Any),
        "eval_warn" => eval.warn.push(TextMatch::Any),
        "eval_info" => eval.info.push(TextMatch::Any),
        "eval_ordered" => eval.ordered = true,
        _ => return Err(command.error(format!("invalid evaluation command {word:?}"))),
    }
    let mut series = Vec::new();
    while let Some(line) = lines.next_of_body() {
        if let Some(message) = line.text.strip_prefix("expected_fail_message") {
            eval.fail = Some(TextMatch::Message(message.trim().to_owned()));
        } else if let Some(pattern) = line.text.strip_prefix("expected_fail_regexp") {
            eval.fail = Some(regex(line, pattern)?);
        } else if line.text == "expect" || line.text.starts_with("expect ") || line.text.starts_with("expect\t") {
            eval.expect(line)?;
        } else if let Some(value) = scalar(line.text) {
            eval.expected = Expected::Scalar(value);
            return Ok(eval);
        } else {
            let described = parse_series_description(line.text).map_err(|e| line.error(e.to_string()))?;
            let instant = matches!(eval.time, EvalTime::Instant(_)) && eval.range_vector.is_none();
            if instant && described.values.len() > 1 {
                return Err(line.error("expecting multiple values in instant evaluation not allowed"));
            }
            series.push(described);
        }
    }
    if !series.is_empty() {
        eval.expected = Expected::Series(series);
    }
    Ok(eval)
}

/// `instant [at T] QUERY` or `range from A to B step S QUERY`.
fn time_and_query<'a>(line: Line<'a>, text: &'a str) -> Result<(EvalTime, &'a str), ScriptError> {
    let (kind, rest) = Line::split_word(text);
    let (time, query) = match kind {
        "instant" => match Line::split_word(rest) {
            ("at", rest) => {
                let (at, query) = Line::split_word(rest);
                (EvalTime::Instant(line.duration(at)?), query)
            }
            _ => (EvalTime::Instant(0), rest),
        },
        "range" => {
            let (range, query) = range(line, rest)?;
            (EvalTime::Range(range), query)
        }
        _ => return Err(line.error("invalid evaluation command, must be instant or range")),
    };
    if query.is_empty() {
        return Err(line.error("evaluation command without query"));
    }
    Ok((time, query))
}

/// `from A to B step S`, and what follows it.
fn range<'a>(line: Line<'a>, text: &'a str) -> Result<(RangeOfTimes, &'a str), ScriptError> {
    let mut rest = text;
    let mut times = [0; 3];
    for (time, keyword) in times.iter_mut().zip(["from", "to", "step"]) {
        let (word, after) = Line::split_word(rest);
        if word != keyword {
            return Err(line.error(format!("expected {keyword:?}, got {word:?}")));
        }
        let (duration, after) = Line::split_word(after);
        *time = line.duration(duration)?;
        rest = after;
    }
    let [start_ms, end_ms, step_ms] = times;
    if end_ms < start_ms {
        return Err(line.error("end timestamp is before start timestamp"));
    }
    Ok((RangeOfTimes { start_ms, end_ms, step_ms }, rest))
}

impl Eval {
    fn expect(&mut self, line: Line<'_>) -> Result<(), ScriptError> {
        let (_, rest) = Line::split_word(line.text);
        let (what, rest) = Line::split_word(rest);
        match what {
            "range" => {
                let ("vector", times) = Line::split_word(rest) else {
                    return Err(line.error("invalid range vector definition"));
                };
                self.range_vector = Some(range(line, times)?.0);
            }
            "string" => {
                let quoted = rest.len() > 1 && rest.starts_with(['"', '`']) && rest.ends_with(&rest[..1]);
                if !quoted {
                    return Err(line.error("expected string literal not valid - check that it is correctly quoted"));
                }
                self.expected = Expected::String(crate::parse::literal::unquote(rest));
            }
            "ordered" => self.ordered = true,
            "fail" if self.fail.is_some() => return Err(line.error("multiple expect fail lines are not allowed")),
            "fail" => self.fail = Some(text_match(line, rest)?),
            "warn" => self.warn.push(text_match(line, rest)?),
            "no_warn" => self.no_warn = true,
            "info" => self.info.push(text_match(line, rest)?),
            "no_info" => self.no_info = true,
            _ => return Err(line.error(format!("invalid expected error/annotation type {what}"))),
        }
        if (self.no_warn && !self.warn.is_empty()) || (self.no_info && !self.info.is_empty()) {
            return Err(line.error("expecting annotations and no annotations of one kind is not allowed"));
        }
        Ok(())
    }
}

/// Nothing, `msg: TEXT` or `regex: PATTERN`.
fn text_match(line: Line<'_>, text: &str) -> Result<TextMatch, ScriptError> {
    if text.is_empty() {
        return Ok(TextMatch::Any);
    }
    match text.split_once(':') {
        Some(("msg", message)) => Ok(TextMatch::Message(message.trim().to_owned())),
        Some(("regex", pattern)) => regex(line, pattern),
        _ => Err(line.error(format!("invalid expect statement {text:?}"))),
    }
}

fn regex(line: Line<'_>, pattern: &str) -> Result<TextMatch, ScriptError> {
    let regex = Regex::new(pattern.trim()).map_err(|e| line.error(format!("invalid regex {pattern:?}: {e}")))?;
    Ok(TextMatch::Regex(regex))
}

/// The number a line is, if it is nothing else.
fn scalar(text: &str) -> Option<f64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = number(digits).ok()?;
    Some(if negative { -value } else { value })
}
