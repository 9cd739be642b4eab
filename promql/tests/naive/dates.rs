//! Parts of a date, found by counting days from 1970 on.

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Where Go's calendar begins: the first of March of the year -292,277,022,400, so many 400 years before 2000.
const CALENDAR_START: i128 = (11_017 - 730_692_561 * 146_097) * 86_400;

/// Whole seconds as Go has them: what 63 bits do not hold is the smallest number, and times wrap into the calendar.
fn whole(seconds: f64) -> i128 {
    let fits = seconds >= i64::MIN as f64 && seconds < i64::MAX as f64;
    let seconds = i128::from(if fits { seconds as i64 } else { i64::MIN });
    if seconds < CALENDAR_START { seconds + (1 << 64) } else { seconds }
}

/// Year, month, day of the month, day of the year.
fn date(seconds: f64) -> (i64, i64, i64, i64) {
    let days = whole(seconds).div_euclid(86_400) as i64;
    // The calendar repeats every 400 years.
    let (cycles, mut days) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let mut year = 1970 + 400 * cycles;
    while days >= 365 + i64::from(is_leap(year)) {
        days -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let mut month = 1;
    while days >= month_length(year, month) {
        days -= month_length(year, month);
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

pub fn by_name(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "minute" => |s| (whole(s).rem_euclid(3600) / 60) as f64,
        "hour" => |s| (whole(s).rem_euclid(86_400) / 3600) as f64,
        "day_of_week" => |s| (whole(s).div_euclid(86_400) + 4).rem_euclid(7) as f64,
        "day_of_month" => |s| date(s).2 as f64,
        "day_of_year" => |s| date(s).3 as f64,
        "days_in_month" => |s| month_length(date(s).0, date(s).1) as f64,
        "month" => |s| date(s).1 as f64,
        "year" => |s| date(s).0 as f64,
        _ => return None,
    })
}
