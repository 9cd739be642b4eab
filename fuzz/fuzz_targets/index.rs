//! Any bytes as a block's index.
#![no_main]

skald_fuzz::target!(block::index);
