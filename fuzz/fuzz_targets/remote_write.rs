//! Any bytes as a sender's request.
#![no_main]

skald_fuzz::target!(remote_write);
