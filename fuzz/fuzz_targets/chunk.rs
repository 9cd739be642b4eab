//! Any bytes as chunks of one series.
#![no_main]

skald_fuzz::target!(chunk);
