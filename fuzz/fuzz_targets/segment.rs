//! Any bytes as a block's chunk segment.
#![no_main]

skald_fuzz::target!(block::segment);
