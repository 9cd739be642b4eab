//! `skald tsdb dump`: samples, one a line for people, one series a line for programs.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::json;
use skald_model::{Columns, FloatHistogram, Labels};
use skald_tsdb::block::{LocalBlock, cut_columns};
use skald_tsdb::decode::decode_series;

use super::place::FoundBlock;
use super::{Tool, ToolError, of_block};

impl Tool<'_> {
    pub(super) async fn dump(&mut self) -> Result<bool, ToolError> {
        let (matchers, range) = (self.options.matchers()?, self.options.range()?);
        let mut all_sound = true;
        for block in self.blocks.clone() {
            let copy = self.place.bring(&block, &self.options).await?;
            let opened = LocalBlock::open(self.disk.as_ref(), &copy.dir).map(Arc::new);
            let series = match opened.and_then(|opened| opened.select(&matchers, range)) {
                Ok(series) => series,
                Err(error) => {
                    eprintln!("skald: {}", of_block(&block)(error));
                    all_sound = false;
                    continue;
                }
            };
            for series in series {
                let mut columns = Columns::default();
                let decoded = series.and_then(|series| {
                    decode_series(&series.chunks, range, &mut columns)
                        .map_err(|error| skald_tsdb::block::BlockError::Input(format!("{}: {error}", series.labels)))?;
                    cut_columns(&mut columns, &series.deleted);
                    Ok(series.labels)
                });
                match decoded {
                    Ok(labels) => self.print_series(&block, &labels, &columns)?,
                    Err(error) => {
                        eprintln!("skald: {}; `skald tsdb repair` saves what is readable", of_block(&block)(error));
                        all_sound = false;
                    }
                }
            }
        }
        Ok(all_sound)
    }

    fn print_series(&mut self, block: &FoundBlock, labels: &Labels, columns: &Columns) -> Result<(), ToolError> {
        if columns.is_empty() {
            return Ok(());
        }
        if self.is_json() {
            let labels: serde_json::Map<_, _> =
                labels.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            let floats = columns.float_timestamps.iter().zip(&columns.float_values);
            let histograms = columns.histogram_timestamps.iter().zip(&columns.histograms);
            return self.print_json(&json!({
                "tenant": block.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
                "ulid": block.ulid.to_string(),
                "metric": labels,
                // Strings, as in the query API: JSON has no NaN and no infinity.
                "values": floats.map(|(t, v)| json!([t, go_g(*v)])).collect::<Vec<_>>(),
                "histograms": histograms.map(|(t, h)| json!([t, describe(h)])).collect::<Vec<_>>(),
            }));
        }
        let (mut floats, mut histograms) = (0, 0);
        while floats < columns.float_timestamps.len() || histograms < columns.histogram_timestamps.len() {
            let float = columns.float_timestamps.get(floats);
            let histogram = columns.histogram_timestamps.get(histograms);
            match (float, histogram) {
                (Some(time), other) if other.is_none_or(|other| time < other) => {
                    writeln!(self.out, "{labels} {} {time}", go_g(columns.float_values[floats]))?;
                    floats += 1;
                }
                (_, Some(time)) => {
                    writeln!(self.out, "{labels} {} {time}", describe(&columns.histograms[histograms]))?;
                    histograms += 1;
                }
                _ => break,
            }
        }
        Ok(())
    }
}

/// A number as Go's `%g` prints it, which is what `promtool tsdb dump` does: with an exponent below 1e-4 and from 1e6 on.
fn go_g(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        return with_exponent(&skald_model::GoFloat(value).to_string());
    }
    skald_model::GoFloat(value).to_string()
}

/// Moves a number's point behind its first digit: `-0.00125` becomes `-1.25e-03`.
fn with_exponent(plain: &str) -> String {
    let (sign, plain) = plain.strip_prefix('-').map_or(("", plain), |plain| ("-", plain));
    let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
    let digits = format!("{whole}{fraction}");
    let zeros = digits.bytes().take_while(|digit| *digit == b'0').count();
    let exponent = whole.len() as i64 - 1 - zeros as i64;
    let digits = digits[zeros..].trim_end_matches('0');
    let (first, rest) = digits.split_at(digits.len().min(1));
    let point = if rest.is_empty() { "" } else { "." };
    let exponent_sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{first}{point}{rest}e{exponent_sign}{:02}", exponent.abs())
}

/// A histogram as Prometheus prints it: `{count:3, sum:4.5, [-1,1]:1, (1,2]:2}`.
fn describe(histogram: &FloatHistogram) -> String {
    let mut text = format!("{{count:{}, sum:{}", go_g(histogram.count), go_g(histogram.sum));
    for bucket in histogram.buckets().filter(|bucket| bucket.count != 0.0) {
        let (open, close) =
            (if bucket.lower_inclusive { '[' } else { '(' }, if bucket.upper_inclusive { ']' } else { ')' });
        let (lower, upper, count) = (go_g(bucket.lower), go_g(bucket.upper), go_g(bucket.count));
        let _ = write!(text, ", {open}{lower},{upper}{close}:{count}");
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_go() {
        let expected = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (999_999.5, "999999.5"),
            (1e6, "1e+06"),
            (-1_234_567.25, "-1.23456725e+06"),
            (1e15 + 0.25, "1.0000000000000002e+15"),
            (1e21, "1e+21"),
            (0.0001, "0.0001"),
            (1.25e-5, "1.25e-05"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Inf"),
        ];
        for (value, text) in expected {
            assert_eq!(go_g(value), text);
        }
    }
}
