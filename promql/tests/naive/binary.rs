//! Operators between vectors, and between vectors and scalars.

use skald_model::{Labels, ResetHint};
use skald_promql::ast::{Binary, BinaryOp, Cardinality, ValueType, VectorMatching};

use crate::evaluator::Naive;
use crate::histogram::Hist;
use crate::trim::trim;
use crate::value::*;

pub fn arithmetic(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Atan2 => a.atan2(b),
        other => panic!("{other:?} is no arithmetic"),
    }
}

/// The outcome of a comparison; nothing for other operators.
pub fn compare(op: BinaryOp, a: f64, b: f64) -> Option<bool> {
    Some(match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        _ => return None,
    })
}

fn changes_meaning(op: BinaryOp) -> bool {
    !op.is_comparison() && !matches!(op, BinaryOp::TrimLower | BinaryOp::TrimUpper)
}

/// What an operator makes of two values: a value and whether a filter keeps it. Nothing if they do not fit.
fn apply(op: BinaryOp, a: &V, b: &V) -> Option<(V, bool)> {
    use BinaryOp::{Add, Div, Eq, Mul, Ne, Sub, TrimLower, TrimUpper};
    let h = |h: Hist| Some((V::hist(h.compact()), true));
    match (op, a, b) {
        (TrimLower | TrimUpper, V::F(_), _) => None,
        (_, V::F(x), V::F(y)) => match compare(op, *x, *y) {
            Some(holds) => Some((a.clone(), holds)),
            None => Some((V::F(arithmetic(op, *x, *y)), true)),
        },
        (Mul, V::H(x), V::F(y)) | (Mul, V::F(y), V::H(x)) => h(x.times(*y)),
        (Div, V::H(x), V::F(y)) => h(x.over(*y)),
        (TrimUpper, V::H(x), V::F(y)) => Some((V::hist(trim(x, *y, true)), true)),
        (TrimLower, V::H(x), V::F(y)) => Some((V::hist(trim(x, *y, false)), true)),
        (Add, V::H(x), V::H(y)) => h(x.plus(y, 1.0).ok()?),
        (Sub, V::H(x), V::H(y)) => h(x.plus(y, -1.0).ok()?.with_hint(ResetHint::Gauge)),
        (Eq, V::H(x), V::H(y)) => Some((a.clone(), x.equals(y))),
        (Ne, V::H(x), V::H(y)) => Some((a.clone(), !x.equals(y))),
        _ => None,
    }
}

