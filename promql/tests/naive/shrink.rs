//! Makes a failing case small: a part of the query, one step, few series, few samples.

use std::fmt::Write as _;

use skald_promql::ast::{Expr, ValueType};
use skald_promql::eval::EvalParams;
use skald_promql::testing::MemStorage;

use crate::compare::check;
use crate::value::*;
use crate::world::columns;

/// Comparisons made for one failure.
const ATTEMPTS: usize = 3000;

pub struct Case {
    pub query: Expr,
    pub params: EvalParams,
    pub data: Data,
}

impl Case {
    /// How the engine and the model differ, if they do.
    fn difference(&self) -> Option<String> {
        let series = self.data.iter().map(|(labels, samples)| (labels.clone(), columns(samples)));
        check(&self.query, &self.params, &self.data, &MemStorage::new(series)).err()
    }
}

/// The smallest failing case found, as text.
pub fn shrunk(mut case: Case) -> String {
    let Some(mut difference) = case.difference() else { return "does not fail again".to_owned() };
    let mut attempts = 0;
    loop {
        let smaller = candidates(&case).into_iter().find_map(|candidate| {
            attempts += 1;
            let difference = (attempts < ATTEMPTS).then(|| candidate.difference()).flatten()?;
            Some((candidate, difference))
        });
        match smaller {
            Some(smaller) => (case, difference) = smaller,
            None => break,
        }
    }
    let mut text = format!("{}\n  {:?}\n  {difference}\n", case.query, case.params);
    for (labels, samples) in &case.data {
        let _ = writeln!(text, "  {labels}");
        for s in samples {
            let _ = writeln!(text, "    {} {:?}", s.t, s.v);
        }
    }
    text
}

/// Cases a little smaller, the most promising first.
fn candidates(case: &Case) -> Vec<Case> {
    let (params, data) = (&case.params, &case.data);
    let with_data = |data: Data| Case { query: case.query.clone(), params: params.clone(), data };
    let mut all = Vec::new();
    let answers = |e: &&Expr| matches!(e.value_type(), ValueType::Vector | ValueType::Scalar);
    for part in case.query.descendants().skip(1).filter(answers) {
        all.push(Case { query: part.clone(), params: params.clone(), data: data.clone() });
    }
    if params.step_ms > 0 {
        for t in (params.start_ms..=params.end_ms).step_by(params.step_ms as usize) {
            let params = EvalParams { start_ms: t, end_ms: t, step_ms: 0, ..params.clone() };
            all.push(Case { query: case.query.clone(), params, data: data.clone() });
        }
    }
    for i in 0..data.len() {
        let mut fewer = data.clone();
        fewer.remove(i);
        all.push(with_data(fewer));
    }
    if data.len() > 3 {
        return all;
    }
    for (i, (_, samples)) in data.iter().enumerate() {
        let mut size = samples.len() / 2;
        while size > 0 {
            for from in (0..samples.len()).step_by(size) {
                let mut fewer = data.clone();
                fewer[i].1.drain(from..(from + size).min(samples.len()));
                all.push(with_data(fewer));
            }
            size /= 2;
        }
    }
    all
}
