//! Any damage to files of closed chunks.
#![no_main]

skald_fuzz::target!(chunk_file);
