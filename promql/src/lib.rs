//! PromQL: parse, plan, evaluate, over the small trait [`source::Queryable`] that yields series.
//!
//! Absent on purpose: storage, tenants, sockets, clocks, threads. Evaluation is a future that waits for a
//! [`source::SeriesSource`], for pieces of its work given to [`eval::Workers`] and for fragments given to an
//! [`eval::FragmentRunner`], and blocks on none; whoever runs it decides on which threads.

pub mod ast;
mod ast_json;
pub mod duration;
pub mod eval;
mod format;
pub mod functions;
pub mod parse;
pub mod plan;
#[doc(hidden)]
pub mod script;
pub mod series_description;
pub mod source;
#[doc(hidden)]
pub mod testing;
