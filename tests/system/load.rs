//! Data on which queries have much to do: one wide metric, classic and native histograms, info series.

use crate::process::Skald;
use crate::sender::{Request, put_field, put_uvarint};

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What is loaded: one wide metric, classic and native histograms, info series.
pub struct Data {
    pub series: usize,
    pub samples: i64,
    pub end: i64,
}

const STEP_MS: i64 = 15_000;
const SERIES_PER_REQUEST: usize = 2000;

impl Data {
    pub async fn push(&self, skald: &Skald) {
        let mut request = Request::default();
        let mut pending = 0;
        let times: Vec<i64> = (0..self.samples).map(|i| self.end - (self.samples - 1 - i) * STEP_MS).collect();
        let floats = |n: usize| -> Vec<(i64, f64)> {
            times.iter().enumerate().map(|(i, t)| (*t, n as f64 + i as f64 * 0.37)).collect()
        };
        for n in 0..self.series {
            let (i, job) = (format!("number-{n:06}"), format!("job-{}", n % 10));
            let (instance, zone) = (format!("host-{:03}", n % 100), format!("zone-{}", n % 3));
            let labels = [("__name__", "wide"), ("i", &i), ("instance", &instance), ("job", &job), ("zone", &zone)];
            request = request.series(&labels, &floats(n));
            if n % 20 == 0 {
                for le in ["0.1", "0.5", "1", "2.5", "5", "10", "+Inf"] {
                    let labels = [("__name__", "lat_bucket"), ("h", &i), ("le", le)];
                    request = request.series(&labels, &floats(n));
                }
            }
            if n % 50 == 0 {
                let labels = [("__name__", "target_info"), ("instance", &instance), ("job", &job), ("version", &i)];
                request = request.series(&labels, &floats(1));
                request = request.histograms(&[("__name__", "native"), ("h", &i)], &times, n as u64);
            }
            pending += 1;
            if pending == SERIES_PER_REQUEST || n + 1 == self.series {
                let answer = skald.push(std::mem::take(&mut request).body()).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.body);
                pending = 0;
            }
        }
    }
}

impl Request {
    /// Adds a series of native histograms of 160 buckets each.
    fn histograms(mut self, labels: &[(&str, &str)], times: &[i64], seed: u64) -> Self {
        let mut series = Vec::new();
        for (name, value) in labels {
            let mut label = Vec::new();
            put_field(&mut label, 1, name.as_bytes());
            put_field(&mut label, 2, value.as_bytes());
            put_field(&mut series, 1, &label);
        }
        for (i, time) in times.iter().enumerate() {
            let count = 160 * (i as u64 + 1 + seed % 7);
            let mut histogram = vec![0x08];
            put_uvarint(&mut histogram, count);
            histogram.push(0x19);
            histogram.extend_from_slice(&(count as f64).to_le_bytes());
            // Schema 3, zigzag; one span of 160 buckets; the first count, then no differences.
            histogram.extend_from_slice(&[0x20, 6]);
            put_field(&mut histogram, 11, &[0x08, 0, 0x10, 0xa0, 0x01]);
            let mut deltas = Vec::new();
            put_uvarint(&mut deltas, 2 * (count / 160));
            deltas.extend_from_slice(&[0; 159]);
            put_field(&mut histogram, 12, &deltas);
            histogram.push(0x78);
            put_uvarint(&mut histogram, *time as u64);
            put_field(&mut series, 4, &histogram);
        }
        put_field(&mut self.bytes, 1, &series);
        self
    }
}
