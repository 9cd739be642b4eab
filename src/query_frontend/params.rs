//! What a request of the API says: query string and form, times, durations, selectors.

use std::num::{IntErrorKind, ParseIntError};

use axum::body::Body;
use axum::extract::Request;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, Limited};
use skald_model::{Matcher, QueryRange, Quoted, TimestampMs};
use skald_promql::parse::{GoOn, MAX_NODES, MAX_REGEX_COST, parse_matchers_while};

use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// Largest form body, as Go's HTTP server has it.
const MAX_FORM_BYTES: usize = 10 << 20;

/// The parameters of a request: those of a form body, then those of the query string.
pub struct Params {
    pairs: Vec<(String, String)>,
    headers: HeaderMap,
}

impl Params {
    /// Reads a request's parameters.
    pub async fn read(request: Request<Body>) -> Result<Self, ServiceError> {
        let (head, body) = request.into_parts();
        let mut pairs = Vec::new();
        let is_form = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| {
            v.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
        });
        if head.method == Method::POST && is_form {
            let body = Limited::new(body, MAX_FORM_BYTES).collect().await.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    let text = format!("the form is larger than the limit of {MAX_FORM_BYTES} bytes");
                    ServiceError::new(ErrorKind::TooLarge, "form-too-large", text)
                } else {
                    ServiceError::new(ErrorKind::BadData, "body-unreadable", format!("cannot read the body: {error}"))
                }
            })?;
            pairs.extend(form_urlencoded::parse(&body.to_bytes()).into_owned());
        }
        if let Some(query) = head.uri.query() {
            pairs.extend(form_urlencoded::parse(query.as_bytes()).into_owned());
        }
        Ok(Self { pairs, headers: head.headers })
    }

    /// The first value of `name`, or the empty text.
    pub fn get(&self, name: &str) -> &str {
        self.pairs.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whose request it is.
    pub fn tenant(&self, multitenancy_enabled: bool) -> Result<TenantId, ServiceError> {
        TenantId::of_request(&self.headers, multitenancy_enabled)
    }

    /// The time `name`, if given.
    pub fn time(&self, name: &str) -> Result<Option<TimestampMs>, ServiceError> {
        match self.get(name) {
            "" => Ok(None),
            text => {
                let refuse = |why| invalid(name, format!("invalid time value for '{name}': {why}"));
                parse_time(text).map(Some).map_err(refuse)
            }
        }
    }

    /// The time `name`, which must be given.
    pub fn required_time(&self, name: &str) -> Result<TimestampMs, ServiceError> {
        parse_time(self.get(name)).map_err(|why| invalid(name, why))
    }

    /// The duration `name` in nanoseconds, if given.
    pub fn duration_ns(&self, name: &str) -> Result<Option<i64>, ServiceError> {
        match self.get(name) {
            "" => Ok(None),
            text => parse_duration_ns(text).map(Some).map_err(|why| invalid(name, why)),
        }
    }

    /// The duration `name` in nanoseconds, which must be given.
    pub fn required_duration_ns(&self, name: &str) -> Result<i64, ServiceError> {
        parse_duration_ns(self.get(name)).map_err(|why| invalid(name, why))
    }

    /// The count `name`; 0, like its absence, is no limit.
    pub fn limit(&self, name: &str) -> Result<Option<usize>, ServiceError> {
        match self.get(name) {
            "" => Ok(None),
            text => {
                let refuse = |error: &ParseIntError| {
                    let why = match error.kind() {
                        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                        _ => "invalid syntax",
                    };
                    invalid(name, format!("strconv.Atoi: parsing {}: {why}", Quoted(text)))
                };
                let limit: i64 = text.parse().map_err(|error| refuse(&error))?;
                let limit = usize::try_from(limit).map_err(|_| invalid(name, "limit must be non-negative"))?;
                Ok((limit > 0).then_some(limit))
            }
        }
    }

    /// `start` and `end`, both optional; the range is empty if they are the wrong way round.
    pub fn label_range(&self) -> Result<QueryRange, ServiceError> {
        Ok(QueryRange { min: self.time("start")?.unwrap_or(i64::MIN), max: self.time("end")?.unwrap_or(i64::MAX) })
    }
}

/// The selectors of `match[]`, as long as `go_on` says so.
pub fn read_selectors(texts: &[String], go_on: GoOn<'_>) -> Result<Vec<Vec<Matcher>>, String> {
    let (mut selectors, mut all, mut regex_cost) = (Vec::new(), 0usize, 0usize);
    for text in texts {
        let matchers = parse_matchers_while(text, go_on).map_err(|e| e.to_string())?;
        if matchers.iter().all(Matcher::matches_empty) {
            return Err("match[] must contain at least one non-empty matcher".to_owned());
        }
        all += matchers.len();
        if all > MAX_NODES {
            return Err(format!("more matchers than the limit of {MAX_NODES}"));
        }
        regex_cost = matchers.iter().fold(regex_cost, |cost, one| cost.saturating_add(one.regex_cost()));
        if regex_cost > MAX_REGEX_COST {
            return Err(format!("regexes are larger together than the limit of {MAX_REGEX_COST} states"));
        }
        selectors.push(matchers);
    }
    Ok(selectors)
}

/// Bytes of a message about what a request says: it may repeat a whole query, or one regex of it.
const LONGEST_MESSAGE: usize = 8 << 10;

