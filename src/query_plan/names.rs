//! The words for operations in messages. A new operation needs a word here; words are never given another meaning.

use skald_promql::ast::{AggregateOp, BinaryOp};

/// The two directions between a type's variants and their words.
macro_rules! words {
    ($name:ident, $named:ident, $type:ident, { $($variant:ident = $word:literal,)* }) => {
        pub(super) fn $name(op: $type) -> &'static str {
            match op {
                $($type::$variant => $word,)*
            }
        }

        pub(super) fn $named(word: &str) -> Option<$type> {
            match word {
                $($word => Some($type::$variant),)*
                _ => None,
            }
        }
    };
}

words!(aggregation, aggregation_named, AggregateOp, {
    Sum = "sum",
    Avg = "avg",
    Min = "min",
    Max = "max",
    Count = "count",
    Group = "group",
    Stddev = "stddev",
    Stdvar = "stdvar",
    Quantile = "quantile",
    Topk = "topk",
    Bottomk = "bottomk",
    CountValues = "count_values",
    Limitk = "limitk",
    LimitRatio = "limit_ratio",
});

words!(operator, operator_named, BinaryOp, {
    Add = "+",
    Sub = "-",
    Mul = "*",
    Div = "/",
    Mod = "%",
    Pow = "^",
    Atan2 = "atan2",
    Eq = "==",
    Ne = "!=",
    Lt = "<",
    Le = "<=",
    Gt = ">",
    Ge = ">=",
    And = "and",
    Or = "or",
    Unless = "unless",
    TrimUpper = "</",
    TrimLower = ">/",
});
