//! The table of functions: names, signatures, whether they are experimental.

use crate::ast::ValueType::{self, Matrix, Scalar, String, Vector};

/// A function's signature.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// As queries write it.
    pub name: &'static str,
    /// Argument types in order; arguments beyond them have the last one's type.
    pub arg_types: &'static [ValueType],
    /// How far the number of arguments may vary, as Prometheus counts: 0 exactly `arg_types`; n > 0 from one fewer than
    /// `arg_types` up to n more than that; -1 from one fewer than `arg_types` without end.
    pub variadic: i32,
    /// What it yields.
    pub return_type: ValueType,
    /// Whether it needs experimental functions to be enabled.
    pub experimental: bool,
}

impl Function {
    /// Fewest arguments a call may have.
    pub fn min_args(&self) -> usize {
        if self.variadic == 0 { self.arg_types.len() } else { self.arg_types.len().saturating_sub(1) }
    }

    /// Most arguments a call may have; `None` is without end.
    pub fn max_args(&self) -> Option<usize> {
        match usize::try_from(self.variadic) {
            Ok(0) => Some(self.arg_types.len()),
            Ok(more) => Some(self.arg_types.len().saturating_sub(1) + more),
            Err(_) => None,
        }
    }

    /// The type argument `i` must have; `None` when no argument can stand there.
    pub fn arg_type(&self, i: usize) -> Option<ValueType> {
        match (self.arg_types.get(i), self.variadic) {
            (Some(ty), _) => Some(*ty),
            (None, 0) => None,
            (None, _) => self.arg_types.last().copied(),
        }
    }

    const fn variadic(mut self, variadic: i32) -> Self {
        self.variadic = variadic;
        self
    }

    const fn experimental(mut self) -> Self {
        self.experimental = true;
        self
    }
}

const fn f(name: &'static str, arg_types: &'static [ValueType], return_type: ValueType) -> Function {
    Function { name, arg_types, variadic: 0, return_type, experimental: false }
}

