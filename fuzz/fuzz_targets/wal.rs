//! Any bytes as a segment of the write-ahead log.
#![no_main]

skald_fuzz::target!(log::segment);
