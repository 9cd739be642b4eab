//! Series written out for tests: `metric{a="b"} 1 2+3x4 _ stale {{schema:0 count:5}}x3`.
//!
//! One item is one or more samples at equal distances: a number, `stale`, `_` for none, a native histogram in double
//! braces; `axN` repeats `a` N times more, `a+bxN` adds `b` each time, `_xN` leaves N samples out. The notation is that
//! of Prometheus' rule tests and of its PromQL test scripts.

use std::sync::Arc;

use skald_model::{FloatHistogram, Labels, LabelsBuilder, METRIC_NAME, ResetHint, Span as BucketSpan};

use crate::ast::Span;
use crate::eval::histogram::sum::HistogramSum;
use crate::parse::ParseError;
use crate::parse::lexer::Lexer;
use crate::parse::literal::{number, unquote};
use crate::parse::token::{Described, Kind, Token};

/// Most samples one description may stand for.
pub const MAX_VALUES: usize = 1_000_000;

/// A series with its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesDescription {
    /// Which series.
    pub labels: Labels,
    /// Its samples in order.
    pub values: Vec<SequenceValue>,
}

/// One position of a series.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceValue {
    /// No sample.
    Omitted,
    /// A float; `stale` is the stale marker.
    Float(f64),
    /// A native histogram.
    Histogram {
        /// The histogram.
        histogram: Arc<FloatHistogram>,
        /// Whether the text says what its reset hint is.
        hint_given: bool,
    },
}

/// Parses one description.
pub fn parse_series_description(input: &str) -> Result<SeriesDescription, ParseError> {
    let (labels, end) = parse_labels(input)?;
    let mut cursor = Cursor { input, at: end };
    let mut values = Vec::new();
    loop {
        let before = cursor.at;
        cursor.skip_spaces();
        if cursor.rest().is_empty() {
            return Ok(SeriesDescription { labels, values });
        }
        if cursor.at == before {
            return Err(cursor.error("unexpected character in series values, expected a blank"));
        }
        cursor.item(&mut values)?;
    }
}

