//! Arithmetic on floats: compensated sums, means, quantiles, least squares, Go's `math.Max` and `%g`.

/// A sum with what rounding took from it (Kahan, Neumaier).
#[derive(Clone, Copy, Debug)]
pub struct Kahan {
    pub sum: f64,
    pub lost: f64,
}

impl Kahan {
    pub fn of(sum: f64) -> Self {
        Self { sum, lost: 0.0 }
    }

    pub fn plus(self, x: f64) -> Self {
        let sum = self.sum + x;
        let lost = if sum.is_infinite() {
            0.0
        } else if self.sum.abs() >= x.abs() {
            self.lost + ((self.sum - sum) + x)
        } else {
            self.lost + ((x - sum) + self.sum)
        };
        Self { sum, lost }
    }

    pub fn value(self) -> f64 {
        self.sum + self.lost
    }
}

/// The compensated mean; goes on incrementally from where the sum would become infinite.
pub fn mean(values: &[f64]) -> f64 {
    let mut total = Kahan::of(values[0]);
    let mut incremental = false;
    for (i, x) in values.iter().enumerate().skip(1) {
        let count = (i + 1) as f64;
        if !incremental {
            let next = total.plus(*x);
            if !next.sum.is_infinite() {
                total = next;
                continue;
            }
            incremental = true;
            total = Kahan { sum: total.sum / (count - 1.0), lost: total.lost / (count - 1.0) };
        }
        let q = (count - 1.0) / count;
        total = Kahan { sum: q * total.sum, lost: q * total.lost }.plus(x / count);
    }
    let count = values.len() as f64;
    if incremental { total.value() } else { total.sum / count + total.lost / count }
}

/// Population variance with compensation, as of a range.
pub fn variance_over_time(values: &[f64]) -> f64 {
    let (mut mean, mut squares) = (Kahan::of(0.0), Kahan::of(0.0));
    for (i, x) in values.iter().enumerate() {
        let delta = x - mean.value();
        mean = mean.plus(delta / (i + 1) as f64);
        squares = squares.plus(delta * (x - mean.value()));
    }
    squares.value() / values.len() as f64
}

/// Population variance without compensation, as of an aggregation.
pub fn variance(values: &[f64]) -> f64 {
    let mut mean = values[0];
    let mut squares = if mean.is_finite() { 0.0 } else { f64::NAN };
    for (i, x) in values.iter().enumerate().skip(1) {
        let delta = x - mean;
        mean += delta / (i + 1) as f64;
        squares += delta * (x - mean);
    }
    squares / values.len() as f64
}

pub fn quantile(q: f64, values: &[f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let mut sorted = values.to_vec();
    // NaN is smaller than everything.
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan())));
    let rank = q * (sorted.len() - 1) as f64;
    let lower = rank.floor() as usize;
    let upper = (lower + 1).min(sorted.len() - 1);
    let weight = rank - rank.floor();
    sorted[lower] * (1.0 - weight) + sorted[upper] * weight
}

/// Slope per second, and the value at `origin`.
pub fn least_squares(points: &[(i64, f64)], origin: i64) -> (f64, f64) {
    if points.iter().all(|(_, y)| *y == points[0].1) {
        return if points[0].1.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, points[0].1) };
    }
    let sum = |f: &dyn Fn(f64, f64) -> f64| {
        let add = |sum: Kahan, (t, y): &(i64, f64)| sum.plus(f((t - origin) as f64 / 1000.0, *y));
        points.iter().fold(Kahan::of(0.0), add).value()
    };
    let (x, y, xy, xx) = (sum(&|x, _| x), sum(&|_, y| y), sum(&|x, y| x * y), sum(&|x, _| x * x));
    let n = points.len() as f64;
    let slope = (xy - x * y / n) / (xx - x * x / n);
    (slope, y / n - slope * x / n)
}

/// `math.Max`: NaN if either is, but infinity wins; of the two zeros the positive one.
pub fn go_max(a: f64, b: f64) -> f64 {
    if a == f64::INFINITY || b == f64::INFINITY {
        return f64::INFINITY;
    }
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    if a == 0.0 && b == 0.0 {
        return if a.is_sign_positive() { a } else { b };
    }
    if a > b { a } else { b }
}

pub fn go_min(a: f64, b: f64) -> f64 {
    -go_max(-a, -b)
}

/// Go's `%g`; without `exponent` its `'f'` format.
pub fn format(value: f64, exponent: bool) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    let scientific = format!("{value:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    if exponent && value != 0.0 && !(-4..6).contains(&power) {
        return format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs());
    }
    format!("{value}")
}

/// As Go and FreeBSD's msun have it: by three formulas, each good in its range.
pub fn asinh(x: f64) -> f64 {
    let y = x.abs();
    let result = match y {
        _ if !x.is_finite() => return x,
        _ if y > 268_435_456.0 => y.ln() + std::f64::consts::LN_2,
        _ if y > 2.0 => (2.0 * y + 1.0 / ((y * y + 1.0).sqrt() + y)).ln(),
        _ if y < 1.0 / 268_435_456.0 => y,
        _ => (y + y * y / (1.0 + (1.0 + y * y).sqrt())).ln_1p(),
    };
    result.copysign(x)
}

pub fn acosh(x: f64) -> f64 {
    match x {
        _ if x >= 268_435_456.0 => x.ln() + std::f64::consts::LN_2,
        _ if x > 2.0 => (2.0 * x - 1.0 / (x + (x * x - 1.0).sqrt())).ln(),
        _ if x >= 1.0 => (x - 1.0 + (2.0 * (x - 1.0) + (x - 1.0) * (x - 1.0)).sqrt()).ln_1p(),
        _ => f64::NAN,
    }
}
