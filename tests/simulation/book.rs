//! What was sent and acknowledged, and what answers have to hold.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The names of the tenants, who have the same series.
pub const TENANTS: [&str; 2] = ["anna", "bert"];
/// What distinguishes the tenants' values.
const TENANT_STEP: f64 = 1e9;

/// A sample that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    value: f64,
    acknowledged: bool,
}

/// Everything that was sent by all tenants.
#[derive(Default)]
pub struct Book {
    /// By tenant, name of the series, time.
    sent: [BTreeMap<String, BTreeMap<i64, Sent>>; 2],
    next: u64,
    pub acknowledged: u64,
}

/// What a query asks for, and what has to be in its answer.
pub struct Question {
    tenant: usize,
    /// Times, the later one included.
    after: i64,
    upto: i64,
    /// Of each series.
    due: BTreeMap<String, BTreeSet<i64>>,
}

impl Book {
    /// A value that nobody else sends.
    pub fn value(&mut self, tenant: usize) -> f64 {
        self.next += 1;
        self.next as f64 + tenant as f64 * TENANT_STEP
    }

    /// Whether a series has no sample at that time yet.
    pub fn is_free(&self, tenant: usize, series: &str, time: i64) -> bool {
        self.sent[tenant].get(series).is_none_or(|samples| !samples.contains_key(&time))
    }

    /// Notes what is about to be sent.
    pub fn send(&mut self, tenant: usize, series: &str, time: i64, value: f64) {
        let sent = Sent { value, acknowledged: false };
        self.sent[tenant].entry(series.to_owned()).or_default().insert(time, sent);
    }

    /// Notes that it was acknowledged.
    pub fn acknowledge(&mut self, tenant: usize, series: &str, time: i64) {
        if let Some(sent) = self.sent[tenant].get_mut(series).and_then(|samples| samples.get_mut(&time)) {
            self.acknowledged += u64::from(!sent.acknowledged);
            sent.acknowledged = true;
        }
    }

    /// What a query of these times must find, if it begins now. `wanted` says of which series.
    pub fn question(&self, tenant: usize, after: i64, upto: i64, wanted: impl Fn(&str) -> bool) -> Question {
        let series = self.sent[tenant].iter().filter(|(name, _)| wanted(name));
        let due = series.map(|(name, samples)| {
            let range = samples.range(after + 1..=upto).filter(|(_, sent)| sent.acknowledged);
            (name.clone(), range.map(|(time, _)| *time).collect())
        });
        Question { tenant, after, upto, due: due.collect() }
    }

    /// What is wrong with a range vector that answered a question.
    pub fn check(&self, question: &Question, answer: &Value) -> Result<usize, String> {
        let Question { tenant, after, upto, due } = question;
        let mut due = due.clone();
        let mut found = 0;
        for series in answer["data"]["result"].as_array().ok_or("the answer has no result")? {
            let name = name_of(&series["metric"]);
            let known = self.sent[*tenant].get(&name);
            let known = known.ok_or_else(|| format!("{} never sent the series {name}", TENANTS[*tenant]))?;
            let mut due = due.remove(&name).unwrap_or_default();
            for point in series["values"].as_array().into_iter().flatten() {
                let time = (point[0].as_f64().unwrap_or(f64::NAN) * 1000.0).round() as i64;
                let value: f64 = point[1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
                let sent = known.get(&time);
                match sent {
                    Some(sent) if sent.value == value && (*after < time && time <= *upto) => {}
                    _ => {
                        let of = TENANTS[(value / TENANT_STEP) as usize % 2];
                        let text = format!("{name} at {time} is {value}, a value of {of}, where {sent:?} was sent");
                        return Err(format!("{} was answered: {text}", TENANTS[*tenant]));
                    }
                }
                due.remove(&time);
                found += 1;
            }
            if let Some(missing) = due.first() {
                return Err(self.short(*tenant, &name, *missing, due.len()));
            }
        }
        match due.iter().find_map(|(name, times)| Some((name, times.first()?, times.len()))) {
            Some((name, missing, count)) => Err(self.short(*tenant, name, *missing, count)),
            None => Ok(found),
        }
    }

    fn short(&self, tenant: usize, series: &str, time: i64, count: usize) -> String {
        let sent = self.sent[tenant][series][&time];
        let tenant = TENANTS[tenant];
        format!("short: {tenant} misses {count} acknowledged samples of {series}, the first at {time}: {sent:?}")
    }
}

fn name_of(metric: &Value) -> String {
    let mut labels: Vec<String> =
        metric.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels.join(",").replace('"', "")
}

/// A series' name in the book.
pub fn series_name(labels: &[(&str, &str)]) -> String {
    let mut labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels.join(",")
}
