//! What every reader of bytes promises: it ends, panics never, takes no more memory than its input accounts for, and what
//! it accepts keeps the rules of its type.
//!
//! A target is a module with `seeds`, small valid inputs made by our own writers, and `check`, which gets any bytes and
//! fails by a panic. Checksums would keep a fuzzer at the door, so that [`reseal`] puts them right again in most inputs;
//! [`bound`] fails allocations that no input of that size accounts for. Run: `tests/fuzz [seconds] [target …]`.

pub mod block;
mod bound;
pub mod chunk;
pub mod chunk_file;
pub mod log;
pub mod meta;
pub mod promql;
pub mod remote_write;
mod reseal;

#[doc(hidden)]
pub use libfuzzer_sys;

/// The `main` of a target.
#[macro_export]
macro_rules! target {
    ($($target:ident)::+) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds($crate::$($target)::+::seeds),
            |bytes: &[u8]| $crate::$($target)::+::check(bytes)
        );
    };
}

/// Writes the seeds into the directory that `SKALD_FUZZ_SEEDS` names, and ends the process; without it, does nothing.
pub fn write_seeds(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("SKALD_FUZZ_SEEDS") else { return };
    let directory = std::path::PathBuf::from(directory);
    for (number, seed) in seeds().iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{number}")), seed).expect("the directory of seeds can be written");
    }
    std::process::exit(0);
}

/// The first byte says what is to be done with the others.
pub(crate) fn choice(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// An input of [`choice`].
pub(crate) fn chosen(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice], bytes].concat()
}
