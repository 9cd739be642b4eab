//! Aggregations: series are folded into groups and dropped at once.
//!
//! [`fold`] has those with a running value per group and step, [`select`] those that pick series (`topk` and its like),
//! [`gather`] those that need every value of a step (`quantile`, `count_values`), [`partial`] how the groups of shards
//! become one.

pub(crate) mod fold;
pub(crate) mod gather;
pub(crate) mod partial;
pub(crate) mod select;

use crate::ast::AggregateOp;

/// As PromQL writes it.
pub(crate) fn name(op: AggregateOp) -> &'static str {
    match op {
        AggregateOp::Sum => "sum",
        AggregateOp::Avg => "avg",
        AggregateOp::Min => "min",
        AggregateOp::Max => "max",
        AggregateOp::Count => "count",
        AggregateOp::Group => "group",
        AggregateOp::Stddev => "stddev",
        AggregateOp::Stdvar => "stdvar",
        AggregateOp::Quantile => "quantile",
        AggregateOp::Topk => "topk",
        AggregateOp::Bottomk => "bottomk",
        AggregateOp::CountValues => "count_values",
        AggregateOp::Limitk => "limitk",
        AggregateOp::LimitRatio => "limit_ratio",
    }
}
