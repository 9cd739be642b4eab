//! PromQL: parse, plan, evaluate, over the small trait [`source::Queryable`] that yields series.
//!
//! Absent on purpose: storage, tenants, sockets, clocks, threads. Evaluation is a future that only ever waits for a
//! [`source::SeriesSource`]; whoever runs it decides on which threads.

pub mod ast;
pub mod eval;
pub mod functions;
pub mod source;
#[doc(hidden)]
pub mod testing;
