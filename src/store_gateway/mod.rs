//! The store-gateway: serves blocks from object storage.

pub mod client;
pub mod grpc;
