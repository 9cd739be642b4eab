//! `info`: adds labels of info series.

use skald_model::{Labels, METRIC_NAME, MatchOp, Matcher};
use skald_promql::ast::{Call, Expr, VectorSelector};

use crate::evaluator::{Naive, check_unique, without_parens};
use crate::value::*;

const IDENTIFYING: [&str; 2] = ["instance", "job"];

impl Naive<'_> {
    pub fn info(&self, call: &Call, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let matchers: &[Matcher] = match call.args.get(1).map(without_parens) {
            Some(Expr::Vector(selector)) => &selector.matchers,
            _ => &[],
        };
        let (mut names, data): (Vec<Matcher>, Vec<Matcher>) =
            matchers.iter().cloned().partition(|m| m.name() == METRIC_NAME);
        if names.is_empty() {
            names.push(Matcher::equal(METRIC_NAME, "target_info"));
        } else if !names.iter().any(|m| matches!(m.op(), MatchOp::Equal | MatchOp::Regex)) {
            names.push(Matcher::new(MatchOp::Regex, METRIC_NAME, ".+_info").expect("a regex"));
        }
        let is_info = |labels: &Labels| names.iter().all(|m| m.matches(label(labels, METRIC_NAME)));
        // Info series are those with identities that occur at any step.
        let mut identities: [Vec<String>; 2] = Default::default();
        for time in grid.times() {
            for e in self.vector(&call.args[0], time, grid)?.iter().filter(|e| !is_info(&e.labels)) {
                for (values, name) in identities.iter_mut().zip(IDENTIFYING) {
                    values.extend(e.labels.get(name).map(str::to_owned));
                }
            }
        }
        let known = |labels: &Labels| {
            let one = |(values, name): (&Vec<String>, &str)| {
                values.is_empty() || values.iter().any(|v| v == label(labels, name))
            };
            identities.iter().zip(IDENTIFYING).all(one) && identities.iter().any(|values| !values.is_empty())
        };
        let selected = |labels: &Labels| {
            is_info(labels) && known(labels) && data.iter().all(|m| m.matches(label(labels, m.name())))
        };
        let infos: Vec<_> = self.data.iter().filter(|(labels, _)| selected(labels)).collect();
        let shift = first_selector(&call.args[0], &mut Vec::new());
        let lookup = |time: i64| self.info_time(shift.as_ref(), time);
        for time in grid.times() {
            for (_, samples) in &infos {
                if self.newest(samples, lookup(time)).is_some_and(|s| s.v.float().is_none()) {
                    return Err(Fail::execution("this should be an info metric, with float samples"));
                }
            }
        }
        let base = self.vector(&call.args[0], t, grid)?;
        if base.is_empty() {
            return Ok(base);
        }
        // The newest info series per name and identity.
        let mut newest: Vec<(Labels, i64, &Labels)> = Vec::new();
        for (labels, samples) in infos {
            let Some(sample) = self.newest(samples, lookup(t)) else { continue };
            let key = identity(labels, label(labels, METRIC_NAME));
            match newest.iter_mut().find(|(other, ..)| *other == key) {
                Some((_, time, _)) if *time == sample.t => {
                    return Err(Fail::execution("found duplicate series for info metric"));
                }
                Some((_, time, kept)) if *time < sample.t => (*time, *kept) = (sample.t, labels),
                Some(_) => {}
                None => newest.push((key, sample.t, labels)),
            }
        }
        let mut result = Vec::new();
        for mut e in base {
            if is_info(&e.labels) {
                result.push(e);
                continue;
            }
            let (mut added, mut found) = (Labels::empty(), false);
            for (key, _, labels) in &newest {
                if *key != identity(&e.labels, label(labels, METRIC_NAME)) {
                    continue;
                }
                found = true;
                for (name, value) in labels.iter() {
                    let asked = data.is_empty() || data.iter().any(|m| m.name() == name);
                    if name == METRIC_NAME || !asked {
                        continue;
                    }
                    if added.get(name).is_some_and(|other| other != value) {
                        return Err(Fail::execution(format!("conflicting label: {name}")));
                    }
                    if e.labels.get(name).is_none() {
                        added = set_label(&added, name, value);
                    }
                }
            }
            if !found && !data.iter().all(|m| m.matches("")) {
                continue;
            }
            for (name, value) in added.iter() {
                e.labels = set_label(&e.labels, name, value);
            }
            result.push(e);
        }
        check_unique(&result)?;
        Ok(result)
    }

    /// When the info series are looked at: as the base's first selector says, the subqueries around it included.
    fn info_time(&self, shift: Option<&(&VectorSelector, Vec<&Expr>)>, t: i64) -> i64 {
        let Some((selector, around)) = shift else { return t };
        let mut at = selector.at;
        let mut offset = selector.offset.as_ref().map_or(0, |offset| self.duration(offset));
        for e in around.iter().rev() {
            let Expr::Subquery(subquery) = e else { continue };
            if at.is_some() {
                break;
            }
            offset += subquery.offset.as_ref().map_or(0, |offset| self.duration(offset));
            at = subquery.at;
        }
        self.shifted(at, None, t) - offset
    }
}

fn identity(labels: &Labels, name: &str) -> Labels {
    set_label(&filtered(labels, |n| IDENTIFYING.contains(&n)), METRIC_NAME, name)
}

/// The first selector in the order of Prometheus' tree, and what is around it.
fn first_selector<'e>(e: &'e Expr, around: &mut Vec<&'e Expr>) -> Option<(&'e VectorSelector, Vec<&'e Expr>)> {
    match e {
        Expr::Vector(selector) => return Some((selector, around.clone())),
        Expr::Matrix(matrix) => return Some((&matrix.selector, around.clone())),
        _ => {}
    }
    around.push(e);
    let found = match e {
        // The parameter comes after the vector there.
        Expr::Aggregate(a) => first_selector(&a.expr, around),
        _ => e.children().find_map(|child| first_selector(child, around)),
    };
    around.pop();
    found
}