/// The labels at the start of `input`, and where they end.
fn parse_labels(input: &str) -> Result<(Labels, usize), ParseError> {
    let mut lexer = Lexer::new(input);
    let mut builder = LabelsBuilder::default();
    let mut name = None;
    let mut token = lexer.next()?;
    if token.kind.is_metric_name() {
        name = Some(&input[token.start..token.end]);
        // A blank ends the name: the braces after it are a histogram's.
        if input.as_bytes().get(token.end) == Some(&b'{') {
            token = lexer.next()?;
        }
    } else if token.kind != Kind::LeftBrace {
        return Err(unexpected(input, token, "a metric name or \"{\""));
    }
    if token.kind == Kind::LeftBrace {
        token = lexer.next()?;
        while token.kind != Kind::RightBrace {
            label(input, &mut lexer, token, &mut builder)?;
            token = lexer.next()?;
            if token.kind == Kind::Comma {
                token = lexer.next()?;
            } else if token.kind != Kind::RightBrace {
                return Err(unexpected(input, token, r#""," or "}""#));
            }
        }
    }
    if let Some(name) = name {
        builder.set(METRIC_NAME, name);
    }
    Ok((builder.build(), token.end))
}

fn label(input: &str, lexer: &mut Lexer<'_>, token: Token, builder: &mut LabelsBuilder) -> Result<(), ParseError> {
    let text = &input[token.start..token.end];
    let name = match token.kind {
        Kind::Identifier => text.to_owned(),
        Kind::String => unquote(text),
        _ => return Err(unexpected(input, token, r#"identifier or "}""#)),
    };
    // A quoted name alone is the metric's.
    let after = input[token.end..].trim_start();
    if token.kind == Kind::String && (after.starts_with(',') || after.starts_with('}')) {
        builder.set(METRIC_NAME, &name);
        return Ok(());
    }
    let equal = lexer.next()?;
    if equal.kind != Kind::Equal {
        return Err(unexpected(input, equal, r#""=""#));
    }
    let value = lexer.next()?;
    if value.kind != Kind::String {
        return Err(unexpected(input, value, "string"));
    }
    builder.set(&name, &unquote(&input[value.start..value.end]));
    Ok(())
}

fn unexpected(input: &str, token: Token, expected: &str) -> ParseError {
    let (span, text) = (Span { start: token.start, end: token.end }, &input[token.start..token.end]);
    let message = format!("unexpected {} in label set, expected {expected}", Described { token, text });
    ParseError::new(input, span, message)
}

/// A place in the text of the samples.
struct Cursor<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.input[self.at..]
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.input, Span { start: self.at, end: self.input.len() }, message)
    }

    fn skip_spaces(&mut self) {
        self.at = self.input.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn accept(&mut self, text: &str) -> bool {
        let yes = self.rest().starts_with(text);
        self.at += if yes { text.len() } else { 0 };
        yes
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.rest();
        let text = &rest[..rest.bytes().take_while(|b| b.is_ascii() && wanted(*b)).count()];
        self.at += text.len();
        text
    }

    /// One item: appends what it stands for.
    fn item(&mut self, out: &mut Vec<SequenceValue>) -> Result<(), ParseError> {
        if self.accept("_") {
            let count = if self.accept("x") { self.count(out)? } else { 1 };
            out.extend(std::iter::repeat_n(SequenceValue::Omitted, count));
            return Ok(());
        }
        if self.rest().starts_with("{{") {
            return self.histograms(out);
        }
        let mut value = if self.accept("stale") { skald_model::stale_nan() } else { self.signed_number()? };
        let step = if self.rest().starts_with(['+', '-']) { Some(self.signed_number()?) } else { None };
        let repeats = if self.accept("x") {
            self.count(out)?
        } else if step.is_some() {
            return Err(self.error("expected \"x\" and a number of repetitions"));
        } else {
            0
        };
        out.push(SequenceValue::Float(value));
        for _ in 0..repeats {
            if let Some(step) = step {
                value += step;
            }
            out.push(SequenceValue::Float(value));
        }
        Ok(())
    }

    fn histograms(&mut self, out: &mut Vec<SequenceValue>) -> Result<(), ParseError> {
        let (mut histogram, mut hint_given) = self.histogram()?;
        let factor = if self.accept("+") {
            1.0
        } else if self.accept("-") {
            -1.0
        } else {
            0.0
        };
        let step = if factor == 0.0 { None } else { Some(self.histogram()?) };
        if let Some((_, given)) = &step {
            hint_given = *given;
        }
        let repeats = if self.accept("x") {
            self.count(out)?
        } else if step.is_some() {
            return Err(self.error("expected \"x\" and a number of repetitions"));
        } else {
            0
        };
        out.push(SequenceValue::Histogram { histogram: histogram.clone(), hint_given });
        for _ in 0..repeats {
            if let Some((step, _)) = &step {
                if histogram.schema > step.schema {
                    let (from, to) = (step.schema, histogram.schema);
                    let message = format!("error combining histograms: cannot merge from schema {from} to {to}");
                    return Err(self.error(message));
                }
                let mut sum = HistogramSum::plain(&histogram);
                let incompatible = sum.add(step, factor).is_err();
                if incompatible {
                    return Err(self.error("error combining histograms of incompatible schemas"));
                }
                histogram = Arc::new(sum.finish());
            }
            out.push(SequenceValue::Histogram { histogram: histogram.clone(), hint_given });
        }
        Ok(())
    }

    /// A number of repetitions which, with what is there already, stays below the limit.
    fn count(&mut self, out: &[SequenceValue]) -> Result<usize, ParseError> {
        let start = self.at;
        let digits = self.take_while(|b| b.is_ascii_digit());
        let count = digits.parse().ok().filter(|count: &usize| *count < MAX_VALUES - out.len().min(MAX_VALUES));
        count.ok_or_else(|| {
            self.at = start;
            self.error(format!("invalid repetition in series values: {digits:?}, at most {MAX_VALUES} values"))
        })
    }

    fn signed_number(&mut self) -> Result<f64, ParseError> {
        let negative = self.accept("-");
        if !negative {
            self.accept("+");
        }
        let value = self.number()?;
        Ok(if negative { -value } else { value })
    }

    /// A decimal number, `Inf` or `NaN`. There is no hexadecimal: `0x3` is four zeros.
    fn number(&mut self) -> Result<f64, ParseError> {
        let start = self.at;
        if self.rest().starts_with(|c: char| c.is_ascii_alphabetic()) {
            let word = self.rest().get(..3).unwrap_or_default();
            if word.eq_ignore_ascii_case("inf") || word.eq_ignore_ascii_case("nan") {
                self.at += 3;
                return number(word).map_err(|message| self.error(message));
            }
        }
        self.take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b'_'));
        if self.at > start && (self.accept("e") || self.accept("E")) {
            if !self.accept("-") {
                self.accept("+");
            }
            self.take_while(|b| b.is_ascii_digit());
        }
        let text = &self.input[start..self.at];
        if text.is_empty() {
            return Err(self.error("unexpected character in series values, expected number or \"stale\""));
        }
        number(text).map_err(|message| self.error(message))
    }

    /// A histogram, and whether its reset hint is given.
    fn histogram(&mut self) -> Result<(Arc<FloatHistogram>, bool), ParseError> {
        if !self.accept("{{") {
            return Err(self.error("expected a histogram"));
        }
        let mut histogram = FloatHistogram::default();
        let (mut offset, mut negative_offset) = (0, 0);
        let mut seen: Vec<&str> = Vec::new();
        loop {
            self.skip_spaces();
            if self.accept("}}") {
                break;
            }
            let key = self.take_while(|b| b == b'_' || b.is_ascii_alphabetic());
            if !self.accept(":") {
                return Err(self.error(format!("bad histogram descriptor found: {key:?}")));
            }
            if seen.contains(&key) {
                return Err(self.error(format!("duplicate key {key:?} in histogram")));
            }
            seen.push(key);
            match key {
                "schema" => histogram.schema = self.integer()?,
                "sum" => histogram.sum = self.signed_number()?,
                "count" => histogram.count = self.signed_number()?,
                "z_bucket" => histogram.zero_count = self.signed_number()?,
                "z_bucket_w" => histogram.zero_threshold = self.signed_number()?,
                "custom_values" => histogram.custom_values = self.list()?.into(),
                "buckets" => histogram.positive_buckets = self.list()?,
                "n_buckets" => histogram.negative_buckets = self.list()?,
                "offset" => offset = self.integer()?,
                "n_offset" => negative_offset = self.integer()?,
                "counter_reset_hint" => histogram.reset_hint = self.reset_hint()?,
                _ => return Err(self.error(format!("bad histogram descriptor found: {key:?}"))),
            }
        }
        histogram.positive_spans = spans(offset, histogram.positive_buckets.len());
        histogram.negative_spans = spans(negative_offset, histogram.negative_buckets.len());
        Ok((Arc::new(histogram), seen.contains(&"counter_reset_hint")))
    }

    fn integer(&mut self) -> Result<i32, ParseError> {
        let start = self.at;
        self.accept("-");
        self.take_while(|b| b.is_ascii_digit());
        let text = &self.input[start..self.at];
        text.parse().map_err(|_| self.error(format!("error parsing integer: {text:?}")))
    }

    fn list(&mut self) -> Result<Vec<f64>, ParseError> {
        if !self.accept("[") {
            return Err(self.error("expected \"[\""));
        }
        let mut list = Vec::new();
        loop {
            self.skip_spaces();
            if self.accept("]") {
                return Ok(list);
            }
            list.push(self.signed_number()?);
        }
    }

    fn reset_hint(&mut self) -> Result<ResetHint, ParseError> {
        match self.take_while(|b| b == b'_' || b.is_ascii_alphabetic()) {
            "unknown" => Ok(ResetHint::Unknown),
            "reset" => Ok(ResetHint::Reset),
            "not_reset" => Ok(ResetHint::NotReset),
            "gauge" => Ok(ResetHint::Gauge),
            other => Err(self.error(format!("error parsing counter_reset_hint: unknown value {other:?}"))),
        }
    }
}

/// One run of buckets from `offset` on.
fn spans(offset: i32, buckets: usize) -> Vec<BucketSpan> {
    match u32::try_from(buckets) {
        Ok(0) | Err(_) => Vec::new(),
        Ok(length) => vec![BucketSpan { offset, length }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn floats(input: &str, expected: &str) {
        let parsed = parse_series_description(input).unwrap();
        let values: Vec<String> = parsed
            .values
            .iter()
            .map(|value| match value {
                SequenceValue::Omitted => "_".to_owned(),
                SequenceValue::Float(v) if skald_model::is_stale_nan(*v) => "stale".to_owned(),
                SequenceValue::Float(v) => v.to_string(),
                SequenceValue::Histogram { .. } => "h".to_owned(),
            })
            .collect();
        assert_eq!(format!("{} {}", parsed.labels, values.join(" ")).trim_end(), expected, "{input}");
    }

    #[test]
    fn values_are_expanded() {
        floats("{} 1 2 3", "{} 1 2 3");
        floats("m", r#"{__name__="m"}"#);
        floats("m 0+10x3", r#"{__name__="m"} 0 10 20 30"#);
        floats("m 1.5-0.5x2 _ _x2 5x1", r#"{__name__="m"} 1.5 1 0.5 _ _ _ 5 5"#);
        floats("m\t-1e3+2x1   stale", r#"{__name__="m"} -1000 -998 stale"#);
        floats("m NaN Inf -inf 0x2 1e-1x1", r#"{__name__="m"} NaN inf -inf 0 0 0 0.1 0.1"#);
        floats(r#"m{a="b",c='d\n',} 3"#, r#"{__name__="m", a="b", c="d\n"} 3"#);
        floats(r#"{"my.m", "l l"="x"} 3"#, r#"{__name__="my.m", "l l"="x"} 3"#);
        floats("sum{start=\"x\"} {{}} {{}}x2", r#"{__name__="sum", start="x"} h h h h"#);
        floats("a:b {{}}", r#"{__name__="a:b"} h"#);
    }

    #[test]
    fn histograms_have_all_their_parts() {
        let text = "h {{schema:1 sum:-0.3 count:3.1 z_bucket:7.1 z_bucket_w:0.05 buckets:[5.1 10 -7] offset:-3 \
                    n_buckets:[4.1 5] n_offset:5 counter_reset_hint:gauge}}";
        let parsed = parse_series_description(text).unwrap();
        let [SequenceValue::Histogram { histogram, hint_given: true }] = parsed.values.as_slice() else { panic!() };
        let expected = FloatHistogram {
            reset_hint: ResetHint::Gauge,
            schema: 1,
            zero_threshold: 0.05,
            zero_count: 7.1,
            count: 3.1,
            sum: -0.3,
            positive_spans: vec![BucketSpan { offset: -3, length: 3 }],
            negative_spans: vec![BucketSpan { offset: 5, length: 2 }],
            positive_buckets: vec![5.1, 10.0, -7.0],
            negative_buckets: vec![4.1, 5.0],
            custom_values: Arc::default(),
        };
        assert_eq!(**histogram, expected);
    }

    #[test]
    fn histograms_grow_and_shrink() {
        let text = "h {{sum:3 count:4 buckets:[1 2 1]}}+{{sum:2 count:1 buckets:[1] offset:1}}x2";
        let parsed = parse_series_description(text).unwrap();
        let counts: Vec<_> = parsed
            .values
            .iter()
            .map(|value| match value {
                SequenceValue::Histogram { histogram: h, hint_given: false } => (h.sum, h.positive_buckets.clone()),
                _ => panic!("{value:?}"),
            })
            .collect();
        let expected = [(3.0, vec![1.0, 2.0, 1.0]), (5.0, vec![1.0, 3.0, 1.0]), (7.0, vec![1.0, 4.0, 1.0])];
        assert_eq!(counts, expected);
        assert_eq!(parse_series_description("h {{count:3}}-{{count:1}}x2").unwrap().values.len(), 3);
    }

    #[test]
    fn bad_descriptions_are_refused() {
        for text in [
            "",
            "1 2",
            "m{a=b} 1",
            "m{a=\"b\" 1",
            "m 1x",
            "m 1+2",
            "m {{",
            "m {{foo:1}}",
            "m {{sum:1 sum:2}}",
            "m 1,2",
            "m {{schema:1}}+{{schema:0}}x1",
            "m 1x99999999",
            "m _x18446744073709551616",
            "m 1 é",
            "m {{buckets:[1}}",
            "m {{count:1}}{{count:2}}",
            "m nope",
        ] {
            assert!(parse_series_description(text).is_err(), "{text}");
        }
    }
}
