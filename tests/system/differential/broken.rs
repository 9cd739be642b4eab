//! Queries with one mistake: both sides must refuse them, in the same words.
//!
//! Left out is what 3.x says in other words: a regex with something unclosed (2.42 shows the anchors it put around it), what
//! may follow `offset` (3.x allows more), and a function that has another name.

use super::chance::Chance;
use super::query::{ARITHMETIC, COMPARISONS, Dialect, Expr, Many, Matching, SETS, Type};

/// The text of `expr` with a mistake in it; nothing when the mistake does not fit.
pub fn broken(expr: &Expr, chance: &Chance) -> Option<String> {
    let mut renamed = false;
    expr.walk(&mut |part| renamed |= matches!(part, Expr::Call { name: "holt_winters", .. }));
    if renamed {
        return None;
    }
    let mut copy = expr.clone();
    let mut places = 0;
    expr.walk(&mut |_| places += 1);
    let at = chance.below(places);
    if chance.one_in(8) {
        return Some(unbalanced(&expr.text(Dialect::New), chance));
    }
    let mut number = 0;
    let done = break_at(&mut copy, at, &mut number, chance);
    (done && copy != *expr).then(|| copy.text(Dialect::New))
}

/// A parenthesis too many or a text that ends too soon.
fn unbalanced(text: &str, chance: &Chance) -> String {
    let end = *chance.pick(&[")", " +", "]", "}", " by", "[5m", "{", " and", " @", "@ x", "!", " == bool"]);
    format!("{text}{end}")
}

/// Breaks the node of this number, counted from the root.
fn break_at(expr: &mut Expr, at: usize, number: &mut usize, chance: &Chance) -> bool {
    if *number == at {
        return mistake(expr, chance);
    }
    *number += 1;
    for child in expr.children_mut() {
        if break_at(child, at, number, chance) {
            return true;
        }
    }
    false
}

fn number() -> Expr {
    Expr::Number("1".into())
}

fn mistake(expr: &mut Expr, chance: &Chance) -> bool {
    let some_vector = || Expr::call("vector", vec![number()]);
    match expr {
        Expr::Call { name, args } => match chance.below(4) {
            0 => *name = "no_such_function",
            1 => args.push(number()),
            2 if !args.is_empty() => drop(args.pop()),
            _ => {
                let Some(first) = args.first_mut() else { return false };
                *first = wrong_type(first.ty(), chance);
            }
        },
        Expr::Aggregate { param, of, grouping, .. } => match chance.below(4) {
            0 if param.is_some() => *param = None,
            1 if param.is_some() => *param = Some(Box::new(some_vector())),
            2 => *grouping = Some((true, vec!["1a".into()])),
            _ => **of = wrong_type(Type::Vector, chance),
        },
        Expr::Binary { op, bool, matching, left, right } => {
            let vectors = left.ty() == Type::Vector && right.ty() == Type::Vector;
            match chance.below(6) {
                0 if !COMPARISONS.contains(op) => *bool = true,
                1 if !vectors => *op = *chance.pick::<&str>(SETS),
                2 if vectors && SETS.contains(op) => {
                    *matching = Matching { on: Some(true), labels: vec![], group: Some((Many::Left, vec![])) };
                }
                3 if vectors && ARITHMETIC.contains(op) => {
                    let labels = vec!["job".to_owned()];
                    *matching = Matching { on: Some(true), labels: labels.clone(), group: Some((Many::Left, labels)) };
                }
                4 if !vectors => *matching = Matching { on: Some(true), labels: vec![], group: None },
                _ => **left = wrong_type(left.ty(), chance),
            }
        }
        Expr::Selector(selector) | Expr::Range { selector, .. } => match chance.below(3) {
            0 => selector.matchers.push(("job".into(), "=~", (*chance.pick(&["*", "a**", "(?z)"])).into())),
            1 => selector.matchers.push(("1a".into(), "=", "x".into())),
            _ => selector.matchers.push(("job".into(), "==", "x".into())),
        },
        Expr::Subquery { of, range_ms, .. } => match chance.below(2) {
            0 => **of = number(),
            _ => *range_ms = 0,
        },
        Expr::Unary { of, .. } => **of = wrong_type(Type::Vector, chance),
        Expr::Number(_) | Expr::Text(_) | Expr::Paren(_) => return false,
    }
    true
}

/// An expression of another type.
fn wrong_type(ty: Type, chance: &Chance) -> Expr {
    let wrong = *chance.pick(match ty {
        Type::Scalar => &[Type::Text, Type::Vector][..],
        Type::Vector => &[Type::Text, Type::Text],
        Type::Matrix | Type::Text => &[Type::Scalar, Type::Vector],
    });
    match wrong {
        Type::Text => Expr::Text("text".into()),
        Type::Vector => Expr::call("vector", vec![number()]),
        Type::Scalar | Type::Matrix => number(),
    }
}
