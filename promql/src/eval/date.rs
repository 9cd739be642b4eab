//! Date functions (UTC, proleptic Gregorian calendar); `timestamp` and `start_timestamp` of an expression.

use std::task::{Context, Poll, ready};

use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::StepSeries;
use crate::plan::Grid;

/// A part of a date.
pub(crate) type DatePart = fn(f64) -> f64;

/// The date function called `name`: seconds since the epoch to the part of the date.
pub(crate) fn by_name(name: &str) -> Option<DatePart> {
    Some(match name {
        "minute" => |t| (whole_seconds(t).rem_euclid(3600) / 60) as f64,
        "hour" => |t| (whole_seconds(t).rem_euclid(86_400) / 3600) as f64,
        "day_of_week" => |t| (whole_days(t) + 4).rem_euclid(7) as f64,
        "day_of_month" => |t| Date::of(t).day as f64,
        "day_of_year" => |t| (whole_days(t) - days_from_civil(Date::of(t).year, 1, 1) + 1) as f64,
        "days_in_month" => |t| Date::of(t).days_in_month() as f64,
        "month" => |t| Date::of(t).month as f64,
        "year" => |t| Date::of(t).year as f64,
        _ => return None,
    })
}

/// Seconds before which Go's calendar, in which Prometheus computes, begins again after its end: the first of March of
/// the year -292,277,022,400.
const CALENDAR_START: i128 = days_from_civil(-292_277_022_400, 3, 1) as i128 * 86_400;

/// The seconds a float means. What 63 bits do not hold, not a number included, is the earliest such time.
fn whole_seconds(t: f64) -> i128 {
    let seconds =
        if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&t) { t as i64 } else { i64::MIN };
    let seconds = i128::from(seconds);
    if seconds < CALENDAR_START { seconds + (1 << 64) } else { seconds }
}

fn whole_days(t: f64) -> i64 {
    whole_seconds(t).div_euclid(86_400) as i64
}

struct Date {
    year: i64,
    month: i64,
    day: i64,
}

impl Date {
    /// From days since the epoch (Howard Hinnant's `civil_from_days`).
    fn of(t: f64) -> Self {
        let z = whole_days(t) + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self { year: year_of_era + era * 400 + i64::from(month <= 2), month, day }
    }

    fn days_in_month(&self) -> i64 {
        let (year, month) = if self.month == 12 { (self.year + 1, 1) } else { (self.year, self.month + 1) };
        days_from_civil(year, month, 1) - days_from_civil(self.year, self.month, 1)
    }
}

const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A time in milliseconds as RFC 3339, whole seconds.
pub(crate) fn rfc3339(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let date = Date::of(seconds as f64);
    let (day, time) = ((date.year, date.month, date.day), seconds.rem_euclid(86_400));
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day.0, day.1, day.2)
}

/// `timestamp(e)` of anything but a selector: the evaluation time wherever `e` has a value.
pub(crate) struct EvaluationTime {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) grid: Grid,
}

impl Operator for EvaluationTime {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
        let points = &mut series.points;
        for (step, _) in points.take_histograms() {
            points.floats.set(step as usize);
        }
        points.values.iter_mut().enumerate().for_each(|(step, v)| *v = self.grid.time(step) as f64 / 1000.0);
        env.tick(self.grid.count)?;
        env.names.drop(&mut series);
        Poll::Ready(Ok(Some(series)))
    }
}

/// `start_timestamp(e)` of anything but a selector: `e` is evaluated, but what was computed has no start timestamp.
pub(crate) struct WithoutStart {
    pub(crate) child: Box<dyn Operator>,
}

impl Operator for WithoutStart {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while let Some(series) = ready!(self.child.poll_next(cx, env))? {
            env.recycle(series.points);
        }
        Poll::Ready(Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_dates() {
        let check = |name: &str, t: f64, want: f64| assert_eq!(by_name(name).unwrap()(t), want, "{name}({t})");
        for (name, want) in [
            ("year", 2006.0),
            ("month", 1.0),
            ("day_of_month", 2.0),
            ("day_of_year", 2.0),
            ("day_of_week", 1.0),
            ("hour", 22.0),
            ("minute", 4.0),
            ("days_in_month", 31.0),
        ] {
            check(name, 1_136_239_445.0, want);
        }
        check("day_of_month", 1_456_790_399.0, 29.0);
        check("day_of_year", 1_483_191_420.0, 366.0);
        check("days_in_month", 1_454_284_800.0, 29.0);
        check("year", -1.0, 1969.0);
        check("hour", -1.0, 23.0);
        check("day_of_week", -86_400.0, 3.0);
    }

    #[test]
    fn rfc3339_of_milliseconds() {
        assert_eq!(rfc3339(1_136_239_445_999), "2006-01-02T22:04:05Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn every_day_round_trips() {
        for day in (-800_000..800_000).step_by(17) {
            let date = Date::of(day as f64 * 86_400.0);
            assert_eq!(days_from_civil(date.year, date.month, date.day), day);
        }
    }

    #[test]
    fn absurd_times_do_not_overflow() {
        for t in [f64::MAX, f64::MIN, f64::NAN] {
            for name in ["year", "day_of_year", "days_in_month", "minute"] {
                by_name(name).unwrap()(t);
            }
        }
    }
}
