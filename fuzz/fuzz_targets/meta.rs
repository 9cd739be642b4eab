//! Any bytes as a block's `meta.json` or tombstones.
#![no_main]

skald_fuzz::target!(meta);
