//! Aggregations.

use skald_model::Labels;
use skald_promql::ast::{Aggregate, AggregateOp};

use crate::buckets;
use crate::calls::by_value;
use crate::evaluator::{Naive, text_of};
use crate::floats::{self, Kahan};
use crate::histogram::{Hist, total};
use crate::value::*;

struct Group {
    labels: Labels,
    elems: Vec<Elem>,
}

impl Naive<'_> {
    pub fn aggregate(&self, a: &Aggregate, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let mut elems = self.vector(&a.expr, t, grid)?;
        if let Some(salt) = self.shuffled {
            elems.sort_by_key(|e| (e.labels.stable_hash() ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        if a.op == AggregateOp::CountValues {
            return self.count_values(a, elems, grid);
        }
        let param = a.param.as_deref().map(|p| self.params_of(a.op, p, t, grid)).transpose()?;
        let mut groups: Vec<Group> = Vec::new();
        for e in elems {
            let labels = subset(&e.labels, &a.grouping, !a.without);
            match groups.iter_mut().find(|g| g.labels == labels) {
                Some(group) => group.elems.push(e),
                None => groups.push(Group { labels, elems: vec![e] }),
            }
        }
        let mut result = Vec::new();
        for group in groups {
            match a.op {
                AggregateOp::Topk | AggregateOp::Bottomk => {
                    let mut floats = group.elems;
                    floats.retain(|e| e.v.float().is_some());
                    // Stable: of equal values the earlier is kept.
                    floats.sort_by(|x, y| by_value(x, y, a.op == AggregateOp::Topk));
                    result.extend(floats.into_iter().take(param.unwrap_or(0.0).max(0.0) as usize));
                }
                AggregateOp::Limitk => {
                    result.extend(group.elems.into_iter().take(param.unwrap_or(0.0).max(0.0) as usize));
                }
                AggregateOp::LimitRatio => {
                    let ratio = param.unwrap_or(0.0).clamp(-1.0, 1.0);
                    result.extend(group.elems.into_iter().filter(|e| {
                        let position = e.labels.prometheus_hash() as f64 / u64::MAX as f64;
                        if ratio >= 0.0 { position < ratio || ratio == 1.0 } else { position >= 1.0 + ratio }
                    }));
                }
                op => {
                    let drop = group.elems.iter().any(|e| e.drop);
                    if let Some(v) = of_group(op, &group.elems, param) {
                        result.push(Elem { labels: group.labels, drop, v });
                    }
                }
            }
        }
        Ok(result)
    }

    /// The parameter; it is checked for all steps together.
    fn params_of(&self, op: AggregateOp, param: &skald_promql::ast::Expr, t: i64, grid: Grid) -> Res<f64> {
        let all = grid.times().map(|t| self.scalar(param, t, grid)).collect::<Res<Vec<f64>>>()?;
        let nan = all.iter().any(|v| v.is_nan());
        match op {
            AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk => {
                if !nan && all.iter().all(|v| *v < 1.0) {
                    return Ok(0.0);
                }
                if nan {
                    return Err(Fail::execution("Parameter value is NaN"));
                }
                if all.iter().any(|v| v.abs() >= i64::MAX as f64) {
                    return Err(Fail::execution("Scalar value overflows int64"));
                }
            }
            AggregateOp::LimitRatio if nan => return Err(Fail::execution("Ratio value is NaN")),
            _ => {}
        }
        self.scalar(param, t, grid)
    }

    fn count_values(&self, a: &Aggregate, elems: Vec<Elem>, grid: Grid) -> Res<Vec<Elem>> {
        let name = a.param.as_deref().map_or("", text_of);
        if name.is_empty() || name.contains('\u{FFFD}') {
            return Err(Fail::execution("invalid label name"));
        }
        let mut grouping = a.grouping.clone();
        if !a.without {
            grouping.push(name.to_owned());
        }
        let mut counts: Vec<Elem> = Vec::new();
        for e in elems {
            let text = match &e.v {
                V::F(value) => floats::format(*value, false),
                V::H(h) => buckets::text(h),
            };
            let labels = subset(&set_label(&e.labels, name, &text), &grouping, !a.without);
            match counts.iter_mut().find(|c| c.labels == labels) {
                Some(Elem { v: V::F(count), .. }) => *count += 1.0,
                _ => counts.push(Elem { labels, drop: false, v: V::F(1.0) }),
            }
        }
        self.unique(counts, grid)
    }
}

fn of_group(op: AggregateOp, elems: &[Elem], param: Option<f64>) -> Option<V> {
    let floats: Vec<f64> = elems.iter().filter_map(|e| e.v.float()).collect();
    match op {
        AggregateOp::Count => return Some(V::F(elems.len() as f64)),
        AggregateOp::Group => return Some(V::F(1.0)),
        AggregateOp::Sum | AggregateOp::Avg if floats.len() < elems.len() => {
            let hist = |e: &Elem| match &e.v {
                V::H(h) => Some(Hist::clone(h)),
                V::F(_) => None,
            };
            // Nothing where there are floats, too.
            let hists: Vec<Hist> = elems.iter().map(hist).collect::<Option<_>>()?;
            let all: Vec<&Hist> = hists.iter().collect();
            return Some(V::hist(total(&all, op == AggregateOp::Avg).ok()?.finish()));
        }
        _ => {}
    }
    let (first, rest) = floats.split_first()?;
    let extreme = |better: fn(f64, f64) -> bool| {
        rest.iter().fold(*first, |best, v| if better(*v, best) || best.is_nan() { *v } else { best })
    };
    Some(V::F(match op {
        AggregateOp::Sum => rest.iter().fold(Kahan::of(*first), |sum, v| sum.plus(*v)).value(),
        AggregateOp::Avg => floats::mean(&floats),
        AggregateOp::Min => extreme(|a, b| a < b),
        AggregateOp::Max => extreme(|a, b| a > b),
        AggregateOp::Stdvar => floats::variance(&floats),
        AggregateOp::Stddev => floats::variance(&floats).sqrt(),
        AggregateOp::Quantile => floats::quantile(param.unwrap_or(f64::NAN), &floats),
        other => panic!("{other:?} is no such aggregation"),
    }))
}
