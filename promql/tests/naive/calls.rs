//! Functions of instant vectors.

use std::cmp::Ordering;

use skald_model::{Labels, METRIC_NAME, MatchOp};
use skald_promql::ast::{Call, Expr, ValueType};

use crate::buckets;
use crate::dates;
use crate::evaluator::{Naive, check_unique, text_of, without_parens};
use crate::floats::{self, go_max, go_min};
use crate::histogram::Hist;
use crate::value::*;

/// What is asked of classic buckets (upper bound and count), and of a native histogram.
type OfClassic<'f> = dyn Fn(&[(f64, f64)]) -> f64 + 'f;
type OfNative<'f> = dyn Fn(&Hist) -> f64 + 'f;

impl Naive<'_> {
    pub fn call(&self, call: &Call, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let name = call.function.name;
        if call.args.iter().any(|a| a.value_type() == ValueType::Matrix) {
            return self.range_call(call, t, grid);
        }
        let arg = |i: usize| self.vector(&call.args[i], t, grid);
        let scalar = |i: usize| self.scalar(&call.args[i], t, grid);
        match name {
            "vector" => Ok(vec![Elem { labels: Labels::empty(), drop: false, v: V::F(scalar(0)?) }]),
            "absent" => {
                if !arg(0)?.is_empty() {
                    return Ok(Vec::new());
                }
                Ok(vec![Elem { labels: asked_labels(without_parens(&call.args[0])), drop: false, v: V::F(1.0) }])
            }
            "timestamp" => self.timestamp(&call.args[0], t, grid),
            "label_replace" | "label_join" => self.relabel(call, t, grid),
            "sort" | "sort_desc" => {
                let mut elems = arg(0)?;
                elems.retain(|e| e.v.float().is_some());
                if grid.count == 1 {
                    elems.sort_by(|a, b| by_value(a, b, name == "sort_desc"));
                }
                self.unique(elems, grid)
            }
            "sort_by_label" | "sort_by_label_desc" => {
                let mut elems = arg(0)?;
                let names: Vec<&str> = call.args[1..].iter().map(text_of).collect();
                if grid.count == 1 {
                    elems.sort_by(|a, b| by_labels(&a.labels, &b.labels, &names));
                }
                if grid.count == 1 && name == "sort_by_label_desc" {
                    elems.reverse();
                }
                self.unique(elems, grid)
            }
            "info" => self.info(call, t, grid),
            "histogram_quantile" => {
                let q = scalar(0)?;
                let elems = arg(1)?;
                self.ask_histograms(elems, grid, &|b| buckets::classic_quantile(q, b), &|h| buckets::quantile(q, h))
            }
            "histogram_quantiles" => {
                let (elems, label) = (arg(0)?, text_of(&call.args[1]));
                let mut all = Vec::new();
                for i in 2..call.args.len() {
                    let q = scalar(i)?;
                    let mut part = self.each_histogram(elems.clone(), &|b| buckets::classic_quantile(q, b), &|h| {
                        buckets::quantile(q, h)
                    });
                    let text = open_metrics(q);
                    part.iter_mut().for_each(|e| e.labels = set_label(&e.labels, label, &text));
                    all.extend(part);
                }
                self.unique(all, grid)
            }
            "histogram_fraction" => {
                let (lower, upper) = (scalar(0)?, scalar(1)?);
                let elems = arg(2)?;
                let (classic, native) = (
                    |b: &[(f64, f64)]| buckets::classic_fraction(lower, upper, b),
                    |h: &Hist| buckets::fraction(lower, upper, h),
                );
                self.ask_histograms(elems, grid, &classic, &native)
            }
            "start_timestamp" => Ok(Vec::new()),
            _ => {
                if let Some(part) = dates::by_name(name) {
                    let elems = match call.args.first() {
                        Some(vector) => self.vector(vector, t, grid)?,
                        None => vec![Elem { labels: Labels::empty(), drop: false, v: V::F((t / 1000) as f64) }],
                    };
                    return self.map_floats(elems, grid, part);
                }
                if let Some(number) = of_histogram(name) {
                    let of = |e: Elem| match &e.v {
                        V::H(h) => Some(number(h)),
                        V::F(_) => None,
                    };
                    let elems = arg(0)?.into_iter();
                    let elems = elems.filter_map(|e| Some((of(e.clone())?, e)));
                    return self.unique(elems.map(|(v, e)| self.drop_name(e, V::F(v))).collect(), grid);
                }
                let elems = arg(0)?;
                let scalars = (1..call.args.len()).map(scalar).collect::<Res<Vec<f64>>>()?;
                if name == "clamp" && scalars[1] < scalars[0] {
                    return Ok(Vec::new());
                }
                self.map_floats(elems, grid, |v| of_float(name, v, &scalars))
            }
        }
    }

    fn map_floats(&self, elems: Vec<Elem>, grid: Grid, f: impl Fn(f64) -> f64) -> Res<Vec<Elem>> {
        let floats = elems.into_iter().filter_map(|e| Some((e.v.float()?, e)));
        self.unique(floats.map(|(v, e)| self.drop_name(e, V::F(f(v)))).collect(), grid)
    }

    /// Of a selector the time of the sample, of everything else that of the step.
    fn timestamp(&self, arg: &Expr, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let elems: Vec<Elem> = match without_parens(arg) {
            Expr::Vector(selector) => {
                let at = self.shifted(selector.at, selector.offset.as_ref(), t);
                let newest = self.matching(selector).into_iter().filter_map(|(labels, samples)| {
                    let v = V::F(self.newest(&samples, at)?.t as f64 / 1000.0);
                    Some(Elem { labels: labels.clone(), drop: false, v })
                });
                newest.collect()
            }
            _ => {
                let elems = self.vector(arg, t, grid)?.into_iter();
                elems.map(|e| Elem { v: V::F(t as f64 / 1000.0), ..e }).collect()
            }
        };
        self.unique(elems.into_iter().map(|e| self.drop_name(e.clone(), e.v)).collect(), grid)
    }

    fn relabel(&self, call: &Call, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let texts: Vec<&str> = call.args[1..].iter().map(text_of).collect();
        let invalid = |name: &str| name.is_empty() || name.contains('\u{FFFD}');
        let is_replace = call.function.name == "label_replace";
        let regex = is_replace.then(|| regex::Regex::new(&format!("^(?s:{})$", texts[3])));
        let regex = match regex {
            Some(Err(_)) => return Err(Fail::execution("invalid regular expression")),
            Some(Ok(regex)) => Some(regex),
            None => None,
        };
        if invalid(texts[0]) || !is_replace && texts[2..].iter().any(|name| invalid(name)) {
            return Err(Fail::execution("invalid label name"));
        }
        let mut elems = self.vector(&call.args[0], t, grid)?;
        for e in &mut elems {
            let value = match &regex {
                Some(regex) => {
                    let Some(captures) = regex.captures(label(&e.labels, texts[2])) else { continue };
                    let mut value = String::new();
                    captures.expand(texts[1], &mut value);
                    value
                }
                None => {
                    let values: Vec<&str> = texts[2..].iter().map(|name| label(&e.labels, name)).collect();
                    values.join(texts[1])
                }
            };
            e.labels = set_label(&e.labels, texts[0], &value);
            if texts[0] == METRIC_NAME {
                e.drop = false;
            }
        }
        check_unique(&elems)?;
        Ok(elems)
    }

    fn ask_histograms(&self, elems: Vec<Elem>, grid: Grid, classic: &OfClassic, native: &OfNative) -> Res<Vec<Elem>> {
        self.unique(self.each_histogram(elems, classic, native), grid)
    }

    /// Gathers classic buckets; a native histogram of the same labels makes both disappear.
    fn each_histogram(&self, elems: Vec<Elem>, classic: &OfClassic, native: &OfNative) -> Vec<Elem> {
        let mut groups: Vec<(Elem, Vec<(f64, f64)>)> = Vec::new();
        let mut natives: Vec<Elem> = Vec::new();
        for e in elems {
            let V::F(count) = e.v else {
                natives.push(e);
                continue;
            };
            let Some(bound) = parse_bound(label(&e.labels, "le")) else { continue };
            let labels = filtered(&e.labels, |name| name != "le");
            match groups.iter_mut().find(|(group, _)| group.labels == labels) {
                Some((_, buckets)) => buckets.push((bound, count)),
                None => groups.push((Elem { labels, ..e }, vec![(bound, count)])),
            }
        }
        let mixed: Vec<Labels> = (natives.iter().map(|e| e.labels.clone()))
            .filter(|labels| groups.iter().any(|(group, _)| group.labels == *labels))
            .collect();
        natives.retain(|e| !mixed.contains(&e.labels));
        groups.retain(|(group, _)| !mixed.contains(&group.labels));
        let mut result = Vec::new();
        for (group, buckets) in groups {
            let v = V::F(classic(&buckets));
            result.push(self.drop_name(group, v));
        }
        for e in natives {
            let V::H(h) = &e.v else { continue };
            let v = V::F(native(h));
            result.push(self.drop_name(e, v));
        }
        result
    }
}

