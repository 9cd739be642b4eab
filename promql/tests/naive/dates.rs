//! Parts of a date, found by counting days from 1970 on: the generator's times are near enough.

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

/// Year, month, day of the month, day of the year.
fn date(seconds: f64) -> (i64, i64, i64, i64) {
    let days = (seconds as i64).div_euclid(86_400);
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
        "minute" => |s| ((s as i64).rem_euclid(3600) / 60) as f64,
        "hour" => |s| ((s as i64).rem_euclid(86_400) / 3600) as f64,
        "day_of_week" => |s| ((s as i64).div_euclid(86_400) + 4).rem_euclid(7) as f64,
        "day_of_month" => |s| date(s).2 as f64,
        "day_of_year" => |s| date(s).3 as f64,
        "days_in_month" => |s| month_length(date(s).0, date(s).1) as f64,
        "month" => |s| date(s).1 as f64,
        "year" => |s| date(s).0 as f64,
        _ => return None,
    })
}
