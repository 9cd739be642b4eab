//! The ingester: holds recent samples.

pub mod client;
pub mod grpc;