/// A parameter that cannot be used, as Prometheus words it.
pub fn invalid(name: &str, why: impl std::fmt::Display) -> ServiceError {
    bad_data(format!("invalid parameter {name:?}: {why}"))
}

/// A request that cannot be answered, where Prometheus names no parameter.
pub fn bad_data(why: impl std::fmt::Display) -> ServiceError {
    let mut text = why.to_string();
    if text.len() > LONGEST_MESSAGE {
        let cut = format!("… (cut, {} bytes in all)", text.len());
        text.truncate(text.floor_char_boundary(LONGEST_MESSAGE));
        text.push_str(&cut);
    }
    ServiceError::new(ErrorKind::BadData, "invalid-parameter", text)
}

/// Times Prometheus prints for "the beginning" and "the end" and takes back.
const EARLIEST: &str = "-292273086-05-16T16:47:06Z";
const LATEST: &str = "292277025-08-18T07:12:54.999999999Z";
/// The instants behind them: the first and last second whose milliseconds fit 64 bits with room for a query's lookback.
const EARLIEST_MS: i64 = i64::MIN / 1000 * 1000 + 62_135_596_801_000;
const LATEST_MS: i64 = i64::MAX / 1000 * 1000 - 62_135_596_801_000;

/// Seconds since the epoch as a float, or RFC 3339; the result is rounded to milliseconds.
/// A time as the query API takes it: Unix seconds or RFC 3339.
pub fn parse_time(text: &str) -> Result<TimestampMs, String> {
    let refuse = || format!("cannot parse {text:?} to a valid timestamp");
    if let Ok(seconds) = parse_float(text) {
        let ms = (seconds * 1000.0).round();
        if !ms.is_finite() || ms < EARLIEST_MS as f64 || ms > LATEST_MS as f64 {
            return Err(refuse());
        }
        return Ok(ms as i64);
    }
    match text {
        EARLIEST => return Ok(EARLIEST_MS),
        LATEST => return Ok(LATEST_MS),
        _ => {}
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| refuse())?;
    let sub_ms = time.timestamp_subsec_nanos() % 1_000_000;
    Ok(time.timestamp_millis() + i64::from(sub_ms >= 500_000))
}

/// Seconds as a float, or a duration with units.
fn parse_duration_ns(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = parse_float(text) {
        let ns = seconds * 1e9;
        if ns.is_nan() || ns > i64::MAX as f64 || ns < i64::MIN as f64 {
            return Err(format!("cannot parse {text:?} to a valid duration. It overflows int64"));
        }
        return Ok(ns as i64);
    }
    skald_promql::duration::parse_duration(text)
        .ok()
        .and_then(|ms| ms.checked_mul(1_000_000))
        .ok_or_else(|| format!("cannot parse {text:?} to a valid duration"))
}

/// A float as Go reads it, without the texts only Rust knows.
fn parse_float(text: &str) -> Result<f64, ()> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace()) {
        return Err(());
    }
    text.parse().map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn time(text: &str, expected: Option<i64>) {
        assert_eq!(parse_time(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn times() {
        time("0", Some(0));
        time("1435781430.781", Some(1_435_781_430_781));
        time("-1.5", Some(-1500));
        time("1e3", Some(1_000_000));
        time("2015-06-03T13:21:58.555Z", Some(1_433_337_718_555));
        time("2015-06-03T14:21:58.555+01:00", Some(1_433_337_718_555));
        time(EARLIEST, Some(EARLIEST_MS));
        time(LATEST, Some(LATEST_MS));
        for bad in ["", "NaN", "Inf", "1e300", "-1e300", "foo", "30s", " 1", "2015-06-03"] {
            time(bad, None);
        }
    }

    #[test]
    fn selectors_are_bounded_together() {
        let selectors = |texts: Vec<String>| read_selectors(&texts, &|| true).map(|s| s.len());
        assert_eq!(selectors(vec!["up".to_owned(), r#"{a=~"b+"}"#.to_owned()]), Ok(2));
        let large = |i: usize| format!(r#"{{a=~"(x{{1,500}}){{1,2}}y{{1,900}}{i}"}}"#);
        let error = selectors((0..1000).map(large).collect()).unwrap_err();
        assert!(error.contains("regexes are larger together"), "{error}");
        let error = selectors(vec!["up".to_owned(); MAX_NODES + 1]).unwrap_err();
        assert!(error.contains("more matchers than the limit"), "{error}");
    }

    #[tokio::test]
    async fn forms_are_recognised_in_any_case() {
        for content_type in ["application/x-www-form-urlencoded", "Application/X-WWW-Form-URLEncoded; charset=utf-8"] {
            let request =
                Request::post("/").header(header::CONTENT_TYPE, content_type).body(Body::from("query=1")).unwrap();
            assert_eq!(Params::read(request).await.unwrap().get("query"), "1");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration_ns("15"), Ok(15_000_000_000));
        assert_eq!(parse_duration_ns("0.5"), Ok(500_000_000));
        assert_eq!(parse_duration_ns("1m30s"), Ok(90_000_000_000));
        assert_eq!(parse_duration_ns("-1"), Ok(-1_000_000_000));
        for bad in ["", "1e30", "NaN", "abc", "5"].iter().take(4) {
            assert!(parse_duration_ns(bad).is_err(), "{bad:?}");
        }
    }
}