fn parse_bound(text: &str) -> Option<f64> {
    let unsigned = text.trim_start_matches(['+', '-']);
    if ["inf", "infinity", "nan"].contains(&unsigned.to_ascii_lowercase().as_str())
        || unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
    {
        return text.parse().ok();
    }
    None
}

fn open_metrics(value: f64) -> String {
    let text = floats::format(value, true);
    if value.is_finite() && !text.contains(['e', '.']) { text + ".0" } else { text }
}

fn of_histogram(name: &str) -> Option<fn(&Hist) -> f64> {
    Some(match name {
        "histogram_count" => |h| h.count,
        "histogram_sum" => |h| h.sum,
        "histogram_avg" => |h| h.sum / h.count,
        "histogram_stddev" => |h| buckets::variance(h).sqrt(),
        "histogram_stdvar" => buckets::variance,
        _ => return None,
    })
}

fn of_float(name: &str, v: f64, scalars: &[f64]) -> f64 {
    match name {
        "abs" => v.abs(),
        "ceil" => v.ceil(),
        "floor" => v.floor(),
        "exp" => v.exp(),
        "sqrt" => v.sqrt(),
        "ln" => v.ln(),
        "log2" => v.log2(),
        "log10" => v.log10(),
        "sin" => v.sin(),
        "cos" => v.cos(),
        "tan" => v.tan(),
        "asin" => v.asin(),
        "acos" => v.acos(),
        "atan" => v.atan(),
        "sinh" => v.sinh(),
        "cosh" => v.cosh(),
        "tanh" => v.tanh(),
        "asinh" => floats::asinh(v),
        "acosh" => floats::acosh(v),
        "atanh" => v.atanh(),
        "rad" => v * std::f64::consts::PI / 180.0,
        "deg" => v * 180.0 / std::f64::consts::PI,
        "sgn" if v > 0.0 => 1.0,
        "sgn" if v < 0.0 => -1.0,
        "sgn" => v,
        "clamp" => go_max(scalars[0], go_min(scalars[1], v)),
        "clamp_min" => go_max(scalars[0], v),
        "clamp_max" => go_min(scalars[0], v),
        "round" => {
            let inverse = 1.0 / scalars.first().copied().unwrap_or(1.0);
            (v * inverse + 0.5).floor() / inverse
        }
        other => panic!("{other} is no function of floats"),
    }
}

