//! Any text as a query.
#![no_main]

skald_fuzz::target!(promql);
