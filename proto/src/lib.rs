//! Wire messages: what flows between a sender, the services, and each other.
//!
//! [`write_batch`] is one write request as every service sees it; [`remote_write`] makes it from a request body in one
//! borrowing walk. [`grpc`] holds what services say to each other, generated from `proto/*.proto`; [`plan`] the bytes of
//! query plans.
//!
//! Absent on purpose: no I/O, no limits of a tenant, no decision about what is accepted beyond what can be represented.

pub mod grpc;
pub mod plan;
pub mod remote_write;
pub mod write_batch;

pub use write_batch::{SeriesEntry, SeriesView, WriteBatch, WriteBatchBuilder};