impl Naive<'_> {
    pub fn binary(&self, b: &Binary, t: i64, grid: Grid) -> Res<Vec<Elem>> {
        let (left, right) = (b.lhs.value_type(), b.rhs.value_type());
        if left == ValueType::Vector && right == ValueType::Vector {
            let (lhs, rhs) = (self.vector(&b.lhs, t, grid)?, self.vector(&b.rhs, t, grid)?);
            let plain = VectorMatching {
                cardinality: Cardinality::OneToOne,
                labels: Vec::new(),
                on: false,
                include: Vec::new(),
                fill_left: None,
                fill_right: None,
            };
            let matching = b.matching.as_ref().unwrap_or(&plain);
            let result = match b.op {
                BinaryOp::And | BinaryOp::Or | BinaryOp::Unless => set(b.op, lhs, rhs, matching),
                _ => self.join(b, lhs, rhs, matching)?,
            };
            return self.unique(result, grid);
        }
        let swapped = left == ValueType::Scalar;
        let (vector, scalar) = if swapped { (&b.rhs, &b.lhs) } else { (&b.lhs, &b.rhs) };
        let mut result = Vec::new();
        let scalar = V::F(self.scalar(scalar, t, grid)?);
        for e in self.vector(vector, t, grid)? {
            let (lhs, rhs) = if swapped { (&scalar, &e.v) } else { (&e.v, &scalar) };
            let Some((mut v, mut keep)) = apply(b.op, lhs, rhs) else { continue };
            if swapped && b.op.is_comparison() {
                v = e.v.clone();
            }
            if b.return_bool {
                v = V::F(f64::from(u8::from(keep)));
                keep = true;
            }
            if keep {
                let dropped = changes_meaning(b.op) || b.return_bool;
                result.push(if dropped { self.drop_name(e, v) } else { Elem { v, ..e } });
            }
        }
        self.unique(result, grid)
    }

    fn join(&self, b: &Binary, lhs: Vec<Elem>, rhs: Vec<Elem>, m: &VectorMatching) -> Res<Vec<Elem>> {
        let no_fill = m.fill_left.is_none() && m.fill_right.is_none();
        if lhs.is_empty() && rhs.is_empty() || (lhs.is_empty() || rhs.is_empty()) && no_fill {
            return Ok(Vec::new());
        }
        let swapped = m.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (rhs, lhs) } else { (lhs, rhs) };
        let key = |e: &Elem| subset(&e.labels, &m.labels, m.on);
        for (i, e) in one.iter().enumerate() {
            if one[..i].iter().any(|other| key(other) == key(e)) {
                let side = if swapped { "left" } else { "right" };
                let text = format!("found duplicate series for the match group {} on the {side} hand-side", key(e));
                return Err(Fail::execution(text));
            }
        }
        let one_to_one = m.cardinality == Cardinality::OneToOne;
        let mut result = Vec::new();
        // Match groups with the labels of what came of them.
        let mut matched: Vec<(Labels, Labels)> = Vec::new();
        let mut pair = |many: &Elem, one: &Elem, group: Labels| -> Res<()> {
            let (left, right) = if swapped { (&one.v, &many.v) } else { (&many.v, &one.v) };
            let Some((mut v, mut keep)) = apply(b.op, left, right) else { return Ok(()) };
            let labels = self.joined(b, &many.labels, &one.labels, m);
            let seen = |(g, l): &(Labels, Labels)| *g == group && (one_to_one || *l == labels);
            if matched.iter().any(seen) {
                return Err(Fail::execution("multiple matches for labels"));
            }
            matched.push((group, labels.clone()));
            if b.return_bool {
                v = V::F(f64::from(u8::from(keep)));
                keep = true;
            }
            if keep {
                result.push(Elem { labels, drop: b.return_bool, v });
            }
            Ok(())
        };
        for e in &many {
            let filled = |value: f64| Elem { labels: key(e), drop: false, v: V::F(value) };
            let partner = one.iter().find(|other| key(other) == key(e)).cloned();
            if let Some(partner) = partner.or(m.fill_right.map(filled)) {
                pair(e, &partner, key(e))?;
            }
        }
        if let Some(value) = m.fill_left {
            for e in &one {
                // A group whose values did not fit counts as not met.
                let met = many.iter().any(|other| {
                    let (left, right) = if swapped { (&e.v, &other.v) } else { (&other.v, &e.v) };
                    key(other) == key(e) && apply(b.op, left, right).is_some()
                });
                if !met {
                    pair(&Elem { labels: key(e), drop: false, v: V::F(value) }, e, key(e))?;
                }
            }
        }
        Ok(result)
    }

    fn joined(&self, b: &Binary, many: &Labels, one: &Labels, m: &VectorMatching) -> Labels {
        let at_once = b.return_bool && !self.params.delayed_name_removal;
        let mut labels = if at_once || changes_meaning(b.op) { self.strip(many) } else { many.clone() };
        if m.cardinality == Cardinality::OneToOne {
            labels = filtered(&labels, |name| m.labels.iter().any(|l| l == name) == m.on);
        }
        for name in &m.include {
            labels = set_label(&labels, name, label(one, name));
        }
        labels
    }
}

fn set(op: BinaryOp, lhs: Vec<Elem>, rhs: Vec<Elem>, m: &VectorMatching) -> Vec<Elem> {
    let key = |e: &Elem| subset(&e.labels, &m.labels, m.on);
    let within = |e: &Elem, side: &[Elem]| side.iter().any(|other| key(other) == key(e));
    match op {
        BinaryOp::And => lhs.into_iter().filter(|e| within(e, &rhs)).collect(),
        BinaryOp::Unless => lhs.into_iter().filter(|e| !within(e, &rhs)).collect(),
        _ => {
            let more: Vec<Elem> = rhs.into_iter().filter(|e| !within(e, &lhs)).collect();
            lhs.into_iter().chain(more).collect()
        }
    }
}
