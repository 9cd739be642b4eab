//! Any bytes as a snapshot of the heads.
#![no_main]

skald_fuzz::target!(log::snapshot);