/// Every function of Prometheus 3.14, ascending by name.
pub static FUNCTIONS: &[Function] = &[
    f("abs", &[Vector], Vector),
    f("absent", &[Vector], Vector),
    f("absent_over_time", &[Matrix], Vector),
    f("acos", &[Vector], Vector),
    f("acosh", &[Vector], Vector),
    f("asin", &[Vector], Vector),
    f("asinh", &[Vector], Vector),
    f("atan", &[Vector], Vector),
    f("atanh", &[Vector], Vector),
    f("avg_over_time", &[Matrix], Vector),
    f("ceil", &[Vector], Vector),
    f("changes", &[Matrix], Vector),
    f("clamp", &[Vector, Scalar, Scalar], Vector),
    f("clamp_max", &[Vector, Scalar], Vector),
    f("clamp_min", &[Vector, Scalar], Vector),
    f("cos", &[Vector], Vector),
    f("cosh", &[Vector], Vector),
    f("count_over_time", &[Matrix], Vector),
    f("day_of_month", &[Vector], Vector).variadic(1),
    f("day_of_week", &[Vector], Vector).variadic(1),
    f("day_of_year", &[Vector], Vector).variadic(1),
    f("days_in_month", &[Vector], Vector).variadic(1),
    f("deg", &[Vector], Vector),
    f("delta", &[Matrix], Vector),
    f("deriv", &[Matrix], Vector),
    f("double_exponential_smoothing", &[Matrix, Scalar, Scalar], Vector).experimental(),
    f("end", &[], Scalar).experimental(),
    f("exp", &[Vector], Vector),
    f("first_over_time", &[Matrix], Vector),
    f("floor", &[Vector], Vector),
    f("histogram_avg", &[Vector], Vector),
    f("histogram_count", &[Vector], Vector),
    f("histogram_fraction", &[Scalar, Scalar, Vector], Vector),
    f("histogram_quantile", &[Scalar, Vector], Vector),
    f("histogram_quantiles", &[Vector, String, Scalar, Scalar], Vector).variadic(9).experimental(),
    f("histogram_stddev", &[Vector], Vector),
    f("histogram_stdvar", &[Vector], Vector),
    f("histogram_sum", &[Vector], Vector),
    f("hour", &[Vector], Vector).variadic(1),
    f("idelta", &[Matrix], Vector),
    f("increase", &[Matrix], Vector),
    f("info", &[Vector, Vector], Vector).variadic(1).experimental(),
    f("irate", &[Matrix], Vector),
    f("label_join", &[Vector, String, String, String], Vector).variadic(-1),
    f("label_replace", &[Vector, String, String, String, String], Vector),
    f("last_over_time", &[Matrix], Vector),
    f("ln", &[Vector], Vector),
    f("log10", &[Vector], Vector),
    f("log2", &[Vector], Vector),
    f("mad_over_time", &[Matrix], Vector).experimental(),
    f("max_of", &[Scalar, Scalar], Scalar).experimental(),
    f("max_over_time", &[Matrix], Vector),
    f("min_of", &[Scalar, Scalar], Scalar).experimental(),
    f("min_over_time", &[Matrix], Vector),
    f("minute", &[Vector], Vector).variadic(1),
    f("month", &[Vector], Vector).variadic(1),
    f("pi", &[], Scalar),
    f("predict_linear", &[Matrix, Scalar], Vector),
    f("present_over_time", &[Matrix], Vector),
    f("quantile_over_time", &[Scalar, Matrix], Vector),
    f("rad", &[Vector], Vector),
    f("range", &[], Scalar).experimental(),
    f("rate", &[Matrix], Vector),
    f("resets", &[Matrix], Vector),
    f("round", &[Vector, Scalar], Vector).variadic(1),
    f("scalar", &[Vector], Scalar),
    f("sgn", &[Vector], Vector),
    f("sin", &[Vector], Vector),
    f("sinh", &[Vector], Vector),
    f("sort", &[Vector], Vector),
    f("sort_by_label", &[Vector, String], Vector).variadic(-1).experimental(),
    f("sort_by_label_desc", &[Vector, String], Vector).variadic(-1).experimental(),
    f("sort_desc", &[Vector], Vector),
    f("sqrt", &[Vector], Vector),
    f("start", &[], Scalar).experimental(),
    f("start_timestamp", &[Vector], Vector).experimental(),
    f("stddev_over_time", &[Matrix], Vector),
    f("stdvar_over_time", &[Matrix], Vector),
    f("step", &[], Scalar).experimental(),
    f("sum_over_time", &[Matrix], Vector),
    f("tan", &[Vector], Vector),
    f("tanh", &[Vector], Vector),
    f("time", &[], Scalar),
    f("timestamp", &[Vector], Vector),
    f("ts_of_first_over_time", &[Matrix], Vector).experimental(),
    f("ts_of_last_over_time", &[Matrix], Vector).experimental(),
    f("ts_of_max_over_time", &[Matrix], Vector).experimental(),
    f("ts_of_min_over_time", &[Matrix], Vector).experimental(),
    f("vector", &[Scalar], Vector),
    f("year", &[Vector], Vector).variadic(1),
];

/// The function called `name`.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &FUNCTIONS[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(FUNCTIONS.windows(2).all(|w| w[0].name < w[1].name));
        assert_eq!(FUNCTIONS.len(), 90);
        assert_eq!(function("rate").unwrap().arg_types, [Matrix]);
        assert!(function("Rate").is_none() && function("").is_none());
    }

    #[test]
    fn argument_counts_follow_prometheus() {
        let counts = |name: &str| {
            let f = function(name).unwrap();
            (f.min_args(), f.max_args())
        };
        assert_eq!(counts("time"), (0, Some(0)));
        assert_eq!(counts("rate"), (1, Some(1)));
        assert_eq!(counts("round"), (1, Some(2)));
        assert_eq!(counts("hour"), (0, Some(1)));
        assert_eq!(counts("info"), (1, Some(2)));
        assert_eq!(counts("label_join"), (3, None));
        assert_eq!(counts("histogram_quantiles"), (3, Some(12)));
        assert_eq!(function("label_join").unwrap().arg_type(7), Some(String));
        assert_eq!(function("rate").unwrap().arg_type(1), None);
    }
}