/// The labels that a plain selector asks for by one equality each.
pub fn asked_labels(e: &Expr) -> Labels {
    let matchers = match e {
        Expr::Vector(selector) => &selector.matchers,
        Expr::Matrix(matrix) => &matrix.selector.matchers,
        _ => return Labels::empty(),
    };
    let (mut labels, mut seen) = (Labels::empty(), Vec::new());
    for m in matchers.iter().filter(|m| m.name() != METRIC_NAME) {
        let first = m.op() == MatchOp::Equal && !seen.contains(&m.name());
        labels = set_label(&labels, m.name(), if first { m.value() } else { "" });
        if first {
            seen.push(m.name());
        }
    }
    labels
}

pub fn by_value(a: &Elem, b: &Elem, descending: bool) -> Ordering {
    let (x, y) = (a.v.float().unwrap_or(f64::NAN), b.v.float().unwrap_or(f64::NAN));
    let order = x.partial_cmp(&y).map(|o| if descending { o.reverse() } else { o });
    order.unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()))
}

fn by_labels(a: &Labels, b: &Labels, names: &[&str]) -> Ordering {
    for name in names {
        let (x, y) = (label(a, name), label(b, name));
        if x != y {
            return natural(x, y);
        }
    }
    a.cmp(b)
}

/// Runs of digits compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let digit = |c: char| c.is_ascii_digit();
    let head = |text: &str| text.chars().take_while(|c| digit(*c) == text.starts_with(digit)).count();
    let (mut a, mut b) = (a, b);
    while !a.is_empty() && !b.is_empty() {
        let ((x, rest_a), (y, rest_b)) = (a.split_at(head(a)), b.split_at(head(b)));
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    a.len().cmp(&b.len())
}
