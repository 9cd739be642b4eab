//! The table of functions: names, signatures, whether they are experimental.

use crate::ast::ValueType;

/// A function's signature.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// As queries write it.
    pub name: &'static str,
    /// Argument types in order.
    pub arg_types: &'static [ValueType],
    /// How many further arguments may follow (or how many of the last are optional), as Prometheus counts them:
    /// 0 exactly `arg_types`; n > 0 the last n are optional; -1 the last one may be missing or repeat without end.
    pub variadic: i32,
    /// What it yields.
    pub return_type: ValueType,
    /// Whether it needs experimental functions to be enabled.
    pub experimental: bool,
}

/// Every function of Prometheus 3.14, ascending by name.
pub static FUNCTIONS: &[Function] = &[];

/// The function called `name`.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &FUNCTIONS[i])
}
